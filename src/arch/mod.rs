//! The backends: one vCPU for each architecture, whose logic compiles everywhere. [`NativeVCpu`] is
//! the one of the target; where there is none, in a user process for one, it is a stand-in that
//! reports no hardware support, so that a VM can be created and inspected, but not booted.

pub mod riscv64;
mod unsupported;

pub use unsupported::{NoConfig, NoTlb, UnsupportedPerCpu, UnsupportedVCpu};

/// The backend of the target architecture.
#[cfg(all(target_arch = "riscv64", target_os = "none"))]
pub type NativeVCpu<H> = riscv64::RiscvVCpu<H, riscv64::NativeHart>;

/// The backend of the target architecture: none.
#[cfg(not(all(target_arch = "riscv64", target_os = "none")))]
pub type NativeVCpu<H> = UnsupportedVCpu<H>;

/// Whether this machine can run guests with [`NativeVCpu`]; harmless in a user process.
pub fn has_hardware_support() -> bool {
    #[cfg(all(target_arch = "riscv64", target_os = "none"))]
    return riscv64::is_supported::<riscv64::NativeHart>();
    #[cfg(not(all(target_arch = "riscv64", target_os = "none")))]
    unsupported::HARDWARE_SUPPORT
}
