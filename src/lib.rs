#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

pub mod arch;
pub mod boot;
pub mod config;
pub mod device;
pub mod firmware;
mod hal;
pub mod irq;
pub mod machine;
pub mod mm;
mod sync;
pub mod vcpu;
pub mod vm;

pub use arch::{NativeVCpu, has_hardware_support};
pub use config::AxVMConfig;
pub use hal::AxVMHal;
pub use vcpu::{AxVCpuExitReason, AxVMPerCpu};
pub use vm::{AxVM, AxVMRef};
