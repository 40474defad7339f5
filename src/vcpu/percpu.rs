//! Physical CPUs: which have virtualization on, and which VMIDs they may use.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axerrno::{AxResult, ax_err};

use super::{AxArchPerCpu, AxArchVCpu};
use crate::mm::tlb::{VmidAllocator, VmidUser};

/// The number of physical CPUs that the crate can keep track of.
pub const MAX_PCPUS: usize = 256;

/// What is known of one physical CPU.
struct Pcpu {
    enabled: AtomicBool,
    /// The generation of VMIDs for which its TLB was last emptied.
    vmid_generation: AtomicU64,
}

/// A backend's physical CPUs and its VMIDs: one static for each backend.
pub struct Hardware {
    pcpus: [Pcpu; MAX_PCPUS],
    vmids: VmidAllocator,
}

impl Hardware {
    /// No CPU is enabled; VMIDs have `vmid_bits` bits, at most 16.
    pub const fn new(vmid_bits: u32) -> Self {
        Self {
            pcpus: [const {
                Pcpu { enabled: AtomicBool::new(false), vmid_generation: AtomicU64::new(0) }
            }; MAX_PCPUS],
            vmids: VmidAllocator::new(vmid_bits),
        }
    }

    /// The VMIDs.
    pub fn vmids(&self) -> &VmidAllocator {
        &self.vmids
    }

    /// Whether virtualization is on, on this CPU.
    pub fn is_enabled(&self, pcpu: usize) -> bool {
        self.pcpus.get(pcpu).is_some_and(|cpu| cpu.enabled.load(Ordering::Relaxed))
    }

    fn set_enabled(&self, pcpu: usize, enabled: bool) {
        if let Some(cpu) = self.pcpus.get(pcpu) {
            // A CPU that was off may have lost its TLB, or kept a stale one: empty it again.
            cpu.vmid_generation.store(0, Ordering::Relaxed);
            cpu.enabled.store(enabled, Ordering::Relaxed);
        }
    }
}

impl VmidUser for Hardware {
    #[inline]
    fn allocator(&self) -> &VmidAllocator {
        &self.vmids
    }

    #[inline]
    fn adopt_generation(&self, pcpu: usize, generation: u64) -> bool {
        let Some(cpu) = self.pcpus.get(pcpu) else { return true };
        // Only the CPU itself writes: no read-modify-write needed.
        let stale = cpu.vmid_generation.load(Ordering::Relaxed) != generation;
        if stale {
            cpu.vmid_generation.store(generation, Ordering::Relaxed);
        }
        stale
    }
}

/// Virtualization on one physical CPU: the architecture-independent wrapper that the host keeps
/// for each, and uses on that CPU.
pub struct AxVMPerCpu<A: AxArchVCpu> {
    cpu_id: usize,
    arch: A::PerCpu,
}

impl<A: AxArchVCpu> AxVMPerCpu<A> {
    /// Prepares for the physical CPU `cpu_id`, without touching the hardware.
    ///
    /// # Errors
    /// `InvalidInput` unless `cpu_id` is below [`MAX_PCPUS`]; `NoMemory`.
    pub fn new(cpu_id: usize) -> AxResult<Self> {
        if cpu_id >= MAX_PCPUS {
            return ax_err!(InvalidInput, format_args!("cpu_id {cpu_id} is not below {MAX_PCPUS}"));
        }
        Ok(Self { cpu_id, arch: A::PerCpu::new(cpu_id)? })
    }

    /// Whether virtualization is on.
    pub fn is_enabled(&self) -> bool {
        self.arch.is_enabled()
    }

    /// Switches virtualization on. Call it on the CPU itself, with interrupts masked.
    ///
    /// # Errors
    /// `Unsupported` when the CPU or its firmware does not allow it; `BadState` when it is on.
    pub fn hardware_enable(&mut self) -> AxResult {
        if self.arch.is_enabled() {
            return ax_err!(BadState, format_args!("CPU {} is enabled", self.cpu_id));
        }
        self.arch.hardware_enable()?;
        A::hardware().set_enabled(self.cpu_id, true);
        Ok(())
    }

    /// Switches virtualization off. Call it on the CPU itself, with interrupts masked, when no
    /// vCPU is bound to it.
    ///
    /// # Errors
    /// `BadState` when it is off; those of the backend, and it is on then.
    pub fn hardware_disable(&mut self) -> AxResult {
        if !self.arch.is_enabled() {
            return ax_err!(BadState, format_args!("CPU {} is not enabled", self.cpu_id));
        }
        A::hardware().set_enabled(self.cpu_id, false);
        let on = |_: &_| A::hardware().set_enabled(self.cpu_id, true);
        self.arch.hardware_disable().inspect_err(on)
    }
}
