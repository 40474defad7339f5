//! The interrupt hardware and the physical-CPU part of the scripted vCPU.

use std::marker::PhantomData;

use axerrno::{AxErrorKind, AxResult};
use axvm::{irq::IrqHw, vcpu::AxArchPerCpu};

use crate::{Call, Event, MockHal, pcpu};

/// There are so many vectors.
pub const VECTORS: usize = 1024;

/// The interrupts that a scripted vCPU takes at its next entry.
pub struct ScriptedIrq<H> {
    pub(crate) vm: usize,
    pub(crate) vcpu: usize,
    pub(crate) pending: Vec<usize>,
    /// One was refused: exit when one can be taken.
    pub(crate) window: bool,
    pub(crate) hal: PhantomData<fn() -> H>,
}

impl<H: MockHal> IrqHw for ScriptedIrq<H> {
    fn inject(&mut self, vector: usize) -> AxResult {
        H::machine().failures.check(Call::Inject)?;
        if vector >= VECTORS {
            return Err(AxErrorKind::InvalidInput.into());
        }
        if H::machine().irq_busy(self.vm, self.vcpu) {
            self.window = true;
            H::machine().record(self.vm, self.vcpu, pcpu(), Event::IrqRefused(vector));
            return Err(AxErrorKind::ResourceBusy.into());
        }
        self.pending.push(vector);
        Ok(())
    }
}

/// Virtualization on one made-up physical CPU.
pub struct ScriptedPerCpu<H> {
    id: usize,
    enabled: bool,
    hal: PhantomData<fn() -> H>,
}

impl<H: MockHal> ScriptedPerCpu<H> {
    #[track_caller]
    fn check_here(&self) {
        assert!(self.id == pcpu(), "contract: pCPU {} is switched from pCPU {}", self.id, pcpu());
    }
}

impl<H: MockHal> AxArchPerCpu for ScriptedPerCpu<H> {
    fn new(cpu_id: usize) -> AxResult<Self> {
        H::machine().failures.check(Call::NewPerCpu)?;
        Ok(Self { id: cpu_id, enabled: false, hal: PhantomData })
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn hardware_enable(&mut self) -> AxResult {
        self.check_here();
        H::machine().failures.check(Call::Enable)?;
        assert!(!self.enabled, "contract: pCPU {} enabled twice", self.id);
        self.enabled = true;
        Ok(())
    }

    fn hardware_disable(&mut self) -> AxResult {
        self.check_here();
        H::machine().failures.check(Call::Disable)?;
        assert!(self.enabled, "contract: pCPU {} disabled twice", self.id);
        let bound = H::machine().bound_on(self.id);
        assert!(bound.is_none(), "contract: pCPU {} disabled with {bound:?} bound", self.id);
        self.enabled = false;
        Ok(())
    }
}
