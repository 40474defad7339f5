//! Interrupts: lines that devices drive ([`IrqLine`]), and the controllers that hold what is
//! pending ([`InterruptController`]). [`VPlic`] is RISC-V's; [`DirectIrq`] is the controller of a
//! VM that has no emulated one.
//!
//! The controller alone owns pending, active and level state. Whoever makes something pending
//! for a vCPU tells its [`VcpuNotifier`], which marks the vCPU as in need of attention and kicks
//! it; the vCPU's owner then calls [`before_entry`](InterruptController::before_entry).

#![forbid(unsafe_code)]

mod direct;
mod line;
pub mod vplic;

use axerrno::AxResult;

pub use direct::{DirectIrq, MAX_IRQS, Priority};
pub use line::{IrqLine, Trigger};
pub use vplic::VPlic;

/// What every backend's interrupt hardware can do at least.
pub trait IrqHw {
    /// Offers one interrupt for the next entry. May be called again before that entry.
    ///
    /// # Errors
    /// `ResourceBusy` when the guest cannot take it now; the backend then exits as soon as it
    /// can. `InvalidInput` for a vector that the architecture does not have.
    fn inject(&mut self, vector: usize) -> AxResult;
}

/// The interrupt hardware of a RISC-V hart: [`inject`](IrqHw::inject) takes 1, the cause of a
/// supervisor software interrupt, which becomes pending once (`hvip.VSSIP`).
pub trait HartIrqHw: IrqHw {
    /// Raises or lowers the hart's supervisor external interrupt (`hvip.VSEIP`).
    fn set_external(&mut self, high: bool);
}

/// The device side of an interrupt controller: its input wires. Callable from any CPU.
pub trait IrqInput: Send + Sync {
    /// Sets the level of a level-triggered wire.
    ///
    /// # Errors
    /// `InvalidInput` for a wire that the controller lacks.
    fn set_level(&self, irq: usize, asserted: bool) -> AxResult;

    /// Signals an edge.
    ///
    /// # Errors
    /// `InvalidInput` for a wire that the controller lacks.
    fn pulse(&self, irq: usize) -> AxResult;
}

/// An interrupt controller of a VM whose backend has the hardware `Hw`.
pub trait InterruptController<Hw: IrqHw + ?Sized>: IrqInput {
    /// Makes an edge interrupt pending for one vCPU; callable from any CPU. `irq` is an Arm
    /// INTID, an x86 vector or a RISC-V interrupt number.
    ///
    /// # Errors
    /// `InvalidInput` for a number that the controller lacks; `NotFound` for no such vCPU.
    fn inject(&self, vcpu: usize, irq: usize) -> AxResult;

    /// Whether something would be delivered to the vCPU.
    fn pending(&self, vcpu: usize) -> bool;

    /// Gives the hardware what the vCPU is to get at its next entry. Called by the vCPU's owner.
    ///
    /// # Errors
    /// Those of the hardware that no interrupt is to blame for. Nothing is lost then.
    fn before_entry(&self, vcpu: usize, hw: &mut Hw) -> AxResult<EntryState>;

    /// Takes back what the hardware holds. Called by the vCPU's owner after an exit, if
    /// `before_entry` said so.
    fn after_exit(&self, vcpu: usize, hw: &mut Hw);

    /// Back to the state at power-on. The levels of the wires are not the controller's: they
    /// stay, and the devices that drive them lower them when they are reset. No vCPU runs.
    fn reset(&self);
}

/// What [`before_entry`](InterruptController::before_entry) leaves to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryState {
    /// The hardware holds state: call `after_exit`.
    pub in_hardware: bool,
    /// Something stays pending: call `before_entry` before the entry after this one too, even
    /// if nobody notifies.
    pub more: bool,
}

/// Who is told that something became pending for a vCPU.
pub trait VcpuNotifier: Send + Sync {
    /// Called from any CPU, after the interrupt is pending.
    fn notify(&self, vcpu: usize);
}
