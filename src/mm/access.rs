//! Access to guest memory by the host: checked copies and atomics, never a Rust reference. Other
//! vCPUs may write the same bytes at any time; each aligned word is read or written once.

use alloc::vec::Vec;
use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use axerrno::{AxError, AxResult};
use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{AddrSpace, GuestPhysAddr, HostVirtAddr, npt::NptFormat, tlb::NestedTlb};
use crate::hal::AxVMHal;

/// A piece of host-virtual memory behind guest memory. The guest and its other users write it at
/// any time: use it through raw pointers, and not after the region was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSegment {
    /// Where it begins.
    pub addr: HostVirtAddr,
    /// Its length in bytes, not 0.
    pub len: usize,
}

/// How much is copied in one go: bounds how long a writer of the page table waits.
const MAX_SEGMENT: usize = PageSize::Size2M as usize;

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Copies guest memory to `buf`.
    ///
    /// # Errors
    /// `InvalidInput` when a byte is not in readable RAM, `NoMemory` when a lazy page cannot be
    /// populated; `buf` may be partly written then.
    pub fn read(&self, gpa: GuestPhysAddr, buf: &mut [u8]) -> AxResult {
        // SAFETY: the buffer is writable for its length, and is not guest memory.
        unsafe { self.read_raw(gpa, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies `buf` to guest memory.
    ///
    /// # Errors
    /// As [`read`](Self::read), for writable RAM; the guest's memory may be partly written then.
    pub fn write(&self, gpa: GuestPhysAddr, buf: &[u8]) -> AxResult {
        self.write_as(gpa, buf, MappingFlags::WRITE)
    }

    /// Copies `buf` to RAM that allows `access`.
    #[inline(always)]
    pub(super) fn write_as(
        &self,
        gpa: GuestPhysAddr,
        buf: &[u8],
        access: MappingFlags,
    ) -> AxResult {
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let at = gpa.checked_add(done).ok_or(AxError::InvalidInput)?;
            done += self.segment(at, access, |host, len| {
                let len = len.min(rest.len());
                // SAFETY: `host` is mapped guest memory of at least `len` bytes while this
                // closure runs; `rest` has at least `len`.
                unsafe { copy_to_guest(host, rest.as_ptr(), len) };
                len
            })?;
        }
        Ok(())
    }

    /// Reads a plain-old-data object from guest memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn read_obj<V: FromBytes>(&self, gpa: GuestPhysAddr) -> AxResult<V> {
        if let Some(value) = self.read_word(gpa) {
            return value;
        }
        core::hint::cold_path();
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: the value is writable for its size, and is not guest memory.
        unsafe { self.read_raw(gpa, value.as_mut_ptr().cast(), size_of::<V>())? };
        // SAFETY: every byte was written, and `FromBytes` takes any.
        Ok(unsafe { value.assume_init() })
    }

    /// Writes a plain-old-data object to guest memory.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[inline]
    pub fn write_obj<V: IntoBytes + Immutable>(&self, gpa: GuestPhysAddr, value: &V) -> AxResult {
        self.write(gpa, value.as_bytes())
    }

    /// Atomically loads an aligned integer, with acquire ordering.
    ///
    /// # Errors
    /// `InvalidInput` when it is misaligned or not in readable RAM; `NoMemory`.
    pub fn load<V: GuestAtomic>(&self, gpa: GuestPhysAddr) -> AxResult<V> {
        self.atomic(gpa, MappingFlags::READ, |host| {
            // SAFETY: `atomic` gives an aligned pointer to mapped guest memory.
            unsafe { V::load(host) }
        })
    }

    /// Atomically stores an aligned integer, with release ordering.
    ///
    /// # Errors
    /// As [`load`](Self::load), for writable RAM.
    pub fn store<V: GuestAtomic>(&self, gpa: GuestPhysAddr, value: V) -> AxResult {
        self.atomic(gpa, MappingFlags::WRITE, |host| {
            // SAFETY: `atomic` gives an aligned pointer to mapped guest memory.
            unsafe { V::store(host, value) }
        })
    }

    /// Atomically replaces an aligned integer that equals `current`, with acquire and release
    /// ordering. The inner result has the old value either way.
    ///
    /// # Errors
    /// As [`load`](Self::load), for RAM that is readable and writable.
    pub fn compare_exchange<V: GuestAtomic>(
        &self,
        gpa: GuestPhysAddr,
        current: V,
        new: V,
    ) -> AxResult<Result<V, V>> {
        self.atomic(gpa, MappingFlags::READ.union(MappingFlags::WRITE), |host| {
            // SAFETY: `atomic` gives an aligned pointer to mapped guest memory.
            unsafe { V::compare_exchange(host, current, new) }
        })
    }

    /// The host-virtual segments behind a guest range of RAM, for an image loader, which may
    /// write memory that the guest may not. Populates lazy pages.
    ///
    /// # Errors
    /// `InvalidInput` when a byte is not in RAM; `NoMemory`.
    pub fn host_segments(&self, gpa: GuestPhysAddr, len: usize) -> AxResult<Vec<HostSegment>> {
        let mut segments: Vec<HostSegment> = Vec::new();
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done).ok_or(AxError::InvalidInput)?;
            let segment = self.segment(at, MappingFlags::empty(), |host, mapped| HostSegment {
                addr: HostVirtAddr::from_mut_ptr_of(host),
                len: mapped.min(len - done),
            })?;
            done += segment.len;
            match segments.last_mut() {
                Some(last) if last.addr.as_usize() + last.len == segment.addr.as_usize() => {
                    last.len += segment.len;
                }
                _ => {
                    segments.try_reserve(1).map_err(|_| AxError::NoMemory)?;
                    segments.push(segment);
                }
            }
        }
        Ok(segments)
    }

    /// As [`host_segments`](Self::host_segments); none instead of an error.
    pub fn translated_byte_buffer(
        &self,
        gpa: GuestPhysAddr,
        len: usize,
    ) -> Option<Vec<HostSegment>> {
        self.host_segments(gpa, len).ok()
    }

    /// Reads an aligned object of the size of a word by one load; none if it is another object.
    #[inline(always)]
    fn read_word<V: FromBytes>(&self, gpa: GuestPhysAddr) -> Option<AxResult<V>> {
        if size_of::<V>() != WORD || !gpa.as_usize().is_multiple_of(WORD) {
            return None;
        }
        let word = self.segment(gpa, MappingFlags::READ, |host, _| {
            // SAFETY: mapped guest memory; an aligned word lies in one page, and pages are
            // aligned in the host too.
            unsafe { AtomicU64::from_ptr(host.cast()) }.load(Ordering::Relaxed)
        });
        // SAFETY: the sizes are equal, and `FromBytes` takes any bytes.
        Some(word.map(|word: u64| unsafe { core::mem::transmute_copy(&word) }))
    }

    /// # Safety
    /// `dst` is writable for `len` bytes and is not guest memory.
    unsafe fn read_raw(&self, gpa: GuestPhysAddr, dst: *mut u8, len: usize) -> AxResult {
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done).ok_or(AxError::InvalidInput)?;
            done += self.segment(at, MappingFlags::READ, |host, mapped| {
                let part = mapped.min(len - done);
                // SAFETY: `host` is mapped guest memory of at least `part` bytes while this
                // closure runs; `dst` has `len - done` bytes left.
                unsafe { copy_from_guest(dst.add(done), host, part) };
                part
            })?;
        }
        Ok(())
    }

    #[inline]
    fn atomic<V: GuestAtomic, R>(
        &self,
        gpa: GuestPhysAddr,
        access: MappingFlags,
        f: impl FnOnce(*mut V) -> R,
    ) -> AxResult<R> {
        if !gpa.as_usize().is_multiple_of(size_of::<V>()) {
            return Err(AxError::InvalidInput);
        }
        // An aligned integer lies in one page, and pages are aligned in the host too.
        self.segment(gpa, access, |host, _| f(host.cast()))
    }

    /// Calls `f` with the host memory behind `gpa`, of as many bytes as are contiguous (at least
    /// to the end of the page), while it cannot be freed. It must be RAM and allow `access`.
    #[inline(always)]
    fn segment<R, C: FnOnce(*mut u8, usize) -> R>(
        &self,
        gpa: GuestPhysAddr,
        access: MappingFlags,
        f: C,
    ) -> AxResult<R> {
        match self.mapped_segment(gpa, access, f) {
            Ok(done) => Ok(done),
            Err(f) => {
                core::hint::cold_path();
                self.new_segment(gpa, access, f)
            }
        }
    }

    /// [`segment`](Self::segment) of what is mapped; otherwise `f` comes back.
    #[inline(always)]
    pub(super) fn mapped_segment<R, C: FnOnce(*mut u8, usize) -> R>(
        &self,
        gpa: GuestPhysAddr,
        access: MappingFlags,
        f: C,
    ) -> Result<R, C> {
        let _walking = self.walkers.enter(H::current_pcpu_id());
        // SAFETY: tables and frames are freed only after `walkers` was synchronized.
        match unsafe { self.view.translate(gpa) } {
            Some(found)
                if found.flags.contains(access) && !found.flags.contains(MappingFlags::DEVICE) =>
            {
                let offset = gpa.as_usize() & (found.size as usize - 1);
                let len = (found.size as usize - offset).min(MAX_SEGMENT);
                Ok(f(H::PagingHandler::phys_to_virt(found.hpa).as_mut_ptr(), len))
            }
            _ => {
                core::hint::cold_path();
                Err(f)
            }
        }
    }

    /// [`segment`](Self::segment) of what was not mapped a moment ago. Apart, so that the frequent
    /// way has no loop.
    #[cold]
    #[inline(never)]
    fn new_segment<R, C: FnOnce(*mut u8, usize) -> R>(
        &self,
        gpa: GuestPhysAddr,
        access: MappingFlags,
        mut f: C,
    ) -> AxResult<R> {
        loop {
            self.populate_for_host(gpa, access)?;
            f = match self.mapped_segment(gpa, access, f) {
                Ok(done) => return Ok(done),
                Err(f) => f,
            };
        }
    }
}

