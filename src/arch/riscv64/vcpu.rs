//! The vCPU: what the VM calls.

#![forbid(unsafe_code)]

use core::marker::PhantomData;

use axerrno::{AxError, AxResult, ax_err};

use super::{
    Hart, RiscvPerCpu,
    csr::{Csr, GuestCsrs, atp, hstatus, irq, status},
    fp::Fp,
    hart::Frame,
    sbi::PendingCall,
    state::RiscvState,
    timer::Timer,
    trap::PendingAccess,
};
use crate::{
    hal::AxVMHal,
    irq::{HartIrqHw, IrqHw, Priority},
    mm::{
        GuestPhysAddr, HostPhysAddr,
        npt::{GStage, Geometry},
    },
    vcpu::{
        AxArchVCpu, Completion, DecodedAccess, GuestFault, GuestFence, Hardware, VcpuExit, VcpuSpec,
    },
};

/// The registers that calls use: a0, a1.
pub(super) const A0: usize = 10;
pub(super) const A1: usize = 11;

/// A hart of a guest, on harts of kind `P`. The room's page says what it switches when.
pub struct RiscvVCpu<H, P: Hart> {
    /// The guest's name for the hart.
    id: u64,
    pub(super) frame: Frame,
    /// Valid while unbound; in the hart otherwise.
    csrs: GuestCsrs,
    pub(super) fp: Fp,
    pub(super) timer: Timer,
    /// The root of the page table, as in `hgatp`.
    root: u64,
    /// What of the last exit waits for an answer.
    pub(super) pending: Pending,
    /// The host's `scounteren` and `senvcfg` while bound.
    host_env: [u64; 2],
    pub(super) hart: P,
    hal: PhantomData<fn() -> H>,
}

/// What waits for an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Pending {
    /// Nothing.
    #[default]
    Nothing,
    /// An access to memory.
    Access(PendingAccess),
    /// A call.
    Call(PendingCall),
}

/// What a vCPU is made from.
pub struct RiscvConfig {
    hart: u64,
    boot_arg: Option<GuestPhysAddr>,
}

impl From<&VcpuSpec> for RiscvConfig {
    fn from(spec: &VcpuSpec) -> Self {
        Self { hart: spec.guest_cpu_id, boot_arg: spec.boot_arg }
    }
}

impl<H: AxVMHal, P: Hart> RiscvVCpu<H, P> {
    /// Everything as a hart is when it is started (SBI 2.0 §9.1): S-mode, no translation,
    /// interrupts off, its id in a0.
    fn begin(&mut self, entry: u64, arg: u64) {
        self.fp.replace(&mut self.hart, &mut self.frame.sstatus, &Default::default());
        self.frame = Frame {
            pc: entry,
            sstatus: status::UXL_64 | status::SPP,
            hstatus: hstatus::VSXL_64 | hstatus::VTW | hstatus::SPV | hstatus::SPVP,
            ..Frame::default()
        };
        self.set_gpr(A0, self.id as usize);
        self.set_gpr(A1, arg as usize);
        self.csrs = GuestCsrs { vsstatus: status::UXL_64, ..GuestCsrs::default() };
        self.pending = Pending::Nothing;
    }

    /// The same while bound, with what of interrupts is pending (`hvip`) and wanted (`vsie`).
    fn begin_bound(
        &mut self,
        entry: GuestPhysAddr,
        arg: u64,
        pending: u64,
        wanted: u64,
    ) -> AxResult {
        let entry = entry.as_usize() as u64;
        if entry & 1 != 0 {
            return Err(AxError::InvalidInput);
        }
        self.begin(entry, arg);
        (self.csrs.hvip, self.csrs.vsie) = (pending, wanted);
        self.csrs.write(&mut self.hart);
        Ok(())
    }

    /// A general-purpose register.
    #[inline(always)]
    pub(super) fn gpr(&self, reg: u8) -> u64 {
        self.frame.gprs[usize::from(reg & 31)]
    }

    /// Sets a general-purpose register; x0 stays 0.
    #[inline(always)]
    pub(super) fn write_gpr(&mut self, reg: u8, value: u64) {
        if reg & 31 != 0 {
            self.frame.gprs[usize::from(reg & 31)] = value;
        }
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, len: u8) {
        self.frame.pc = self.frame.pc.wrapping_add(len.into());
    }

    pub(super) fn frequency() -> u64 {
        P::machine().frequency()
    }

