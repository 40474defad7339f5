//! What a guest asks of the other vCPUs: starting, stopping and waiting, interrupts and fences.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult};

use super::{AxVM, serve::Served};
use crate::{
    hal::AxVMHal,
    mm::{GuestPhysAddr, MappingFlags},
    sync::atomic::{Ordering, fence},
    vcpu::{
        Attention, AxArchVCpu, AxVCpu, AxVCpuExitReason, AxVCpuRef, BoundVCpu, Completion, CpuMask,
        CpuUpError, GuestFence, IpiTargets,
    },
};

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    pub(super) fn halt(&self, vcpu: &AxVCpu<A>, bound: &mut BoundVCpu<'_, A>) -> Served {
        let awake =
            self.irq.pending(vcpu.id()) || bound.arch().has_wakeup() || !vcpu.attention.try_sleep();
        if awake { Served::Continue } else { Served::Host(AxVCpuExitReason::Halt) }
    }

    pub(super) fn suspend(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        resume: Option<(GuestPhysAddr, u64)>,
    ) -> AxResult<Served> {
        if let Some((entry, arg)) = resume {
            let begun = match self.can_begin(entry) {
                true => bound.arch().resume(entry, arg),
                false => Err(AxError::InvalidInput),
            };
            match begun {
                Err(AxError::InvalidInput) => {
                    let refused = Err(CpuUpError::InvalidAddress);
                    return Ok(Served::Complete(Completion::CpuUp(refused)));
                }
                begun => begun?,
            }
        }
        vcpu.power.suspend();
        let served = self.halt(vcpu, bound);
        if matches!(served, Served::Continue) {
            vcpu.power.resume();
        }
        Ok(served)
    }

    pub(super) fn cpu_named(&self, name: u64) -> Option<&AxVCpuRef<A>> {
        self.core.vcpus.iter().find(|vcpu| vcpu.spec().guest_cpu_id == name)
    }

    fn can_begin(&self, entry: GuestPhysAddr) -> bool {
        self.core.space.allows(entry, MappingFlags::EXECUTE)
    }

    pub(super) fn cpu_up(
        &self,
        bound: &mut BoundVCpu<'_, A>,
        target_cpu: u64,
        entry_point: GuestPhysAddr,
        arg: u64,
    ) -> AxResult<Served> {
        let started = match self.cpu_named(target_cpu) {
            None => Err(CpuUpError::InvalidTarget),
            Some(_) if !self.can_begin(entry_point) => Err(CpuUpError::InvalidAddress),
            Some(target) => target.power.start(entry_point, arg).map(|()| target),
        };
        let answer = Completion::CpuUp(started.map(drop));
        let Ok(target) = started else { return Ok(Served::Complete(answer)) };
        // The answer may be refused: nobody was started then.
        bound.complete(answer).inspect_err(|_| target.power.set(false))?;
        let target_cpu = target.id() as u64;
        Ok(Served::Host(AxVCpuExitReason::CpuUp { target_cpu, entry_point, arg }))
    }

    /// The vCPUs that the guest means; none when it names one that does not exist.
    pub(super) fn ipi_targets(&self, vcpu: &AxVCpu<A>, targets: IpiTargets) -> Option<CpuMask> {
        let (all, own) = (CpuMask::first(self.vcpu_num()), CpuMask::one(vcpu.id()));
        Some(match targets {
            IpiTargets::Set(set) => set,
            IpiTargets::Named { base, mask } => {
                let bit = |id| {
                    let bit = self.config.guest_cpu_id(id).checked_sub(base);
                    bit.filter(|&bit| bit < 64 && mask >> bit & 1 != 0).map(|bit| 1 << bit)
                };
                let found = (0..self.vcpu_num()).filter_map(bit).fold(0, |all, bit: u64| all | bit);
                if found != mask {
                    return None;
                }
                (0..self.vcpu_num()).filter(|&id| bit(id).is_some()).collect()
            }
            IpiTargets::AllButSelf => all.minus(own),
            IpiTargets::All => all,
            IpiTargets::Itself => own,
        })
    }

    pub(super) fn send_ipi(&self, vcpu: &AxVCpu<A>, targets: CpuMask, vector: u64) {
        for target in targets.iter() {
            // The guest chose vector and targets: what does not exist gets nothing.
            let sent = usize::try_from(vector).map_err(|_| AxError::InvalidInput);
            if sent.and_then(|vector| self.irq.inject(target, vector)).is_err() {
                self.note_unclaimed(vcpu, vector as usize);
            }
        }
    }

    /// Has vCPUs fence before they execute another instruction of the guest. Those that are in the
    /// guest are kicked, and waited for; the others do it on their way in.
    pub(super) fn remote_fence(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        targets: CpuMask,
        what: GuestFence,
    ) {
        let reason = match what {
            GuestFence::Instructions => Attention::FENCE_INSTRUCTIONS,
            GuestFence::Translations => Attention::FENCE_TRANSLATIONS,
        };
        let own = CpuMask::one(vcpu.id());
        let others = || targets.minus(own).iter().filter_map(|id| self.core.vcpus.get(id));
        for target in others() {
            target.attention.raise_quietly(reason);
        }
        // The reason before the look: a vCPU on its way in looks the other way round.
        fence(Ordering::SeqCst);
        let inside = |target: &AxVCpuRef<A>| self.core.space.tlb.inside(target.id());
        others().filter_map(inside).for_each(H::kick_pcpu);
        if targets.contains(vcpu.id()) {
            bound.arch().fence(what);
        }
        // A vCPU takes its reasons outside the guest only, and fences before it is inside again.
        // Nobody inside a guest waits for us, as we are outside.
        for target in others() {
            while target.attention.waits(reason) && inside(target).is_some() {
                H::relax();
            }
        }
    }
}
