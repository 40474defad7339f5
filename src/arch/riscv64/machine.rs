//! What the harts of this machine can do, and virtualization on one of them.

#![forbid(unsafe_code)]

use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
};

use axerrno::{AxError, AxResult, ax_err};

use super::{
    Hart,
    csr::{Csr, HCOUNTEREN, HENVCFG_STCE, atp, cause, irq},
};
use crate::{
    hal::AxVMHal,
    mm::{npt::Geometry, tlb::NestedTlb},
    vcpu::{AxArchPerCpu, Hardware},
};

/// What the harts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Sstc: the guest has a timer of its own, `stimecmp`.
    pub sstc: bool,
    /// The mode of `hgatp`: 8 for Sv39x4, 9 for Sv48x4.
    pub gstage_mode: u8,
    /// The number of VMID bits, 0 to 14.
    pub vmid_bits: u8,
    /// The largest mode of the guest's own page tables, as in `satp`: 8, 9 or 10 for Sv39, Sv48
    /// and Sv57.
    pub satp_mode: u8,
}

/// One for each kind of hart: what is known of it, its CPUs and VMIDs.
pub struct Machine {
    hardware: Hardware,
    /// `Features` in bytes, and `PROBED`; 0 when not known yet.
    features: AtomicU64,
    /// Ticks of `time` in a second; 0 when not known yet.
    frequency: AtomicU64,
}

const PROBED: u64 = 1 << 63;

