//! Booting, ending and resetting a VM.

use alloc::{sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult, ax_err};

use super::{AxVM, EndReason, VMStatus};
use crate::{
    hal::AxVMHal,
    sync::atomic::{Ordering, fence},
    vcpu::{Attention, AxArchVCpu, Claim, VCpuState},
};

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// The VM's state at this moment.
    pub fn status(&self) -> VMStatus {
        self.lifecycle.status()
    }

    /// Whether vCPUs may run.
    pub fn running(&self) -> bool {
        self.status() == VMStatus::Running
    }

    /// Whether the VM was shut down.
    pub fn shutting_down(&self) -> bool {
        matches!(self.status(), VMStatus::ShuttingDown | VMStatus::Terminated)
    }

    /// Who ended the VM, since it was created or reset.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.lifecycle.end_reason()
    }

    /// Loads the guest's images by calling `loader`, and keeps it for resets.
    ///
    /// # Errors
    /// `BadState` unless the VM is just created or reset; those of `loader`, which is not kept
    /// then.
    pub fn load_images(
        &self,
        loader: impl Fn(&Self) -> AxResult + Send + Sync + 'static,
    ) -> AxResult {
        if self.status() != VMStatus::Created {
            return ax_err!(BadState, format_args!("VM {} is {:?}", self.id(), self.status()));
        }
        loader(self)?;
        *self.loader.lock() = Some(Arc::new(loader));
        Ok(())
    }

    /// Lets vCPUs run. It runs no guest code itself. Of concurrent callers one succeeds.
    ///
    /// # Errors
    /// `Unsupported` when the hardware cannot run guests; `BadState` unless the VM is just
    /// created or reset.
    pub fn boot(&self) -> AxResult {
        if !A::has_hardware_support() {
            return ax_err!(Unsupported, "the hardware does not support virtualization");
        }
        self.lifecycle.begin_boot()?;
        self.lifecycle.finish_boot()?;
        log::info!("VM {} is running", self.id());
        Ok(())
    }

    /// Ends the VM: no vCPU starts after it, and those in the guest are kicked out. The VM is
    /// terminated when the last one is out.
    ///
    /// # Errors
    /// `BadState` when it is shut down already.
    pub fn shutdown(&self) -> AxResult {
        self.end(EndReason::Host)
    }

    pub(super) fn end(&self, reason: EndReason) -> AxResult {
        self.lifecycle.shut_down(reason)?;
        log::info!("VM {} is shutting down: {reason:?}", self.id());
        self.poke_all();
        self.terminate_if_empty();
        Ok(())
    }

    /// The hardware refused a vCPU.
    pub(super) fn fail(&self, vcpu_id: usize, reason: u64) {
        log::error!("VM {} vCPU {vcpu_id}: entry failed, hardware code {reason:#x}", self.id());
        if self.lifecycle.fail().is_ok() {
            self.poke_all();
        }
    }

    fn poke_all(&self) {
        for vcpu_id in 0..self.vcpu_num() {
            self.core.poke(vcpu_id, Attention::LIFECYCLE);
        }
    }

    /// ShuttingDown → Terminated, if no vCPU is bound any more. Called by whoever shuts down and
    /// by every vCPU that leaves: the last one does it.
    pub(super) fn terminate_if_empty(&self) {
        // Out first, then the look: whoever shuts down looks the other way round.
        fence(Ordering::SeqCst);
        if self.status() != VMStatus::ShuttingDown {
            return;
        }
        // The shutdown may be another CPU's, that came after the first fence: a vCPU that was
        // bound before it, and read `Running`, must be seen here.
        fence(Ordering::SeqCst);
        if !self.any_vcpu_bound() && self.lifecycle.terminate().is_ok() {
            log::info!("VM {} is terminated", self.id());
        }
    }

    /// Waits until the last vCPU is out after a shutdown. Other CPUs must let their vCPUs leave
    /// meanwhile; [`AxVMHal::relax`] is called while waiting.
    ///
    /// # Errors
    /// `BadState` when the VM was not shut down.
    pub fn wait_terminated(&self) -> AxResult {
        loop {
            // Who had bound a vCPU without running it does not look.
            self.terminate_if_empty();
            match self.status() {
                VMStatus::Terminated => return Ok(()),
                VMStatus::ShuttingDown => H::relax(),
                status => {
                    return ax_err!(BadState, format_args!("VM {} is {status:?}", self.id()));
                }
            }
        }
    }

    /// Makes vCPUs, memory and devices as at creation and loads the images again; the VM can be
    /// booted then. Memory that the host mapped since is unmapped, what it unmapped comes back.
    /// Devices that it added stay, and are reset.
    ///
    /// # Errors
    /// `BadState` unless the VM is terminated, failed or not booted, with all vCPUs out;
    /// `AlreadyExists` when a device or other memory is where memory comes back; `NoMemory`; those of
    /// [`AxArchVCpu::new`] and the like: nothing is changed then. An error of the images' loader
    /// leaves the VM failed: reset it again.
    pub fn reset(&self) -> AxResult {
        self.terminate_if_empty();
        let before = self.lifecycle.begin_reset()?;
        if let Err(error) = self.reset_parts(before) {
            self.lifecycle.finish_reset(before);
            return Err(error);
        }
        let loader = self.loader.lock().clone();
        let loaded = loader.map_or(Ok(()), |load| load(self));
        self.lifecycle.finish_reset(match loaded {
            Ok(()) => VMStatus::Created,
            Err(_) => VMStatus::Failed,
        });
        loaded
    }

    fn reset_parts(&self, before: VMStatus) -> AxResult {
        let mut claims = self.claim_all(before)?;
        let entry = self.config.image.entry_point;
        let root = self.ept_root();
        let fresh: Vec<A> =
            self.core.vcpus.iter().map(|vcpu| vcpu.fresh(entry, root)).collect::<AxResult<_>>()?;
        let in_the_way = |range| self.devices.overlaps_mmio(range);
        if let Some(&(range, ..)) = self.plan.iter().find(|(range, ..)| in_the_way(*range)) {
            return ax_err!(
                AlreadyExists,
                format_args!("a device is in {range:?}, which is memory")
            );
        }
        self.core.space.reset(&self.plan)?;
        for ((claim, vcpu), arch) in claims.iter_mut().zip(&self.core.vcpus).zip(fresh) {
            *claim.arch() = arch;
            claim.release_to(VCpuState::Free);
            vcpu.restart();
        }
        self.devices.reset();
        self.irq.reset();
        Ok(())
    }

    /// Takes every vCPU's backend into exclusive hands.
    fn claim_all(&self, before: VMStatus) -> AxResult<Vec<Claim<'_, A>>> {
        let mut claims = Vec::new();
        claims.try_reserve(self.vcpu_num()).map_err(|_| AxError::NoMemory)?;
        for vcpu in &self.core.vcpus {
            loop {
                match vcpu.claim(VCpuState::Free).or_else(|_| vcpu.claim(VCpuState::Invalid)) {
                    Ok(claim) => break claims.push(claim),
                    // No vCPU enters a terminated VM: whoever has this one is about to find out.
                    Err(_) if before == VMStatus::Terminated => H::relax(),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(claims)
    }
}
