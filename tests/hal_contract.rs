//! A HAL written to the documentation, with its ten items and nothing else, compiles and works.

use std::sync::atomic::{AtomicUsize, Ordering};

use axerrno::{AxErrorKind, AxResult};
use axvm::{
    AxVMHal,
    mm::{HostPhysAddr, HostVirtAddr, PagingHandler},
};

static CALLS: AtomicUsize = AtomicUsize::new(0);

fn called() {
    CALLS.fetch_add(1, Ordering::SeqCst);
}

struct NoFrames;

impl PagingHandler for NoFrames {
    fn alloc_frames(_num: usize, _align: usize) -> Option<HostPhysAddr> {
        called();
        None
    }

    fn dealloc_frames(_paddr: HostPhysAddr, _num: usize) {
        called();
    }

    fn phys_to_virt(paddr: HostPhysAddr) -> HostVirtAddr {
        called();
        HostVirtAddr::from_usize(paddr.as_usize())
    }
}

struct TenItems;

impl AxVMHal for TenItems {
    type PagingHandler = NoFrames;

    fn alloc_memory_region_at(_base: HostPhysAddr, _size: usize) -> bool {
        called();
        false
    }

    fn dealloc_memory_region_at(_base: HostPhysAddr, _size: usize) {
        called();
    }

    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
        called();
        HostPhysAddr::from_usize(vaddr.as_usize())
    }

    fn current_time_nanos() -> u64 {
        called();
        0
    }

    fn current_vm_id() -> usize {
        called();
        0
    }

    fn current_vcpu_id() -> usize {
        called();
        0
    }

    fn current_pcpu_id() -> usize {
        called();
        0
    }

    fn vcpu_resides_on(_vm_id: usize, _vcpu_id: usize) -> AxResult<usize> {
        called();
        Err(AxErrorKind::NotFound.into())
    }

    fn inject_irq_to_vcpu(_vm_id: usize, _vcpu_id: usize, _irq: usize) -> AxResult {
        called();
        Err(AxErrorKind::NotFound.into())
    }
}

#[test]
fn the_provided_methods_return_and_ask_nothing_of_the_host() {
    TenItems::kick_pcpu(0);
    TenItems::kick_pcpu(usize::MAX);
    TenItems::wake_vcpu(usize::MAX, usize::MAX);
    TenItems::set_timer(0);
    TenItems::set_timer(u64::MAX);
    TenItems::relax();
    assert_eq!(CALLS.load(Ordering::SeqCst), 0);
}
