//! The configuration of a VM: what it is made of, checked as a whole before anything is made.

#![forbid(unsafe_code)]

mod error;
#[cfg(feature = "toml")]
pub mod toml;
mod validate;

use alloc::{string::String, vec::Vec};

pub use error::{ConfigError, ConfigField, ConfigValue};
pub(crate) use validate::pass_through_ranges;

use crate::mm::{GpaRange, GuestPhysAddr, MappingFlags};

/// What kind of guest the VM runs; for the host's information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VMType {
    /// The host's own VM.
    Host = 0,
    /// A real-time operating system.
    #[default]
    Rtos = 1,
    /// Linux.
    Linux = 2,
}

/// How physical interrupts reach the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VMInterruptMode {
    /// Not at all.
    #[default]
    NoIrq,
    /// Through emulated interrupt controllers.
    Emulated,
    /// The guest owns the physical interrupt controller.
    Passthrough,
}

/// How a region of guest memory gets its host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmMemMappingType {
    /// Frames from the host's allocator, all at once.
    #[default]
    MapAlloc,
    /// Frames from the host's allocator, each 4 KiB page at its first use.
    MapLazy,
    /// As `MapLazy`, with 2 MiB at a time where alignment and the allocator allow.
    MapLazyHuge,
    /// Host memory at the same address as in the guest, taken by
    /// [`AxVMHal::alloc_memory_region_at`](crate::AxVMHal::alloc_memory_region_at).
    MapIdentical,
    /// Host memory at the same address as in the guest, which the host has set aside already, and
    /// which its `phys_to_virt` maps.
    MapReserved,
}

/// A region of guest memory.
#[derive(Clone, Debug, PartialEq)]
pub struct VmMemConfig {
    /// Its guest-physical address, a multiple of 4 KiB.
    pub gpa: usize,
    /// Its size in bytes, a multiple of 4 KiB, not 0.
    pub size: usize,
    /// Permissions and memory type: bits of [`MappingFlags`].
    pub flags: usize,
    /// Where its memory comes from.
    pub map_type: VmMemMappingType,
}

/// An emulated device of the configuration. [`AxVM::new`](crate::vm::AxVM::new) makes those
/// kinds that the crate implements; a host adds its own devices to
/// [`AxVM::get_devices`](crate::vm::AxVM::get_devices).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulatedDeviceConfig {
    /// A name for messages.
    pub name: String,
    /// The guest-physical address of its registers.
    pub base_gpa: usize,
    /// The length of its registers in bytes.
    pub length: usize,
    /// Its interrupt.
    pub irq_id: usize,
    /// Its kind, a number of [`EmuDeviceType`](crate::device::EmuDeviceType).
    pub emu_type: usize,
    /// Parameters that depend on the kind.
    pub cfg_list: Vec<usize>,
}

/// A physical device whose registers the guest gets. Every byte named is mapped, whole pages at
/// a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassThroughDeviceConfig {
    /// A name for messages.
    pub name: String,
    /// Where the guest sees it.
    pub base_gpa: usize,
    /// Where it is; the same offset within its 4 KiB page as `base_gpa`.
    pub base_hpa: usize,
    /// Length in bytes, not 0.
    pub length: usize,
    /// Its interrupt.
    pub irq_id: usize,
}

/// What an access to nothing does, to guest memory or to a device that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnclaimedPolicy {
    /// A read gives all ones, a write is ignored, as on most buses.
    #[default]
    Ignore,
    /// The guest gets a bus fault (external abort, access fault, #GP).
    Fault,
}

/// Accesses that [`run_vcpu`](crate::vm::AxVM::run_vcpu) returns to the host when no device of the
/// VM claims them; memory-mapped ones must not overlap memory or devices of the configuration. Ranges of ports and system registers are inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Guest-physical addresses.
    pub mmio: Vec<GpaRange>,
    /// Ports, first to last.
    pub ports: Vec<(u16, u16)>,
    /// System registers, first to last.
    pub sys_regs: Vec<(usize, usize)>,
}

/// Where the guest's images go. The crate reads only the entry point and the device tree's
/// address; loading is the host's ([`AxVM::load_images`](crate::vm::AxVM::load_images)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VMImageConfig {
    /// Where vCPU 0 begins.
    pub entry_point: GuestPhysAddr,
    /// Where the kernel is loaded.
    pub kernel_load_gpa: GuestPhysAddr,
    /// Where the firmware is loaded, if there is one.
    pub bios_load_gpa: Option<GuestPhysAddr>,
    /// Where the device tree is loaded, if there is one.
    pub dtb_load_gpa: Option<GuestPhysAddr>,
    /// Where the initial RAM disk is loaded, if there is one.
    pub ramdisk_load_gpa: Option<GuestPhysAddr>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
}

