//! The RISC-V Platform-Level Interrupt Controller.

mod gateway;
mod regs;
mod state;

use alloc::{boxed::Box, sync::Arc};

use axerrno::{AxError, AxResult};

use self::gateway::{Gateways, LANES};
use super::{EntryState, HartIrqHw, InterruptController, IrqInput, VcpuNotifier};
use crate::{
    mm::{GpaRange, GuestPhysAddr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering, fence},
    vcpu::MAX_VCPUS,
};

pub use gateway::Request;
pub use state::{HartState, PlicState, SourceState};

/// Bytes of the register window: QEMU `virt`'s, with room for 512 harts.
pub const WINDOW_SIZE: usize = 0x60_0000;
/// The most interrupt sources.
pub const MAX_SOURCES: u32 = 1023;
/// The highest priority, and the highest threshold: three bits, as on QEMU `virt`.
pub const MAX_PRIORITY: u32 = 7;

/// The cause of a supervisor software interrupt (RISC-V Privileged, `scause`).
const SOFTWARE: usize = 1;

/// A PLIC (RISC-V PLIC specification 1.0.0) as QEMU `virt` lays it out: context `2 i + 1` is the
/// S-mode of vCPU `i`. The contexts between them are the M-modes, which guests do not have: what
/// is theirs reads 0 and ignores writes, as the specification lets enable bits be where a source
/// cannot be routed to a target.
///
/// It takes no lock. What belongs to one source is part of one atomic word; enable bits,
/// priorities and thresholds are one atomic word each. Whoever changes something that a vCPU's
/// external interrupt may depend on looks at that afterwards, and notifies the vCPU when its
/// hardware has another level; the vCPU's owner writes down what level the hardware gets, and
/// looks again. Of the two, one sees the other.
///
/// Where the specification leaves a choice: priorities and thresholds have three bits. A claim
/// takes the highest-priority request that is pending and enabled, whatever the threshold, but
/// none of priority 0. Of the edges that come while one is in service, one is remembered. A level
/// that falls before it is claimed stays pending.
///
/// As [`InterruptController`] it also delivers supervisor software interrupts: `inject` takes 1,
/// and no other cause.
pub struct VPlic {
    range: GpaRange,
    /// The number of sources, which is also the last one's.
    sources: usize,
    gateways: Box<[Gateways]>,
    /// By source; that of source 0 stays 0.
    priorities: Box<[AtomicU32]>,
    harts: Box<[Hart]>,
    notifier: Arc<dyn VcpuNotifier>,
}

/// The S-mode context of one vCPU.
struct Hart {
    enables: Box<[AtomicU32]>,
    threshold: AtomicU32,
    /// A software interrupt that the hardware was not given yet.
    software: AtomicBool,
    /// The level of the external interrupt that the hardware was given. Only the vCPU's owner
    /// changes it.
    given: AtomicBool,
}

impl Hart {
    fn new(sources: usize) -> Self {
        Self {
            enables: (0..=sources / 32).map(|_| AtomicU32::new(0)).collect(),
            threshold: AtomicU32::new(0),
            software: AtomicBool::new(false),
            given: AtomicBool::new(false),
        }
    }

    /// The enable bits of the sources of one word of gateways.
    #[inline]
    fn enabled(&self, index: usize) -> u16 {
        let word = self.enables.get(index / 2).map_or(0, |word| word.load(Ordering::Acquire));
        (word >> (LANES * (index % 2))) as u16
    }
}

impl VPlic {
    /// A PLIC with the sources `1 ..= sources`, at most [`MAX_SOURCES`], at `base`, a multiple of
    /// 4, for `vcpus` vCPUs, at most [`MAX_VCPUS`].
    ///
    /// # Errors
    /// `InvalidInput` when one of them is not so, or the window overflows the address space.
    pub fn new(
        base: GuestPhysAddr,
        sources: u32,
        vcpus: usize,
        notifier: Arc<dyn VcpuNotifier>,
    ) -> AxResult<Self> {
        let range = GpaRange::new(base, WINDOW_SIZE).ok_or(AxError::InvalidInput)?;
        let fits = (1..=MAX_SOURCES).contains(&sources) && (1..=MAX_VCPUS).contains(&vcpus);
        if !fits || !range.is_aligned(4) {
            return Err(AxError::InvalidInput);
        }
        let sources = sources as usize;
        Ok(Self {
            range,
            sources,
            gateways: (0..=sources / LANES).map(|_| Gateways::new()).collect(),
            priorities: (0..=sources).map(|_| AtomicU32::new(0)).collect(),
            harts: (0..vcpus).map(|_| Hart::new(sources)).collect(),
            notifier,
        })
    }

