//! What happened to the scripted vCPUs, and what shall fail.

use std::{collections::HashMap, sync::Mutex};

use axerrno::{AxError, AxResult};
use axvm::{
    mm::{GuestPhysAddr, HostPhysAddr},
    vcpu::{Completion, GuestFault, GuestFence, MemFault, VcpuExit},
};

use crate::Lock;

/// A call of the backend traits that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `AxArchVCpu::npt_geometry`.
    Geometry,
    /// `AxArchVCpu::new`.
    New,
    /// `AxArchVCpu::set_entry`.
    SetEntry,
    /// `AxArchVCpu::set_ept_root`.
    SetRoot,
    /// `AxArchVCpu::setup`.
    Setup,
    /// `AxArchVCpu::bind`.
    Bind,
    /// `AxArchVCpu::unbind`.
    Unbind,
    /// `AxArchVCpu::run`.
    Run,
    /// `AxArchVCpu::complete`.
    Complete,
    /// `AxArchVCpu::power_on`.
    PowerOn,
    /// `AxArchVCpu::resume`.
    Resume,
    /// `IrqHw::inject`.
    Inject,
    /// `AxArchVCpu::set_state`.
    SetState,
    /// `AxArchPerCpu::new`.
    NewPerCpu,
    /// `AxArchPerCpu::hardware_enable`.
    Enable,
    /// `AxArchPerCpu::hardware_disable`.
    Disable,
}

/// Something that happened to a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was created.
    New,
    /// Its entry point was set.
    SetEntry(GuestPhysAddr),
    /// The root of its table was set.
    SetRoot(HostPhysAddr),
    /// It was set up.
    Setup,
    /// It was bound to the physical CPU of the record.
    Bind,
    /// It was unbound.
    Unbind,
    /// It got a VMID.
    SetVmid(u16),
    /// It entered the guest.
    Enter,
    /// It left the guest.
    Exit(VcpuExit),
    /// It left the guest with an error.
    Failed(AxError),
    /// An exit was completed.
    Complete(Completion),
    /// A fault's instruction was decoded.
    Decode(MemFault),
    /// The guest took a fault.
    FaultTaken(GuestFault),
    /// The guest took an interrupt.
    IrqTaken(usize),
    /// An interrupt was offered and refused.
    IrqRefused(usize),
    /// It forgot something on behalf of its guest.
    Fence(GuestFence),
    /// It was switched on.
    PowerOn(GuestPhysAddr, u64),
    /// It was suspended and began anew.
    Resume(GuestPhysAddr, u64),
    /// Its state was replaced.
    SetState,
    /// It was dropped.
    Drop,
}

/// An event, and where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The VM.
    pub vm: usize,
    /// The vCPU.
    pub vcpu: usize,
    /// The physical CPU.
    pub pcpu: usize,
    /// What happened.
    pub event: Event,
}

/// The failures to come: by call, how many calls still succeed, then the error.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<Call, (u64, AxError)>>);

impl Failures {
    pub(crate) fn set(&self, call: Call, n: u64, error: AxError) {
        assert!(n > 0, "testkit: calls are counted from 1");
        self.0.locked().insert(call, (n - 1, error));
    }

    pub(crate) fn clear(&self) {
        self.0.locked().clear();
    }

    pub(crate) fn check(&self, call: Call) -> AxResult {
        let mut failures = self.0.locked();
        match failures.get_mut(&call) {
            None => Ok(()),
            Some((0, error)) => {
                let error = *error;
                failures.remove(&call);
                Err(error)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}