    fn answer_access(&mut self, access: PendingAccess, done: Completion) -> AxResult {
        match (access.decoded(self), done) {
            (_, Completion::Retry) => {}
            (_, Completion::Fault(fault)) => {
                match fault {
                    GuestFault::Bus => self.raise(access.fault, self.frame.trap.value),
                    // 0: the instruction is not told (§12.1.9).
                    GuestFault::Undefined => self.raise(super::csr::cause::ILLEGAL, 0),
                }
            }
            (Some((access, insn)), Completion::Read(raw)) => {
                let crate::vcpu::AccessOp::Read(target) = access.op else {
                    return Err(AxError::InvalidInput);
                };
                let value = target.merge(self.gpr(target.reg), raw, access.width);
                self.write_gpr(target.reg, value);
                self.skip(insn.len);
            }
            (Some((access, insn)), Completion::Written)
                if matches!(access.op, crate::vcpu::AccessOp::Write(_)) =>
            {
                self.skip(insn.len);
            }
            _ => return Err(AxError::InvalidInput),
        }
        Ok(())
    }

    /// Whether the modes in a state exist on this hart.
    fn can_hold(&mut self, state: &RiscvState) -> bool {
        let old = self.hart.read(Csr::Vsatp);
        self.hart.write(Csr::Vsatp, state.csrs.vsatp);
        let stuck = self.hart.read(Csr::Vsatp);
        self.hart.write(Csr::Vsatp, old);
        stuck == state.csrs.vsatp && state.csrs.hvip & !irq::ALL == 0 && state.pc & 1 == 0
    }
}

impl<H: AxVMHal, P: Hart> AxArchVCpu for RiscvVCpu<H, P> {
    type CreateConfig = RiscvConfig;
    type SetupConfig = RiscvConfig;
    type PerCpu = RiscvPerCpu<H, P>;
    type Npt = GStage;
    type Tlb = P::Tlb;
    type IrqHw = Self;
    type State = RiscvState;

    const IRQ_PRIORITY: Priority = Priority::LowestFirst;

    fn has_hardware_support() -> bool {
        super::is_supported::<P>()
    }

    fn npt_geometry() -> AxResult<Geometry> {
        match P::machine().probe(&mut P::default()) {
            Some(features) => Ok(features.geometry()),
            None => ax_err!(Unsupported, "the hart has no hypervisor extension"),
        }
    }