    /// The number of interrupt sources, as `riscv,ndev` of a device tree gives it.
    pub fn sources(&self) -> u32 {
        self.sources as u32
    }

    /// A source's gateways and its bit there.
    fn gateway(&self, source: usize) -> Option<(&Gateways, u16)> {
        let gateways = self.gateways.get(source / LANES)?;
        (1..=self.sources).contains(&source).then_some((gateways, 1 << (source % LANES)))
    }

    fn input(&self, irq: usize) -> AxResult<(&Gateways, u16)> {
        self.gateway(irq).ok_or(AxError::InvalidInput)
    }

    /// The bits of a 32-bit word that sources have.
    fn existing(&self, word: usize) -> u32 {
        let bits = |count: usize| 1u32.checked_shl(count as u32).map_or(u32::MAX, |bit| bit - 1);
        let below = bits((self.sources + 1).saturating_sub(word.saturating_mul(32)).min(32));
        if word == 0 { below & !1 } else { below }
    }

    /// The sources that are pending and enabled for a context, with their priorities.
    #[inline]
    fn candidates<'a>(&'a self, hart: &'a Hart) -> impl Iterator<Item = (usize, u32)> + 'a {
        self.gateways.iter().enumerate().flat_map(move |(index, gateways)| {
            let pending = gateways.pending();
            let bits = if pending == 0 { 0 } else { pending & hart.enabled(index) };
            let next = |bits: &u16| Some(bits & (bits - 1)).filter(|bits| *bits != 0);
            core::iter::successors(Some(bits).filter(|bits| *bits != 0), next).map(move |bits| {
                let source = index * LANES + bits.trailing_zeros() as usize;
                let priority = self.priorities.get(source);
                (source, priority.map_or(0, |priority| priority.load(Ordering::Acquire)))
            })
        })
    }

    /// The level of a context's external interrupt ("Interrupt Notifications").
    fn level(&self, hart: &Hart) -> bool {
        let threshold = hart.threshold.load(Ordering::Acquire);
        self.candidates(hart).any(|(_, priority)| priority > threshold)
    }

    /// Whether the hardware of a vCPU has another level than it should.
    fn is_stale(&self, hart: &Hart) -> bool {
        self.level(hart) != hart.given.load(Ordering::Acquire)
    }

    /// Whether the hardware of a vCPU has not been given everything.
    fn lacks(&self, hart: &Hart) -> bool {
        hart.software.load(Ordering::Acquire) || self.is_stale(hart)
    }

    /// Notifies a vCPU whose level is not what its hardware has. After a change and a fence.
    fn tell(&self, vcpu: usize) {
        if self.harts.get(vcpu).is_some_and(|hart| self.is_stale(hart)) {
            self.notifier.notify(vcpu);
        }
    }

    /// After a change of one source: its pending bit or its priority.
    fn tell_targets(&self, source: usize) {
        fence(Ordering::SeqCst);
        for (vcpu, hart) in self.harts.iter().enumerate() {
            if hart.enabled(source / LANES) >> (source % LANES) & 1 != 0 {
                self.tell(vcpu);
            }
        }
    }

    fn pending_word(&self, word: usize) -> u32 {
        let half = |index: usize| self.gateways.get(index).map_or(0, Gateways::pending);
        u32::from(half(2 * word)) | u32::from(half(2 * word + 1)) << LANES
    }

    /// The highest-priority pending source, of several the lowest number, taken into service; 0
    /// when there is none ("Interrupt Claim Process").
    fn claim(&self, vcpu: usize) -> u32 {
        let Some(hart) = self.harts.get(vcpu) else { return 0 };
        loop {
            let better = |best: (usize, u32), next: (usize, u32)| {
                if next.1 > best.1 { next } else { best }
            };
            let (source, _) = self.candidates(hart).fold((0, 0), better);
            let Some((gateways, bit)) = self.gateway(source) else { return 0 };
            if gateways.claim(bit) {
                self.tell_targets(source);
                return source as u32;
            }
            // Another context was faster: what is best now?
        }
    }

