//! Memory: addresses of the guest's choice, page tables, fences.

use core::arch::asm;
use core::cell::UnsafeCell;

/// RAM that no program of ours lies in, and that nothing has touched before the test that is for it.
pub const FREE: u64 = 0x8040_0000;
/// An address at which there is nothing, to the end of its gigabyte.
pub const NOTHING: u64 = 0x4000_0000;

/// Reads from any address outside the program.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: no Rust object is there; numbers of any value are valid.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes to any address outside the program.
pub fn poke<T: Copy>(address: u64, value: T) {
    // SAFETY: no Rust object is there.
    unsafe { (address as *mut T).write_volatile(value) };
}

/// Forgets all translations.
pub fn fence_translations() {
    // SAFETY: nothing else changes.
    unsafe { asm!("sfence.vma", options(nostack)) };
}

/// Forgets fetched instructions.
pub fn fence_instructions() {
    // SAFETY: nothing else changes.
    unsafe { asm!("fence rw, rw", "fence.i", options(nostack)) };
}

/// Everything before is seen by other harts before anything after.
pub fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Sleeps until an interrupt that `sie` enables is pending.
pub fn wait_for_interrupt() {
    // SAFETY: it waits.
    unsafe { asm!("wfi", options(nostack)) };
}

/// Entry: valid.
pub const V: u64 = 1;
/// Entry: readable.
pub const R: u64 = 2;
/// Entry: writable.
pub const W: u64 = 4;
/// Entry: executable.
pub const X: u64 = 8;
/// Entry: of U-mode.
pub const U: u64 = 16;
/// Entry: accessed and dirty.
pub const AD: u64 = 0xc0;
/// Entry: all that code in S-mode wants.
pub const RWX: u64 = V | R | W | X | AD;

/// An entry that leads to a page or table with these bits.
pub const fn entry(address: u64, bits: u64) -> u64 {
    address >> 12 << 10 | bits
}

/// A page table.
#[repr(C, align(4096))]
pub struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: its entries are written with volatile accesses, and never referred to.
unsafe impl Sync for Table {}

impl Table {
    /// Without entries.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Sets an entry. The fence is the caller's.
    pub fn set(&self, index: usize, entry: u64) {
        assert!(index < 512);
        // SAFETY: it is in the table, and written as a whole.
        unsafe { self.0.get().cast::<u64>().add(index).write_volatile(entry) };
    }

    /// Makes it a root of Sv39 that maps the first three gigabytes to themselves: devices,
    /// nothing, RAM.
    pub fn identity(&self) {
        for index in 0..512 {
            self.set(index, 0);
        }
        for index in 0..3u64 {
            self.set(index as usize, entry(index << 30, RWX));
        }
    }

    /// Switches this hart to it, as a root of Sv39.
    pub fn activate(&self) {
        super::csr::write!("satp", super::csr::satp_sv39(self.address()));
        fence_translations();
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}
