//! A host in a user process: it creates a VM, loads an image into it and looks at what came of it.
//! A process has no virtualization hardware of its own, so `boot` is refused.
//!
//! `cargo run --example laptop` prints each step.

use std::{
    alloc::{Layout, alloc, dealloc},
    time::Instant,
};

use axerrno::{AxError, AxResult};
use axvm::{
    AxVM, AxVMConfig, AxVMHal,
    mm::{HostPhysAddr, HostVirtAddr, PAGE_SIZE_4K, PagingHandler},
};

/// Frames from the process's heap; physical addresses are virtual ones.
struct Heap;

/// Every allocation has the largest alignment that the crate asks for, so that freeing, which is
/// told the count alone, finds the same layout.
const ALIGN: usize = 2 << 20;

fn layout(frames: usize) -> Option<Layout> {
    Layout::from_size_align(frames.checked_mul(PAGE_SIZE_4K)?, ALIGN).ok()
}

impl PagingHandler for Heap {
    fn alloc_frames(num: usize, align: usize) -> Option<HostPhysAddr> {
        let layout = layout(num).filter(|layout| layout.size() > 0 && align <= ALIGN)?;
        // SAFETY: the size is not 0.
        let frames = unsafe { alloc(layout) };
        (!frames.is_null()).then(|| HostPhysAddr::from(frames as usize))
    }

    fn dealloc_frames(paddr: HostPhysAddr, num: usize) {
        if let Some(layout) = layout(num) {
            // SAFETY: the crate gives back what it took, with the same count.
            unsafe { dealloc(paddr.as_usize() as *mut u8, layout) };
        }
    }

    fn phys_to_virt(paddr: HostPhysAddr) -> HostVirtAddr {
        paddr.as_usize().into()
    }
}

struct Laptop;

impl AxVMHal for Laptop {
    type PagingHandler = Heap;

    fn alloc_memory_region_at(_base: HostPhysAddr, _size: usize) -> bool {
        false
    }

    fn dealloc_memory_region_at(_base: HostPhysAddr, _size: usize) {}

    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
        vaddr.as_usize().into()
    }

    fn current_time_nanos() -> u64 {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }

    fn current_vm_id() -> usize {
        0
    }

    fn current_vcpu_id() -> usize {
        0
    }

    fn current_pcpu_id() -> usize {
        0
    }

    fn vcpu_resides_on(_vm_id: usize, _vcpu_id: usize) -> AxResult<usize> {
        Err(AxError::NotFound)
    }

    fn inject_irq_to_vcpu(_vm_id: usize, _vcpu_id: usize, _irq: usize) -> AxResult {
        Err(AxError::NotFound)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = AxVMConfig::new(1, "guest")
        .with_cpus(2)
        .with_ram(0x8000_0000, 1 << 30)
        .with_entry(0x8020_0000);
    config.validate()?;
    let told = config.clone().with_cpus(65).validate();
    println!("65 vCPUs: {}", told.err().ok_or("accepted")?);

    let failed = |error: AxError| error.to_string();
    let vm = AxVM::<Laptop>::new(config).map_err(failed)?;
    println!("VM {}: {} vCPUs, {:?}", vm.id(), vm.vcpu_num(), vm.status());
    let frames = |what: &str| println!("{what}: {} frames of tables", vm.memory().table_frames());
    frames("1 GiB of lazy memory");

    vm.load_images(|vm| vm.memory().write(0x8020_0ffe.into(), b"image")).map_err(failed)?;
    frames("an image across two pages");
    let word: u32 = vm.read_from_guest_of(0x8020_0ffe.into()).map_err(failed)?;
    println!("its first word, little-endian: {word:#x}");
    let outside = vm.read_from_guest_of::<u32>(0x7fff_fffe.into());
    println!("a word that begins before memory: {outside:?}");

    println!("hardware support: {}", axvm::has_hardware_support());
    println!("boot: {:?}", vm.boot());
    Ok(())
}