    fn hardware() -> &'static Hardware {
        P::machine().hardware()
    }

    fn new(_vm_id: usize, _vcpu_id: usize, config: RiscvConfig) -> AxResult<Self> {
        let mut vcpu = Self {
            id: config.hart,
            frame: Frame::default(),
            csrs: GuestCsrs::default(),
            fp: Fp::default(),
            timer: Timer::default(),
            root: 0,
            pending: Pending::Nothing,
            host_env: [0; 2],
            hart: P::default(),
            hal: PhantomData,
        };
        vcpu.begin(0, config.boot_arg.map_or(0, |gpa| gpa.as_usize() as u64));
        Ok(vcpu)
    }

    fn set_entry(&mut self, entry: GuestPhysAddr) -> AxResult {
        if entry.as_usize() & 1 != 0 {
            return ax_err!(InvalidInput, format_args!("entry point {entry:?} is odd"));
        }
        self.frame.pc = entry.as_usize() as u64;
        Ok(())
    }

    fn set_ept_root(&mut self, root: HostPhysAddr) -> AxResult {
        // The root is 16 KiB, aligned to that (§18.5.1).
        if !root.as_usize().is_multiple_of(0x4000) {
            return ax_err!(InvalidInput, format_args!("root {root:?} is not aligned to 16 KiB"));
        }
        self.root = root.as_usize() as u64 >> 12 & atp::PPN;
        Ok(())
    }

    fn setup(&mut self, _config: RiscvConfig) -> AxResult {
        Ok(())
    }

    fn bind(&mut self) -> AxResult {
        let Some(features) = P::machine().features() else { return Err(AxError::BadState) };
        self.host_env = [Csr::Scounteren, Csr::Senvcfg].map(|csr| self.hart.read(csr));
        self.csrs.write(&mut self.hart);
        self.timer.bind(&mut self.hart, features.sstc);
        Ok(())
    }

    fn unbind(&mut self) -> AxResult {
        self.fp.unload(&mut self.hart, &mut self.frame.sstatus);
        self.csrs = GuestCsrs::read(&mut self.hart);
        self.timer.unbind(&mut self.hart);
        // Nothing of the guest's keeps the host from sleeping.
        self.hart.write(Csr::Hvip, 0);
        self.hart.write(Csr::Vsie, 0);
        // Nor does the hart walk tables that are about to be freed: both registers count as active
        // in HS-mode too (§18.2.10, §18.2.18).
        self.hart.write(Csr::Vsatp, 0);
        self.hart.write(Csr::Hgatp, 0);
        self.hart.write(Csr::Scounteren, self.host_env[0]);
        self.hart.write(Csr::Senvcfg, self.host_env[1]);
        Ok(())
    }

    fn set_vmid(&mut self, vmid: u16) {
        let mode = P::machine().features().map_or(0, |features| features.gstage_mode);
        let hgatp = super::hgatp(mode, vmid, self.root);
        self.hart.write(Csr::Hgatp, hgatp);
    }

    #[inline]
    fn run(&mut self) -> AxResult<VcpuExit> {
        self.pending = Pending::Nothing;
        self.timer.show(&mut self.hart);
        self.hart.enter(&mut self.frame);
        Ok(self.take_exit())
    }

    #[inline]
    fn complete(&mut self, done: Completion) -> AxResult<Option<VcpuExit>> {
        match self.pending {
            Pending::Nothing => return Err(AxError::BadState),
            Pending::Access(access) => self.answer_access(access, done)?,
            Pending::Call(call) => self.answer_call(call, done)?,
        }
        self.pending = Pending::Nothing;
        Ok(None)
    }

    fn decode(&mut self) -> Option<DecodedAccess> {
        match self.pending {
            Pending::Access(access) => access.decoded(self).map(|(access, _)| access),
            _ => None,
        }
    }

    fn set_gpr(&mut self, reg: usize, value: usize) {
        if reg < 32 {
            self.write_gpr(reg as u8, value as u64);
        }
    }

    fn set_return_value(&mut self, value: usize) {
        self.set_gpr(A0, value);
    }

    fn irq_hw(&mut self) -> &mut Self {
        self
    }

    fn power_on(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult {
        // The external interrupt is a line, which the interrupt controller holds up or down.
        let line = self.hart.read(Csr::Hvip) & irq::VSEI;
        self.begin_bound(entry, arg, line, 0)?;
        self.timer.set::<H>(&mut self.hart, Self::frequency(), u64::MAX);
        Ok(())
    }

    fn resume(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult {
        let (pending, wanted) = (self.hart.read(Csr::Hvip), self.hart.read(Csr::Vsie));
        self.begin_bound(entry, arg, pending, wanted)
    }

    fn next_deadline(&mut self) -> Option<u64> {
        self.timer.deadline::<H>(&mut self.hart, Self::frequency())
    }

    #[inline]
    fn interrupt_at(&mut self) -> Option<u64> {
        self.timer.interrupt_at()
    }

    fn fence(&mut self, fence: GuestFence) {
        match fence {
            GuestFence::Instructions => self.hart.fence_instructions(),
            GuestFence::Translations => self.hart.fence_translations(),
        }
    }

    fn has_wakeup(&mut self) -> bool {
        let wanted = self.hart.read(Csr::Hie) & irq::ALL;
        wanted & self.hart.read(Csr::Hip) != 0
            || wanted & irq::VSTI != 0 && self.timer.is_due(&mut self.hart)
    }

    fn state(&mut self) -> RiscvState {
        RiscvState {
            gprs: self.frame.gprs,
            pc: self.frame.pc,
            user: self.frame.sstatus & status::SPP == 0,
            csrs: GuestCsrs::read(&mut self.hart),
            fp: *self.fp.sync(&mut self.hart, &mut self.frame.sstatus),
            timer: self.timer.at(&mut self.hart),
        }
    }

    fn set_state(&mut self, state: &RiscvState) -> AxResult {
        if !self.can_hold(state) {
            return ax_err!(InvalidInput, "the hart cannot hold the state");
        }
        self.begin(state.pc, 0);
        self.frame.gprs = state.gprs;
        self.frame.gprs[0] = 0;
        if state.user {
            self.frame.sstatus &= !status::SPP;
            self.frame.hstatus &= !hstatus::SPVP;
        }
        self.fp.replace(&mut self.hart, &mut self.frame.sstatus, &state.fp);
        self.timer.set::<H>(&mut self.hart, Self::frequency(), state.timer);
        self.csrs = state.csrs;
        if self.timer.has_sstc() {
            // The hart itself shows what is due: a bit of a hart without Sstc would stay for ever.
            self.csrs.hvip &= !irq::VSTI;
        }
        self.csrs.write(&mut self.hart);
        Ok(())
    }
}

impl<H, P: Hart> HartIrqHw for RiscvVCpu<H, P> {
    fn set_external(&mut self, high: bool) {
        if high {
            self.hart.set(Csr::Hvip, irq::VSEI);
        } else {
            self.hart.clear(Csr::Hvip, irq::VSEI);
        }
    }
}

impl<H, P: Hart> IrqHw for RiscvVCpu<H, P> {
    /// The supervisor software interrupt (1) is the one that can be injected: the guest clears it
    /// by itself. Lines, which it cannot clear, are the interrupt controller's.
    fn inject(&mut self, vector: usize) -> AxResult {
        if vector != 1 {
            return Err(AxError::InvalidInput);
        }
        self.hart.set(Csr::Hvip, irq::VSSI);
        Ok(())
    }
}
