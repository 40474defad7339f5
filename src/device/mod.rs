//! Emulated devices: what one is ([`BaseDeviceOps`]), and the VM's table of them
//! ([`AxVmDevices`]), which finds the device behind an access without a lock or an allocation.
//!
//! A device is added to the VM's `AxVmDevices` for each range of guest-physical addresses, I/O
//! ports or system registers that it answers for, before the VM boots or while it runs. Device
//! models know this room and [`irq`](crate::irq); they know nothing of vCPUs, backends and the VM.

#![forbid(unsafe_code)]

mod bus;
mod ivc;
mod manager;
pub mod serial;
mod table;
mod traits;

pub(crate) use bus::Bus;
pub use manager::AxVmDevices;
pub use serial::CharBackend;
pub use traits::{
    BaseDeviceOps, BaseMmioDeviceOps, BasePortDeviceOps, BaseSysRegDeviceOps, DeviceAddrRange,
    Dummy, EmuDeviceType, PortRange, SysRegRange, WidthSet,
};
