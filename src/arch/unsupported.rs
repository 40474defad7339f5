//! The backend where there is no hardware support.

#![forbid(unsafe_code)]

use core::marker::PhantomData;

use axerrno::{AxError, AxResult};

use crate::{
    hal::AxVMHal,
    irq::IrqHw,
    mm::{
        GpaRange, GuestPhysAddr, HostPhysAddr,
        npt::{Ept, Geometry},
        tlb::{GuestTag, NestedTlb},
    },
    vcpu::{AxArchPerCpu, AxArchVCpu, Completion, Hardware, VcpuExit, VcpuSpec},
};

pub(super) const HARDWARE_SUPPORT: bool = false;

static HARDWARE: Hardware = Hardware::new(16);

/// A vCPU that can be created, but never runs.
pub struct UnsupportedVCpu<H> {
    hal: PhantomData<fn() -> H>,
}

/// A physical CPU on which virtualization cannot be switched on.
pub struct UnsupportedPerCpu;

/// What such a vCPU is made from: nothing.
pub struct NoConfig;

impl From<&VcpuSpec> for NoConfig {
    fn from(_: &VcpuSpec) -> Self {
        Self
    }
}

impl<H: AxVMHal> AxArchVCpu for UnsupportedVCpu<H> {
    type CreateConfig = NoConfig;
    type SetupConfig = NoConfig;
    type PerCpu = UnsupportedPerCpu;
    type Npt = Ept;
    type Tlb = NoTlb;
    type IrqHw = Self;
    type State = ();

    fn has_hardware_support() -> bool {
        HARDWARE_SUPPORT
    }

    fn npt_geometry() -> AxResult<Geometry> {
        Ok(Geometry::EPT)
    }

    fn hardware() -> &'static Hardware {
        &HARDWARE
    }

    fn new(_vm_id: usize, _vcpu_id: usize, _config: NoConfig) -> AxResult<Self> {
        Ok(Self { hal: PhantomData })
    }

    fn set_entry(&mut self, _entry: GuestPhysAddr) -> AxResult {
        Ok(())
    }

    fn set_ept_root(&mut self, _root: HostPhysAddr) -> AxResult {
        Ok(())
    }

    fn setup(&mut self, _config: NoConfig) -> AxResult {
        Ok(())
    }

    fn bind(&mut self) -> AxResult {
        Err(AxError::Unsupported)
    }

    fn unbind(&mut self) -> AxResult {
        Err(AxError::Unsupported)
    }

    fn set_vmid(&mut self, _vmid: u16) {}

    fn run(&mut self) -> AxResult<VcpuExit> {
        Err(AxError::Unsupported)
    }

    fn complete(&mut self, _done: Completion) -> AxResult<Option<VcpuExit>> {
        Err(AxError::BadState)
    }

    fn set_gpr(&mut self, _reg: usize, _value: usize) {}

    fn set_return_value(&mut self, _value: usize) {}

    fn irq_hw(&mut self) -> &mut Self {
        self
    }

    fn power_on(&mut self, _entry: GuestPhysAddr, _arg: u64) -> AxResult {
        Err(AxError::Unsupported)
    }

    fn state(&mut self) {}

    fn set_state(&mut self, _state: &()) -> AxResult {
        Ok(())
    }
}

impl<H> IrqHw for UnsupportedVCpu<H> {
    fn inject(&mut self, _vector: usize) -> AxResult {
        Err(AxError::Unsupported)
    }
}

impl AxArchPerCpu for UnsupportedPerCpu {
    fn new(_cpu_id: usize) -> AxResult<Self> {
        Ok(Self)
    }

    fn is_enabled(&self) -> bool {
        false
    }

    fn hardware_enable(&mut self) -> AxResult {
        Err(AxError::Unsupported)
    }

    fn hardware_disable(&mut self) -> AxResult {
        Err(AxError::BadState)
    }
}

/// The TLB of a CPU that runs no guest: always empty.
pub struct NoTlb;

impl NestedTlb for NoTlb {
    const BROADCAST: bool = true;

    fn flush_range(_tag: GuestTag, _range: GpaRange) {}

    fn flush_guest(_tag: GuestTag) {}

    fn flush_all() {}
}