    /// "Interrupt Completion": ignored unless the source is enabled for the context.
    fn complete(&self, vcpu: usize, source: u32) -> Option<()> {
        let source = source as usize;
        let (gateways, bit) = self.gateway(source)?;
        if self.harts.get(vcpu)?.enabled(source / LANES) & bit != 0 && gateways.complete(bit) {
            self.tell_targets(source);
        }
        Some(())
    }

    fn set_priority(&self, source: usize, value: u32) -> Option<()> {
        self.gateway(source)?;
        self.priorities.get(source)?.store(value & MAX_PRIORITY, Ordering::Release);
        self.tell_targets(source);
        Some(())
    }

    fn set_enables(&self, vcpu: usize, word: usize, value: u32) -> Option<()> {
        let enables = self.harts.get(vcpu)?.enables.get(word)?;
        enables.store(value & self.existing(word), Ordering::Release);
        fence(Ordering::SeqCst);
        self.tell(vcpu);
        Some(())
    }

    fn set_threshold(&self, vcpu: usize, value: u32) -> Option<()> {
        self.harts.get(vcpu)?.threshold.store(value & MAX_PRIORITY, Ordering::Release);
        fence(Ordering::SeqCst);
        self.tell(vcpu);
        Some(())
    }
}

/// The inputs are the sources: 0 is none.
impl IrqInput for VPlic {
    fn set_level(&self, irq: usize, asserted: bool) -> AxResult {
        let (gateways, bit) = self.input(irq)?;
        if !asserted {
            gateways.lower(bit);
        } else if gateways.raise(bit) {
            self.tell_targets(irq);
        }
        Ok(())
    }

    fn pulse(&self, irq: usize) -> AxResult {
        let (gateways, bit) = self.input(irq)?;
        if gateways.pulse(bit) {
            self.tell_targets(irq);
        }
        Ok(())
    }
}

impl<Hw: HartIrqHw + ?Sized> InterruptController<Hw> for VPlic {
    /// `irq` is 1, the supervisor software interrupt: devices use [`IrqInput`].
    fn inject(&self, vcpu: usize, irq: usize) -> AxResult {
        let hart = self.harts.get(vcpu).ok_or(AxError::NotFound)?;
        if irq != SOFTWARE {
            return Err(AxError::InvalidInput);
        }
        hart.software.store(true, Ordering::Release);
        self.notifier.notify(vcpu);
        Ok(())
    }

    /// Whether the hardware lacks something; a level that it was given is its own affair.
    fn pending(&self, vcpu: usize) -> bool {
        self.harts.get(vcpu).is_some_and(|hart| self.lacks(hart))
    }

    fn before_entry(&self, vcpu: usize, hw: &mut Hw) -> AxResult<EntryState> {
        let hart = self.harts.get(vcpu).ok_or(AxError::NotFound)?;
        let mut level = self.level(hart);
        while level != hart.given.load(Ordering::Relaxed) {
            // Written down first, then the look: whoever changes something does the opposite.
            hart.given.store(level, Ordering::Release);
            fence(Ordering::SeqCst);
            level = self.level(hart);
        }
        // Also one that it has: the vCPU's state may have been replaced.
        hw.set_external(level);
        // Mostly there is none; a plain load keeps the line shared.
        let software =
            hart.software.load(Ordering::Acquire) && hart.software.swap(false, Ordering::AcqRel);
        let given = if software { hw.inject(SOFTWARE) } else { Ok(()) };
        let more = given == Err(AxError::ResourceBusy);
        if let Err(error) = given {
            hart.software.store(true, Ordering::Release);
            if !more {
                return Err(error);
            }
        }
        Ok(EntryState { in_hardware: false, more })
    }

    fn after_exit(&self, _: usize, _: &mut Hw) {}

    fn reset(&self) {
        self.install(&PlicState::default());
        for hart in &self.harts {
            hart.given.store(false, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