/// Integers that can be accessed atomically in guest memory.
pub trait GuestAtomic: Copy + sealed::Sealed {
    /// # Safety
    /// `host` is aligned and points to mapped memory.
    #[doc(hidden)]
    unsafe fn load(host: *mut Self) -> Self;
    /// # Safety
    /// As `load`.
    #[doc(hidden)]
    unsafe fn store(host: *mut Self, value: Self);
    /// # Safety
    /// As `load`.
    #[doc(hidden)]
    unsafe fn compare_exchange(host: *mut Self, current: Self, new: Self) -> Result<Self, Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! guest_atomic {
    ($($int:ty, $atomic:ty;)*) => {$(
        impl sealed::Sealed for $int {}

        impl GuestAtomic for $int {
            #[inline]
            unsafe fn load(host: *mut Self) -> Self {
                // SAFETY: the caller's promise; the atomic is used only here.
                unsafe { <$atomic>::from_ptr(host) }.load(Ordering::Acquire)
            }

            #[inline]
            unsafe fn store(host: *mut Self, value: Self) {
                // SAFETY: the caller's promise; the atomic is used only here.
                unsafe { <$atomic>::from_ptr(host) }.store(value, Ordering::Release)
            }

            #[inline]
            unsafe fn compare_exchange(
                host: *mut Self,
                current: Self,
                new: Self,
            ) -> Result<Self, Self> {
                // SAFETY: the caller's promise; the atomic is used only here.
                let atomic = unsafe { <$atomic>::from_ptr(host) };
                atomic.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            }
        }
    )*};
}

guest_atomic! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}

