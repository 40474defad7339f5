//! Interrupt lines and the interrupt-controller trait.

use axerrno::AxResult;

/// What every backend's interrupt hardware can do at least.
pub trait IrqHw {
    /// Offers one interrupt for the next entry.
    ///
    /// # Errors
    /// `ResourceBusy` when the guest cannot take it now; the backend then exits as soon as it
    /// can. `InvalidInput` for a vector that the architecture does not have.
    fn inject(&mut self, vector: usize) -> AxResult;
}
