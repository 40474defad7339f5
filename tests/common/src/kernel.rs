//! Stands for the reader's kernel in the README's example, which is compiled and never run.

use axerrno::{AxError, AxResult};
use axvm::mm::{HostPhysAddr, HostVirtAddr, PagingHandler};

/// The kernel's frame allocator.
pub struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(_: usize, _: usize) -> Option<HostPhysAddr> {
        None
    }

    fn dealloc_frames(_: HostPhysAddr, _: usize) {}

    fn phys_to_virt(paddr: HostPhysAddr) -> HostVirtAddr {
        paddr.as_usize().into()
    }
}

/// Sets a range of physical memory aside.
pub fn reserve(_: HostPhysAddr, _: usize) -> bool {
    false
}

/// Takes it back.
pub fn release(_: HostPhysAddr, _: usize) {}

/// The physical address behind a virtual one.
pub fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
    vaddr.as_usize().into()
}

/// Time since boot.
pub fn nanos() -> u64 {
    0
}

/// The VM and vCPU that this CPU runs.
pub fn current() -> (usize, usize) {
    (0, 0)
}

/// This CPU.
pub fn cpu() -> usize {
    0
}

/// The CPU of a vCPU.
///
/// # Errors
/// `NotFound`.
pub fn cpu_of(_: usize, _: usize) -> AxResult<usize> {
    Err(AxError::NotFound)
}

/// Looks a VM up and calls its `inject_interrupt_to_vcpu`.
///
/// # Errors
/// `NotFound`.
pub fn inject(_: usize, _: usize, _: usize) -> AxResult {
    Err(AxError::NotFound)
}

/// Waits for an interrupt, or that time.
pub fn sleep_until(_: Option<u64>) {}

/// Serves the interrupts that are pending.
pub fn serve_interrupts() {}