pub(super) const WORD: usize = size_of::<u64>();

/// How many of `len` bytes at `host` come before the first aligned word, and how many words
/// follow.
pub(super) fn split_words(host: *mut u8, len: usize) -> (usize, usize) {
    let head = (host as usize).wrapping_neg() % WORD;
    let head = head.min(len);
    (head, (len - head) / WORD)
}

/// Copies from guest memory; each aligned word is read by one relaxed load.
///
/// # Safety
/// `host` is mapped for `len` bytes and accessed by others only atomically or by guests; `dst` is
/// writable for `len` bytes and nobody else's.
#[inline]
unsafe fn copy_from_guest(dst: *mut u8, host: *mut u8, len: usize) {
    // SAFETY: every offset below is within `len`, by `split_words`; word accesses to `host` are
    // aligned by it, those to `dst` are unaligned ones.
    unsafe {
        let byte = |at: usize| {
            dst.add(at).write(AtomicU8::from_ptr(host.add(at)).load(Ordering::Relaxed));
        };
        let (head, words) = split_words(host, len);
        (0..head).for_each(byte);
        for word in 0..words {
            let at = head + word * WORD;
            let value = AtomicU64::from_ptr(host.add(at).cast()).load(Ordering::Relaxed);
            dst.add(at).cast::<u64>().write_unaligned(value);
        }
        (head + words * WORD..len).for_each(byte);
    }
}

/// Zeros guest memory, by relaxed stores of aligned words.
///
/// # Safety
/// `host` is aligned to 8 bytes and mapped for `len` bytes, a multiple of 8, accessed by others only
/// atomically or by guests.
pub(super) unsafe fn zero_shared(host: *mut u8, len: usize) {
    for at in (0..len).step_by(WORD) {
        // SAFETY: the caller's promise; the offset is within `len`.
        unsafe { AtomicU64::from_ptr(host.add(at).cast()).store(0, Ordering::Relaxed) };
    }
}

/// Copies to guest memory; each aligned word is written by one relaxed store.
///
/// # Safety
/// As [`copy_from_guest`], with `src` readable for `len` bytes.
#[inline]
unsafe fn copy_to_guest(host: *mut u8, src: *const u8, len: usize) {
    // SAFETY: as in `copy_from_guest`.
    unsafe {
        let byte = |at: usize| {
            AtomicU8::from_ptr(host.add(at)).store(src.add(at).read(), Ordering::Relaxed);
        };
        let (head, words) = split_words(host, len);
        (0..head).for_each(byte);
        for word in 0..words {
            let at = head + word * WORD;
            let value = src.add(at).cast::<u64>().read_unaligned();
            AtomicU64::from_ptr(host.add(at).cast()).store(value, Ordering::Relaxed);
        }
        (head + words * WORD..len).for_each(byte);
    }
}
