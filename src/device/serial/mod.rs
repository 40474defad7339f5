//! Serial consoles. A model is the chip; what is at the other end of the cable is a
//! [`CharBackend`] of the host's.

mod uart16550;

pub use uart16550::{Fifo, Uart16550, Uart16550State};

/// The other end of a serial line: the host's console, a file, a test.
///
/// A device calls it on whatever CPU the guest or the notifier runs, one call at a time, with its
/// lock held: of the device, nothing but `notify_input` may be called from there, and that from
/// `write` only.
pub trait CharBackend: Send + Sync {
    /// Takes bytes that the guest sent, in their order. Never blocks: what there is no room for
    /// is lost.
    fn write(&self, bytes: &[u8]);

    /// Fills the beginning of `buf` with what was typed; returns how many bytes that are. Never
    /// blocks. Whoever makes bytes available calls the device's `notify_input` afterwards.
    fn read(&self, buf: &mut [u8]) -> usize;
}
