//! The smallest host and vCPU that the cases of ours need. What they cost is counted, but for
//! the frame allocator.

use std::sync::atomic::{AtomicUsize, Ordering};

use axerrno::{AxError, AxResult};
use axvm::AxVMHal;
use axvm::irq::IrqHw;
use axvm::mm::npt::{Ept, Geometry};
use axvm::mm::tlb::{GuestTag, NestedTlb};
use axvm::mm::{GpaRange, GuestPhysAddr, HostPhysAddr, HostVirtAddr};
use axvm::vcpu::{
    Access, AccessOp, AccessWidth, AxArchPerCpu, AxArchVCpu, Completion, DecodedAccess, Hardware,
    LoadTarget, MemFault, VcpuExit, VcpuSpec,
};

use crate::frames::Frames;

/// A host of one CPU.
pub struct Host;

/// Read at each call, as a host reads a per-CPU register.
static PCPU: AtomicUsize = AtomicUsize::new(0);

impl AxVMHal for Host {
    type PagingHandler = Frames;

    fn alloc_memory_region_at(_: HostPhysAddr, _: usize) -> bool {
        false
    }
    fn dealloc_memory_region_at(_: HostPhysAddr, _: usize) {}
    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
        vaddr.as_usize().into()
    }
    fn current_time_nanos() -> u64 {
        0
    }
    fn current_vm_id() -> usize {
        0
    }
    fn current_vcpu_id() -> usize {
        0
    }
    #[inline]
    fn current_pcpu_id() -> usize {
        PCPU.load(Ordering::Relaxed)
    }
    fn vcpu_resides_on(_: usize, _: usize) -> AxResult<usize> {
        Ok(0)
    }
    fn inject_irq_to_vcpu(_: usize, _: usize, _: usize) -> AxResult {
        Ok(())
    }
}

/// A TLB that is always empty, but must be flushed CPU by CPU: the dearer kind.
pub struct NoTlb;

impl NestedTlb for NoTlb {
    const BROADCAST: bool = false;

    fn flush_range(_: GuestTag, _: GpaRange) {}
    fn flush_guest(_: GuestTag) {}
    fn flush_all() {}
}

/// What a vCPU is made from: nothing.
pub struct NoConfig;

impl From<&VcpuSpec> for NoConfig {
    fn from(_: &VcpuSpec) -> Self {
        Self
    }
}

static HARDWARE: Hardware = Hardware::new(16);

/// A vCPU whose guest does nothing but 32-bit loads, each an exit, from a list of addresses
/// ([`set_state`](AxArchVCpu::set_state)); at the list's end there is a host interrupt.
#[derive(Default)]
pub struct Loader {
    addresses: Vec<usize>,
    next: usize,
    loaded: u64,
}

impl AxArchVCpu for Loader {
    type CreateConfig = NoConfig;
    type SetupConfig = NoConfig;
    type PerCpu = PerCpu;
    type Npt = Ept;
    type Tlb = NoTlb;
    type IrqHw = Self;
    type State = Vec<usize>;

    const IRQ_PRIORITY: axvm::irq::Priority = axvm::irq::Priority::HighestFirst;

    fn has_hardware_support() -> bool {
        true
    }
    fn npt_geometry() -> AxResult<Geometry> {
        Ok(Geometry::EPT)
    }
    fn hardware() -> &'static Hardware {
        &HARDWARE
    }
    fn new(_: usize, _: usize, _: NoConfig) -> AxResult<Self> {
        Ok(Self::default())
    }
    fn set_entry(&mut self, _: GuestPhysAddr) -> AxResult {
        Ok(())
    }
    fn set_ept_root(&mut self, _: HostPhysAddr) -> AxResult {
        Ok(())
    }
    fn setup(&mut self, _: NoConfig) -> AxResult {
        Ok(())
    }
    fn bind(&mut self) -> AxResult {
        Ok(())
    }
    fn unbind(&mut self) -> AxResult {
        Ok(())
    }
    fn set_vmid(&mut self, _: u16) {}

    fn run(&mut self) -> AxResult<VcpuExit> {
        let Some(&gpa) = self.addresses.get(self.next) else {
            return Ok(VcpuExit::ExternalInterrupt { vector: 0 });
        };
        self.next += 1;
        let target = LoadTarget { reg: 0, reg_width: AccessWidth::Dword, signed_ext: false };
        let insn = DecodedAccess { width: AccessWidth::Dword, op: AccessOp::Read(target) };
        Ok(VcpuExit::MemFault(MemFault {
            gpa: gpa.into(),
            access: Access::Read,
            walk: false,
            insn: Some(insn),
        }))
    }

    fn complete(&mut self, done: Completion) -> AxResult<Option<VcpuExit>> {
        let Completion::Read(value) = done else { return Err(AxError::InvalidInput) };
        self.loaded = value;
        Ok(None)
    }

    fn set_gpr(&mut self, _: usize, _: usize) {}
    fn set_return_value(&mut self, _: usize) {}
    fn irq_hw(&mut self) -> &mut Self {
        self
    }
    fn power_on(&mut self, _: GuestPhysAddr, _: u64) -> AxResult {
        Ok(())
    }
    fn state(&mut self) -> Vec<usize> {
        self.addresses.clone()
    }
    fn set_state(&mut self, addresses: &Vec<usize>) -> AxResult {
        (self.addresses, self.next) = (addresses.clone(), 0);
        Ok(())
    }
}

impl IrqHw for Loader {
    fn inject(&mut self, _: usize) -> AxResult {
        Ok(())
    }
}

/// A physical CPU on which virtualization is always to be had.
pub struct PerCpu(bool);

impl AxArchPerCpu for PerCpu {
    fn new(_: usize) -> AxResult<Self> {
        Ok(Self(false))
    }
    fn is_enabled(&self) -> bool {
        self.0
    }
    fn hardware_enable(&mut self) -> AxResult {
        self.0 = true;
        Ok(())
    }
    fn hardware_disable(&mut self) -> AxResult {
        self.0 = false;
        Ok(())
    }
}
