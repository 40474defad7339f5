//! VMs for tests that do not care what exactly they are made of.

use axvm::{
    config::{AxVMConfig, VmMemMappingType},
    mm::{GpaRange, MappingFlags},
    vm::{AxVM, AxVMRef},
};

use crate::{MockHal, X86Like, enable_pcpus};

/// Where the guest of [`test_config`] has memory.
pub const RAM: usize = 0x4000;
/// How much.
pub const RAM_SIZE: usize = 0x4000;
/// The id of the VM of [`test_config`].
pub const VM: usize = 1;

/// A VM of the x86-like vCPUs.
pub type TestVm<H> = AxVMRef<H, X86Like<H>>;

/// VM 1 with so many vCPUs, which begins in its four pages of memory.
pub fn test_config(cpus: usize) -> AxVMConfig {
    let rwx = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    AxVMConfig::new(VM, "test").with_cpus(cpus).with_entry(RAM).with_memory(
        RAM,
        RAM_SIZE,
        rwx,
        VmMemMappingType::MapAlloc,
    )
}

/// Creates a VM, with virtualization on, on the physical CPUs 0 to 3.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn created<H: MockHal>(config: AxVMConfig) -> TestVm<H> {
    enable_pcpus::<X86Like<H>>(4);
    AxVM::new(config).expect("a VM")
}

/// Creates and boots a VM.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn booted<H: MockHal>(config: AxVMConfig) -> TestVm<H> {
    let vm = created(config);
    vm.boot().expect("boot");
    vm
}

/// A range of guest-physical addresses.
///
/// # Panics
/// When there is no such range.
#[track_caller]
pub fn gpa_range(start: usize, size: usize) -> GpaRange {
    GpaRange::new(start.into(), size).expect("a range")
}
