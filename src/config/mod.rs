//! The configuration of a VM.

/// How physical interrupts reach the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VMInterruptMode {
    /// Not at all.
    #[default]
    NoIrq,
    /// Through emulated interrupt controllers.
    Emulated,
    /// The guest owns the physical interrupt controller.
    Passthrough,
}