/// The configuration of a VM.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AxVMConfig {
    /// The VM's id, chosen by the host.
    pub id: usize,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub vm_type: VMType,
    /// The number of vCPUs, 1 to [`MAX_VCPUS`](crate::vcpu::MAX_VCPUS).
    pub cpu_num: usize,
    /// The guest's names for its vCPUs (MPIDR affinity, hart id, APIC id), one each; by default
    /// their indices.
    pub phys_cpu_ids: Option<Vec<usize>>,
    /// The physical CPUs on which each vCPU may run, a bit mask for each vCPU; for the host's
    /// scheduler.
    pub phys_cpu_sets: Option<Vec<usize>>,
    /// Its images.
    pub image: VMImageConfig,
    /// Its memory.
    pub memory_regions: Vec<VmMemConfig>,
    /// Its emulated devices.
    pub emu_devices: Vec<EmulatedDeviceConfig>,
    /// Its physical devices.
    pub pass_through_devices: Vec<PassThroughDeviceConfig>,
    /// Ranges of identical addresses that it gets as device memory, as (base, length).
    pub pass_through_addresses: Vec<(usize, usize)>,
    /// How physical interrupts reach it.
    pub interrupt_mode: VMInterruptMode,
    /// What an access to nothing does.
    pub unclaimed: UnclaimedPolicy,
    /// What the host wants to serve itself.
    pub forward: ForwardConfig,
}

impl AxVMConfig {
    /// A VM with one vCPU and nothing else.
    pub fn new(id: usize, name: impl Into<String>) -> Self {
        Self { id, name: name.into(), cpu_num: 1, ..Self::default() }
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn with_cpus(mut self, cpu_num: usize) -> Self {
        self.cpu_num = cpu_num;
        self
    }

    /// Sets where vCPU 0 begins.
    #[must_use]
    pub fn with_entry(mut self, entry: impl Into<GuestPhysAddr>) -> Self {
        self.image.entry_point = entry.into();
        self
    }

    /// Adds memory that the guest may read, write and execute, each page given at its first use.
    #[must_use]
    pub fn with_ram(self, gpa: usize, size: usize) -> Self {
        let all = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
        self.with_memory(gpa, size, all, VmMemMappingType::MapLazy)
    }

    /// Adds a region of memory.
    #[must_use]
    pub fn with_memory(
        mut self,
        gpa: usize,
        size: usize,
        flags: MappingFlags,
        map_type: VmMemMappingType,
    ) -> Self {
        self.memory_regions.push(VmMemConfig { gpa, size, flags: flags.bits(), map_type });
        self
    }

    /// Adds an emulated device.
    #[must_use]
    pub fn with_emu_device(mut self, device: EmulatedDeviceConfig) -> Self {
        self.emu_devices.push(device);
        self
    }

    /// Adds a physical device.
    #[must_use]
    pub fn with_pass_through(mut self, device: PassThroughDeviceConfig) -> Self {
        self.pass_through_devices.push(device);
        self
    }

    /// Sets what an access to nothing does.
    #[must_use]
    pub fn with_unclaimed(mut self, policy: UnclaimedPolicy) -> Self {
        self.unclaimed = policy;
        self
    }

    /// Sets what the host wants to serve itself.
    #[must_use]
    pub fn with_forward(mut self, forward: ForwardConfig) -> Self {
        self.forward = forward;
        self
    }

    /// The regions of memory, not of devices, in which the guest may do all of this, as far as they
    /// are ranges: for a host that places images and describes memory.
    pub fn memory(&self, access: MappingFlags) -> impl Iterator<Item = GpaRange> {
        self.memory_regions.iter().filter_map(move |region| {
            let flags = MappingFlags::from_bits_truncate(region.flags);
            let range = GpaRange::new(region.gpa.into(), region.size);
            range.filter(|_| flags.contains(access) && !flags.contains(MappingFlags::DEVICE))
        })
    }

    /// The guest's name for a vCPU.
    pub fn guest_cpu_id(&self, vcpu: usize) -> u64 {
        let named = self.phys_cpu_ids.as_ref().and_then(|ids| ids.get(vcpu));
        named.copied().unwrap_or(vcpu) as u64
    }

    /// The physical CPUs on which a vCPU may run, as a bit mask; none when it may run on any.
    pub fn vcpu_affinity(&self, vcpu: usize) -> Option<usize> {
        self.phys_cpu_sets.as_ref()?.get(vcpu).copied()
    }
}
