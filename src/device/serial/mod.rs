//! Serial ports.

/// Where a console's bytes go to and come from.
pub trait CharBackend: Send + Sync {
    /// Takes bytes that the guest sent; never blocks.
    fn write(&self, bytes: &[u8]);

    /// Fills `buf` with what was typed; returns how many bytes.
    fn read(&self, buf: &mut [u8]) -> usize;
}
