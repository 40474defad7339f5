//! The gateways of sixteen interrupt sources in one atomic word.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Sources in one word.
pub(super) const LANES: usize = 16;

/// Sixteen gateways (RISC-V PLIC 1.0.0, "Interrupt Gateways"), together with the sources' pending
/// bits. Each change is one compare-and-swap, so nobody sees a source between two states, and of
/// those that want the same request one gets it.
///
/// A high wire is always pending or in service.
pub(super) struct Gateways(AtomicU64);

/// One bit of each for every source.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lanes {
    /// The wire is high.
    level: u16,
    /// A request waits to be claimed.
    pending: u16,
    /// A request was claimed and is not completed: the gateway lets no other through.
    in_service: u16,
    /// An edge came while one was in service.
    edge: u16,
}

impl From<u64> for Lanes {
    fn from(word: u64) -> Self {
        let lane = |index: u32| (word >> (16 * index)) as u16;
        Self { level: lane(0), pending: lane(1), in_service: lane(2), edge: lane(3) }
    }
}

impl From<Lanes> for u64 {
    fn from(lanes: Lanes) -> Self {
        let Lanes { level, pending, in_service, edge } = lanes;
        [edge, in_service, pending, level]
            .iter()
            .fold(0, |word, lane| (word << 16) | u64::from(*lane))
    }
}

/// What one source's request is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Request {
    /// There is none.
    #[default]
    None,
    /// It waits to be claimed.
    Pending,
    /// It was claimed and is not completed.
    InService {
        /// An edge came meanwhile: the next request follows the completion.
        edge: bool,
    },
}

impl Gateways {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The pending bits.
    #[inline]
    pub(super) fn pending(&self) -> u16 {
        Lanes::from(self.0.load(Ordering::Acquire)).pending
    }

    /// The wire goes high, or is still. True when that makes a request pending.
    pub(super) fn raise(&self, bit: u16) -> bool {
        self.update(bit, |lanes| {
            lanes.level |= bit;
            lanes.pending |= bit & !lanes.in_service;
        })
    }

    /// The wire goes low. A request that is pending stays: a gateway cannot take it back.
    pub(super) fn lower(&self, bit: u16) {
        self.update(bit, |lanes| lanes.level &= !bit);
    }

    /// An edge. True when that makes a request pending; one that comes while another is in
    /// service waits in the gateway, where there is room for one.
    pub(super) fn pulse(&self, bit: u16) -> bool {
        self.update(bit, |lanes| {
            lanes.edge |= bit & lanes.in_service;
            lanes.pending |= bit & !lanes.in_service;
        })
    }

    /// Takes the pending request into service. False when there is none (any more).
    pub(super) fn claim(&self, bit: u16) -> bool {
        self.update(bit, |lanes| {
            lanes.in_service |= bit & lanes.pending;
            lanes.pending &= !bit;
        })
    }

    /// Ends the service; without one, nothing happens. True when the next request is pending.
    pub(super) fn complete(&self, bit: u16) -> bool {
        self.update(bit, |lanes| {
            let completed = bit & lanes.in_service;
            lanes.in_service &= !completed;
            lanes.pending |= completed & (lanes.level | lanes.edge);
            lanes.edge &= !completed;
        })
    }

    /// The sources' requests, in the order of their bits.
    pub(super) fn requests(&self) -> [Request; LANES] {
        let lanes = Lanes::from(self.0.load(Ordering::Acquire));
        core::array::from_fn(|lane| {
            let has = |bits: u16| bits >> lane & 1 != 0;
            match (has(lanes.pending), has(lanes.in_service)) {
                (true, _) => Request::Pending,
                (false, true) => Request::InService { edge: has(lanes.edge) },
                (false, false) => Request::None,
            }
        })
    }

    /// Replaces all requests. The wires stay as they are, and those that are high and not in
    /// service are pending.
    pub(super) fn set_requests(&self, requests: impl Iterator<Item = Request>) {
        let (mut pending, mut in_service, mut edge) = (0, 0, 0);
        for (lane, request) in requests.take(LANES).enumerate() {
            let bit = 1 << lane;
            match request {
                Request::None => {}
                Request::Pending => pending |= bit,
                Request::InService { edge: again } => {
                    in_service |= bit;
                    edge |= if again { bit } else { 0 };
                }
            }
        }
        self.update(u16::MAX, |lanes| {
            let pending = pending | lanes.level & !in_service;
            *lanes = Lanes { level: lanes.level, pending, in_service, edge };
        });
    }

    /// One atomic change. Whether it changed a pending bit out of `bits`.
    fn update(&self, bits: u16, change: impl Fn(&mut Lanes)) -> bool {
        let changed = |word| {
            let mut lanes = Lanes::from(word);
            change(&mut lanes);
            lanes
        };
        let result = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some(changed(word).into()).filter(|new| *new != word)
        });
        result.is_ok_and(|old| (changed(old).pending ^ Lanes::from(old).pending) & bits != 0)
    }
}
