//! The backends: one vCPU for each architecture, chosen by target. None is built yet: on every
//! target [`NativeVCpu`] is a stand-in that reports no hardware support, so that a VM can be
//! created and inspected, but not booted.

#![forbid(unsafe_code)]

mod unsupported;

pub use unsupported::{NoConfig, NoTlb, UnsupportedPerCpu, UnsupportedVCpu};

/// The backend of the target architecture.
pub type NativeVCpu<H> = UnsupportedVCpu<H>;

/// Whether this machine can run guests with [`NativeVCpu`]; harmless in a user process.
pub fn has_hardware_support() -> bool {
    unsupported::HARDWARE_SUPPORT
}
