//! The receiver's FIFO.

/// Bytes in it.
pub(super) const FIFO_SIZE: usize = 16;

/// Up to 16 bytes, in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fifo {
    /// 0 beyond `len`.
    bytes: [u8; FIFO_SIZE],
    len: usize,
}

impl Fifo {
    /// With these bytes; none when they are more than 16.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut fifo = Self::default();
        fifo.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        fifo.len = bytes.len();
        Some(fifo)
    }

    /// The bytes, the oldest first.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Adds a byte, if there is room.
    pub(super) fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    /// Takes the oldest byte.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let (first, rest) = self.as_slice().split_first()?;
        let (first, rest) = (*first, Self::new(rest)?);
        *self = rest;
        Some(first)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
