//! axvm's test kit: what the tests, benches and fuzz targets stand on.
//!
//! [`mock_hal!`] makes a HAL with a [`Machine`] of its own: frames that are watched
//! ([`Arena`]), host memory ([`HostRegions`]), TLBs ([`Tlbs`]), a clock, recorders, and the
//! programs of its [`ScriptedVCpu`]s. The hardware here (TLB, walk, vCPU) is written from the
//! manuals, not from the crate's code, and panics on what no hardware may meet. [`mock_hart!`]
//! makes RISC-V harts ([`MockCpu`]) for the real backend to run on.

mod arena;
mod backing;
mod device;
mod execute;
mod format;
mod hal;
mod hart;
mod irq;
pub mod kernel;
mod logger;
mod machine;
mod mmu;
mod program;
mod regions;
mod scripted;
#[doc(hidden)]
pub mod services;
mod soft_tlb;
mod trace;
mod vm;
mod walk;

#[cfg(test)]
mod guest_tests;

pub use arena::{ARENA_BASE, Arena, JUNK, POISON};
pub use device::{TestDevice, Touch};
pub use execute::{NO_SUCH_CPU, cpu_status_code, cpu_up_code};
pub use format::{Ept, GStage, HwNpt, Stage2};
pub use hal::{Frames, MockHal, enable_pcpus, fail_every_allocation, on_pcpu, pcpu, set_pcpu};
pub use hart::{
    Guest, HartConfig, Harts, MockCpu, MockHart, Touched, exception, guest_page_fault, interrupt,
};
pub use irq::{ScriptedIrq, ScriptedPerCpu, VECTORS};
pub use logger::{LogCapture, LogRecord};
pub use machine::{Machine, MachineConfig, PATIENCE};
pub use mmu::Mmu;
pub use program::{Fences, GuestCtx, Program, Step};
pub use regions::HostRegions;
pub use scripted::{ScriptedConfig, ScriptedState, ScriptedVCpu};
pub use services::NOBODY;
pub use soft_tlb::{Flush, SoftTlb, Tlbs};
pub use trace::{Call, Event, Record};
pub use vm::{RAM, RAM_SIZE, TestVm, VM, booted, created, gpa_range, test_config};
pub use walk::{HwEntry, HwFormat, Shape, span};

/// For the expansion of [`mock_hal!`].
#[doc(hidden)]
pub mod reexport {
    pub use axerrno::AxResult;
    pub use axvm::{
        AxVMHal,
        arch::riscv64,
        mm::{HostPhysAddr, HostVirtAddr},
    };
}

use std::sync::{Mutex, MutexGuard};

/// A vCPU like those of x86: EPT, and each physical CPU flushes its own TLB.
pub type X86Like<H> = ScriptedVCpu<H, Ept, false>;
/// A vCPU like those of Arm: stage 2, and flushes reach every physical CPU.
pub type ArmLike<H> = ScriptedVCpu<H, Stage2, true>;
/// A vCPU like those of RISC-V: G-stage, and each physical CPU flushes its own TLB.
pub type RiscvLike<H> = ScriptedVCpu<H, GStage, false>;

/// The vector of the exit that a kick causes.
pub const KICK_VECTOR: u64 = 0xf1;
/// The vector of the exit that a due timer causes.
pub const TIMER_VECTOR: u64 = 0xf2;

/// A lock that survives a panic: a test that expects one goes on.
trait Lock<T> {
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> Lock<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