impl Machine {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self {
            hardware: Hardware::new(14),
            features: AtomicU64::new(0),
            frequency: AtomicU64::new(0),
        }
    }

    /// Its CPUs and VMIDs.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// What the harts have, as far as known.
    #[inline]
    pub fn features(&self) -> Option<Features> {
        let packed = self.features.load(Ordering::Relaxed);
        let [sstc, gstage_mode, vmid_bits, satp_mode, ..] = packed.to_le_bytes();
        let known = packed & PROBED != 0;
        known.then_some(Features { sstc: sstc != 0, gstage_mode, vmid_bits, satp_mode })
    }

    /// What the harts have; none when they have no hypervisor extension, or no page-table format
    /// that the crate knows. Asks this hart when it is not known.
    pub fn probe<P: Hart>(&self, hart: &mut P) -> Option<Features> {
        if let Some(features) = self.features() {
            return Some(features);
        }
        let features = probe(hart)?;
        let Features { sstc, gstage_mode, vmid_bits, satp_mode } = features;
        let bytes = [sstc.into(), gstage_mode, vmid_bits, satp_mode, 0, 0, 0, 0];
        self.features.store(u64::from_le_bytes(bytes) | PROBED, Ordering::Relaxed);
        Some(features)
    }

    /// Ticks of `time` in a second, if the host tells, or they were counted when a hart was
    /// enabled.
    pub fn known_frequency<H: AxVMHal>(&self) -> Option<u64> {
        let counted = self.frequency.load(Ordering::Relaxed);
        (counted != 0).then_some(counted).or_else(Self::told_frequency::<H>)
    }

    /// What the host says of it; 0 says nothing.
    fn told_frequency<H: AxVMHal>() -> Option<u64> {
        H::counter_frequency().filter(|&frequency| frequency != 0)
    }

    /// Ticks of `time` in a second, once a hart was enabled; at least 1.
    #[inline]
    pub(super) fn frequency(&self) -> u64 {
        self.frequency.load(Ordering::Relaxed).max(1)
    }

    /// Finds out how fast `time` ticks.
    fn learn_frequency<H: AxVMHal>(&self, hart: &mut impl Hart) {
        if self.frequency.load(Ordering::Relaxed) != 0 {
            return;
        }
        let frequency = Self::told_frequency::<H>().unwrap_or_else(|| {
            let (ticks, nanos) = (hart.read(Csr::Time), H::current_time_nanos());
            let elapsed = loop {
                let elapsed = H::current_time_nanos().wrapping_sub(nanos);
                if elapsed >= 1_000_000 {
                    break elapsed;
                }
                core::hint::spin_loop();
            };
            let ticks = hart.read(Csr::Time).wrapping_sub(ticks);
            (u128::from(ticks) * 1_000_000_000 / u128::from(elapsed)) as u64
        });
        self.frequency.store(frequency.max(1), Ordering::Relaxed);
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// What of a value a register takes: modes and bits that do not exist do not stick (§12.1.11,
/// §18.2.10). It is as before afterwards.
fn stuck(hart: &mut impl Hart, csr: Csr, value: u64) -> u64 {
    let old = hart.read(csr);
    hart.write(csr, value);
    let stuck = hart.read(csr);
    hart.write(csr, old);
    stuck
}

fn probe(hart: &mut impl Hart) -> Option<Features> {
    if !hart.has_hypervisor() {
        return None;
    }
    let mut sticks = |csr, value| stuck(hart, csr, value);
    let gstage = [atp::SV48, atp::SV39].map(|mode| {
        let stuck = sticks(Csr::Hgatp, mode << atp::MODE_SHIFT | atp::VMID);
        (stuck >> atp::MODE_SHIFT == mode).then_some((mode, (stuck & atp::VMID).count_ones()))
    });
    let (gstage_mode, vmid_bits) = gstage.into_iter().flatten().next()?;
    // Not every hart without Sstc keeps STCE at 0, as it should.
    let stce = sticks(Csr::Henvcfg, HENVCFG_STCE) & HENVCFG_STCE != 0;
    let satp_mode = [atp::SV57, atp::SV48, atp::SV39].into_iter().find(|&mode| {
        let value = mode << atp::MODE_SHIFT;
        sticks(Csr::Vsatp, value) == value
    })?;
    let sstc = stce && hart.has_vstimecmp();
    let (gstage_mode, vmid_bits) = (gstage_mode as u8, vmid_bits as u8);
    Some(Features { sstc, gstage_mode, vmid_bits, satp_mode: satp_mode as u8 })
}

impl Features {
    /// The shape of the guest-stage page table.
    pub const fn geometry(&self) -> Geometry {
        if self.gstage_mode as u64 == atp::SV48 { Geometry::SV48X4 } else { Geometry::SV39X4 }
    }
}

/// Virtualization on one hart.
pub struct RiscvPerCpu<H, P> {
    enabled: bool,
    types: PhantomData<fn() -> (H, P)>,
}

impl<H: AxVMHal, P: Hart> AxArchPerCpu for RiscvPerCpu<H, P> {
    fn new(_cpu_id: usize) -> AxResult<Self> {
        Ok(Self { enabled: false, types: PhantomData })
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn hardware_enable(&mut self) -> AxResult {
        if self.enabled {
            return Err(AxError::BadState);
        }
        let mut hart = P::default();
        let machine = P::machine();
        let Some(known) = machine.probe(&mut hart) else {
            return ax_err!(Unsupported, "the hart has no hypervisor extension");
        };
        // Every hart runs every vCPU: each must have what the first one had. Most of all the page
        // table's mode: a write of another one to `hgatp` has no effect, and the guest would run
        // without a table.
        let Some(here) = probe(&mut hart) else {
            return ax_err!(Unsupported, "the hart has no hypervisor extension");
        };
        let mode = u64::from(known.gstage_mode) << atp::MODE_SHIFT;
        let has_mode = stuck(&mut hart, Csr::Hgatp, mode) == mode;
        let has_timer = here.sstc || !known.sstc;
        if !has_mode || !has_timer || here.satp_mode < known.satp_mode {
            return ax_err!(
                Unsupported,
                format_args!("the hart has {here:?}, the first {known:?}")
            );
        }
        machine.hardware().vmids().limit_bits(here.vmid_bits.into());
        machine.learn_frequency::<H>(&mut hart);
        hart.write(Csr::Hvip, 0);
        hart.write(Csr::Hedeleg, cause::DELEGATED);
        hart.write(Csr::Hideleg, irq::ALL);
        // Of `vsie` only those bits can be written that are delegated.
        hart.write(Csr::Vsie, 0);
        hart.write(Csr::Hcounteren, HCOUNTEREN);
        hart.write(Csr::Htimedelta, 0);
        if known.sstc {
            hart.set(Csr::Henvcfg, HENVCFG_STCE);
            hart.write(Csr::Vstimecmp, u64::MAX);
        }
        self.enabled = true;
        Ok(())
    }

    fn hardware_disable(&mut self) -> AxResult {
        if !self.enabled {
            return Err(AxError::BadState);
        }
        let mut hart = P::default();
        for csr in [Csr::Hvip, Csr::Vsie, Csr::Hedeleg, Csr::Hideleg, Csr::Hcounteren, Csr::Hgatp] {
            hart.write(csr, 0);
        }
        if P::machine().features().is_some_and(|features| features.sstc) {
            hart.clear(Csr::Henvcfg, HENVCFG_STCE);
        }
        P::Tlb::flush_all();
        self.enabled = false;
        Ok(())
    }
}
