//! What an image loader does to guest memory: it may write where the guest may not.

use core::sync::atomic::{AtomicU8, Ordering};

use axerrno::{AxError, AxResult};
use page_table_multiarch::MappingFlags;

use super::{
    AddrSpace, GuestPhysAddr, PAGE_SIZE_4K,
    access::{WORD, split_words, zero_shared},
    npt::NptFormat,
    tlb::NestedTlb,
};
use crate::hal::AxVMHal;

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Copies `buf` to guest memory, for an image loader: also to RAM that the guest itself may
    /// not write.
    ///
    /// # Errors
    /// As [`write`](Self::write), for RAM.
    pub fn write_image(&self, gpa: GuestPhysAddr, buf: &[u8]) -> AxResult {
        self.write_as(gpa, buf, MappingFlags::empty())
    }

    /// Zeros `len` bytes of guest memory, for an image loader: also of RAM that the guest itself
    /// may not write. Lazy pages that nobody used yet stay so; they are zero at their first use.
    ///
    /// # Errors
    /// `InvalidInput` when a byte is not in RAM; those before it are zeroed then.
    pub fn zero_image(&self, gpa: GuestPhysAddr, len: usize) -> AxResult {
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done).ok_or(AxError::InvalidInput)?;
            let zeroed = self.mapped_segment(at, MappingFlags::empty(), |host, mapped| {
                let part = mapped.min(len - done);
                // SAFETY: `host` is mapped guest memory of at least `part` bytes while this
                // closure runs.
                unsafe { zero_guest(host, part) };
                part
            });
            done += match zeroed {
                Ok(part) => part,
                // Should it be mapped meanwhile, then with zeros.
                Err(_) if self.is_ram(at) => PAGE_SIZE_4K - at.page_offset(),
                Err(_) => return Err(AxError::InvalidInput),
            };
        }
        Ok(())
    }
}

/// Zeros guest memory of any length and alignment.
///
/// # Safety
/// `host` is mapped for `len` bytes and accessed by others only atomically or by guests.
unsafe fn zero_guest(host: *mut u8, len: usize) {
    let (head, words) = split_words(host, len);
    let tail = head + words * WORD;
    // SAFETY: every offset is within `len`, and the first word aligned, by `split_words`.
    unsafe {
        zero_shared(host.add(head), words * WORD);
        for at in (0..head).chain(tail..len) {
            AtomicU8::from_ptr(host.add(at)).store(0, Ordering::Relaxed);
        }
    }
}
