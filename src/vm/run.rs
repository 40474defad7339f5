//! Running a vCPU: entry, exit, and the loop between them.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult, ax_err};

use super::{AxVM, VMStatus};
use crate::{
    hal::AxVMHal,
    irq::EntryState,
    mm::tlb::Entrant,
    sync::atomic::{Ordering, fence},
    vcpu::{Attention, AxArchVCpu, AxVCpu, AxVCpuExitReason, BoundVCpu, GuestFence, VcpuExit},
};

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// Runs a vCPU on this physical CPU until only the host can go on; see
    /// [`AxVCpuExitReason`] for what that can be.
    ///
    /// The caller has interrupts masked, stays on this physical CPU, and has virtualization
    /// enabled on it; so it is on return. The guest runs with what the backend documents of
    /// vector base, thread pointers and floating-point state; the host's are as before on
    /// return. The host's physical interrupts make it return.
    ///
    /// # Errors
    /// `InvalidInput` for no such vCPU. `BadState` when the VM is not running, the vCPU is bound
    /// elsewhere or switched off, an access handed to the host was not
    /// [completed](Self::complete), or virtualization is off on this CPU. `NoMemory` when the
    /// guest needs a page and the host has none: free some and call again. Whatever the hardware
    /// refuses. The vCPU is unbound in every case.
    pub fn run_vcpu(&self, vcpu_id: usize) -> AxResult<AxVCpuExitReason> {
        // Before a vCPU is bound for nothing; it is asked again when it is bound.
        self.must_run()?;
        self.with_bound(vcpu_id, |vcpu, bound, pcpu| {
            let result = self.run_bound(vcpu, bound, pcpu);
            // In this order: a timer that becomes due in between is seen by the second look.
            let deadline = bound.arch().next_deadline().unwrap_or(u64::MAX);
            let due = bound.arch().has_wakeup();
            vcpu.deadline.store(if due { 0 } else { deadline }, Ordering::Relaxed);
            result
        })
    }

    /// Answers an access or hypercall that [`run_vcpu`](Self::run_vcpu) handed to the host: with
    /// the value that was read or is returned, or any value for a write.
    ///
    /// # Errors
    /// `InvalidInput` for no such vCPU; `BadState` when nothing waits for an answer.
    pub fn complete(&self, vcpu_id: usize, value: u64) -> AxResult {
        self.vcpu_ref(vcpu_id)?.answer.answer(value)
    }

    fn must_run(&self) -> AxResult {
        match self.status() {
            VMStatus::Running => Ok(()),
            status => ax_err!(BadState, format_args!("VM {} is {status:?}", self.id())),
        }
    }

    fn run_bound(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        pcpu: usize,
    ) -> AxResult<AxVCpuExitReason> {
        // Bound first, then the look: whoever shuts down looks the other way round.
        fence(Ordering::SeqCst);
        self.must_run()?;
        vcpu.attention.wake();
        self.power_on(vcpu, bound)?;
        if let Some(answer) = vcpu.answer.peek()? {
            let next = bound.complete(answer)?;
            vcpu.answer.forget();
            if let Some(next) = next
                && let Some(reason) = self.serve(vcpu, bound, next, true)?
            {
                return Ok(reason);
            }
        }
        // The controller is asked at the first entry: what it had in the hardware, it must read
        // back, and what is still pending, nobody tells again.
        let irq = EntryState { in_hardware: false, more: true };
        let tlb = self.core.space.tlb.entrant(vcpu.id(), pcpu).ok_or(AxError::InvalidInput)?;
        let fences = if tlb.takes_over() { Attention::FENCES } else { 0 };
        let mut entry = Entry { vmid: None, timer: None, irq, fences };
        let result = self.run_entrant(vcpu, bound, &tlb, &mut entry);
        if entry.fences != 0 {
            // It did not come to an entry after all.
            vcpu.attention.raise_quietly(entry.fences);
        }
        result
    }

    fn run_entrant(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        tlb: &Entrant<'_, A::Tlb>,
        entry: &mut Entry,
    ) -> AxResult<AxVCpuExitReason> {
        loop {
            let Some(exit) = self.enter(vcpu, bound, tlb, entry)? else {
                return Ok(AxVCpuExitReason::SystemDown);
            };
            // Devices here and everything else apart, so that what these need fits in registers.
            let (exit, continued) = match self.serve_by_device(vcpu, &exit) {
                None if matches!(exit, VcpuExit::Served(_) | VcpuExit::Nothing) => continue,
                None => (exit, false),
                Some(answer) => match bound.complete(answer)? {
                    None => continue,
                    Some(next) => (next, true),
                },
            };
            if let Some(reason) = self.serve(vcpu, bound, exit, continued)? {
                return Ok(reason);
            }
        }
    }

    /// A vCPU that was started begins where it was told to.
    fn power_on(&self, vcpu: &AxVCpu<A>, bound: &mut BoundVCpu<'_, A>) -> AxResult {
        vcpu.power.resume();
        if let Some((entry, arg)) = vcpu.power.pending() {
            match bound.arch().power_on(entry, arg) {
                Ok(()) => vcpu.power.set(true),
                Err(error) => {
                    // One that can never begin there is off, and may be started elsewhere.
                    if error == AxError::InvalidInput {
                        vcpu.power.set(false);
                    }
                    return Err(error);
                }
            }
        }
        if !vcpu.power.is_on() {
            let what = format_args!("VM {} vCPU {} is switched off", self.id(), vcpu.id());
            return ax_err!(BadState, what);
        }
        Ok(())
    }

    /// One entry into the guest and the exit from it; none when the VM goes down.
    #[inline]
    fn enter(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        tlb: &Entrant<'_, A::Tlb>,
        entry: &mut Entry,
    ) -> AxResult<Option<VcpuExit>> {
        if let Some(deadline) = bound.arch().interrupt_at()
            && entry.timer != Some(deadline)
        {
            H::set_timer(deadline);
            entry.timer = Some(deadline);
        }
        let _inside = Inside { leave: || tlb.leave() };
        loop {
            let attention = vcpu.attention.take();
            if (attention != 0 || entry.irq.more) && !self.attend(vcpu, bound, entry, attention)? {
                return Ok(None);
            }
            tlb.announce();
            // Whatever is raised from here on is followed by a kick. Between here and the entry
            // nothing waits for anybody: who changes the page table may be waiting for us.
            if !vcpu.attention.is_raised() {
                break;
            }
            tlb.leave();
        }
        let vmid = tlb.enter(A::hardware());
        if entry.vmid != Some(vmid) {
            bound.arch().set_vmid(vmid);
            entry.vmid = Some(vmid);
        }
        if entry.fences != 0 {
            fence_guest(bound, tlb, core::mem::take(&mut entry.fences));
        }
        let exit = bound.run();
        if entry.irq.in_hardware {
            self.irq.after_exit(vcpu.id(), bound.arch().irq_hw());
        }
        let exit = exit?;
        vcpu.stats.count_exit(&exit);
        H::trace_exit(self.id(), vcpu.id(), &exit);
        Ok(Some(exit))
    }

    /// What the vCPU was to look up for, before an entry; false when the VM goes down.
    #[inline(never)]
    fn attend(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        entry: &mut Entry,
        attention: u32,
    ) -> AxResult<bool> {
        entry.fences |= attention & Attention::FENCES;
        if attention & Attention::LIFECYCLE != 0 && self.status() != VMStatus::Running {
            return Ok(false);
        }
        if attention & Attention::IRQ != 0 || entry.irq.more {
            // Until it is known better, also if the controller fails.
            entry.irq.more = true;
            entry.irq = self.irq.before_entry(vcpu.id(), bound.arch().irq_hw())?;
        }
        Ok(true)
    }
}

/// What a run of a vCPU remembers from entry to entry.
struct Entry {
    vmid: Option<u16>,
    /// The deadline that the host's timer was armed for.
    timer: Option<u64>,
    /// What the interrupt controller asked for.
    irq: EntryState,
    /// What is to be forgotten before the guest runs: some of [`Attention::FENCES`].
    fences: u32,
}

#[cold]
fn fence_guest<A: AxArchVCpu>(
    bound: &mut BoundVCpu<'_, A>,
    tlb: &Entrant<'_, A::Tlb>,
    fences: u32,
) {
    if fences & Attention::FENCE_INSTRUCTIONS != 0 {
        bound.arch().fence(GuestFence::Instructions);
    }
    if fences & Attention::FENCE_TRANSLATIONS != 0 {
        bound.arch().fence(GuestFence::Translations);
        tlb.took_over();
    }
}

/// Calls `leave` at the end of its scope, whichever way that is left.
struct Inside<F: Fn()> {
    leave: F,
}

impl<F: Fn()> Drop for Inside<F> {
    fn drop(&mut self) {
        (self.leave)();
    }
}
