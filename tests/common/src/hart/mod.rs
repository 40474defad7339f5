//! RISC-V harts with the hypervisor extension, in software, written from the Privileged manual:
//! see [`MockCpu`].

mod cpu;
mod csrs;
mod guest;

use std::collections::HashMap;

use axvm::arch::riscv64::Hart;

pub use cpu::{MockCpu, Touched};
pub use guest::{Guest, exception, guest_page_fault, interrupt};

/// What a hart has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HartConfig {
    /// The hypervisor extension.
    pub hypervisor: bool,
    /// `henvcfg.STCE` can be set.
    pub stce: bool,
    /// `vstimecmp` can be accessed.
    pub vstimecmp: bool,
    /// Sv39x4.
    pub sv39x4: bool,
    /// Sv48x4.
    pub sv48x4: bool,
    /// The width of a VMID, 0 to 14.
    pub vmid_bits: u32,
    /// The largest mode of `vsatp`: 8, 9 or 10; 0 for none.
    pub satp_mode: u64,
}

impl HartConfig {
    /// Everything.
    pub const DEFAULT: Self = Self {
        hypervisor: true,
        stce: true,
        vstimecmp: true,
        sv39x4: true,
        sv48x4: true,
        vmid_bits: 14,
        satp_mode: 10,
    };
}

/// A kind of hart that [`mock_hart!`](crate::mock_hart) made. Each thread has harts of its own,
/// one for each physical CPU that it plays, so that tests with the same kind run side by side.
pub trait MockHart: Hart {
    /// Looks at the hart that this thread is now, or changes it. Not from within a script.
    fn with<R>(act: impl FnOnce(&mut MockCpu) -> R) -> R;
}

/// The harts of one thread, by physical CPU.
#[doc(hidden)]
pub struct Harts {
    config: HartConfig,
    cpus: HashMap<usize, MockCpu>,
}

impl Harts {
    /// None was touched yet.
    pub fn new(config: HartConfig) -> Self {
        Self { config, cpus: HashMap::new() }
    }

    /// The hart that this thread is now.
    pub fn current(&mut self) -> &mut MockCpu {
        let config = self.config;
        self.cpus.entry(crate::pcpu()).or_insert_with(|| MockCpu::new(config))
    }
}

/// Makes a kind of hart, whose TLBs are those of a mock HAL's machine: `mock_hart!(pub struct
/// MyHart on MyHal);`, or with fields of [`HartConfig`](crate::HartConfig): `mock_hart!(struct
/// MyHart on MyHal { stce: false });`.
#[macro_export]
macro_rules! mock_hart {
    ($(#[$meta:meta])* $vis:vis struct $name:ident on $hal:ty) => {
        $crate::mock_hart!($(#[$meta])* $vis struct $name on $hal {});
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident on $hal:ty {
        $($field:ident: $value:expr),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default)]
        $vis struct $name;

        impl $crate::MockHart for $name {
            fn with<R>(act: impl FnOnce(&mut $crate::MockCpu) -> R) -> R {
                ::std::thread_local! {
                    static HARTS: ::std::cell::RefCell<$crate::Harts> =
                        ::std::cell::RefCell::new($crate::Harts::new({
                            #[allow(clippy::needless_update)]
                            $crate::HartConfig { $($field: $value,)* ..$crate::HartConfig::DEFAULT }
                        }));
                }
                HARTS.with_borrow_mut(|harts| act(harts.current()))
            }
        }

        $crate::forward_hart!($name, $hal);
    };
}

/// The part of `mock_hart!` that does not depend on its form.
#[doc(hidden)]
#[macro_export]
macro_rules! forward_hart {
    ($name:ident, $hal:ty) => {
        impl $crate::reexport::riscv64::Hart for $name {
            type Tlb = $crate::SoftTlb<$hal, false>;

            fn machine() -> &'static $crate::reexport::riscv64::Machine {
                static MACHINE: $crate::reexport::riscv64::Machine =
                    $crate::reexport::riscv64::Machine::new();
                &MACHINE
            }
            fn has_hypervisor(&mut self) -> bool {
                <Self as $crate::MockHart>::with(|cpu| cpu.config.hypervisor)
            }
            fn has_vstimecmp(&mut self) -> bool {
                <Self as $crate::MockHart>::with(|cpu| cpu.config.vstimecmp)
            }
            #[track_caller]
            fn read(&mut self, csr: $crate::reexport::riscv64::Csr) -> u64 {
                <Self as $crate::MockHart>::with(|cpu| cpu.read(csr))
            }
            #[track_caller]
            fn write(&mut self, csr: $crate::reexport::riscv64::Csr, value: u64) {
                <Self as $crate::MockHart>::with(|cpu| cpu.write(csr, value))
            }
            #[track_caller]
            fn set(&mut self, csr: $crate::reexport::riscv64::Csr, bits: u64) {
                <Self as $crate::MockHart>::with(|cpu| cpu.set(csr, bits))
            }
            #[track_caller]
            fn clear(&mut self, csr: $crate::reexport::riscv64::Csr, bits: u64) {
                <Self as $crate::MockHart>::with(|cpu| cpu.clear(csr, bits))
            }
            #[track_caller]
            fn enter(&mut self, frame: &mut $crate::reexport::riscv64::Frame) {
                <Self as $crate::MockHart>::with(|cpu| cpu.enter(frame))
            }
            #[track_caller]
            fn fetch(&mut self, hstatus: u64, addr: u64) -> Option<u16> {
                <Self as $crate::MockHart>::with(|cpu| cpu.fetch(hstatus, addr))
            }
            #[track_caller]
            fn save_fp(&mut self, fp: &mut $crate::reexport::riscv64::FpState) {
                <Self as $crate::MockHart>::with(|cpu| cpu.save_fp(fp))
            }
            #[track_caller]
            fn load_fp(&mut self, fp: &$crate::reexport::riscv64::FpState) {
                <Self as $crate::MockHart>::with(|cpu| cpu.load_fp(fp))
            }
            fn fence_instructions(&mut self) {
                <Self as $crate::MockHart>::with(|cpu| cpu.fences.0 += 1)
            }
            fn fence_translations(&mut self) {
                <Self as $crate::MockHart>::with(|cpu| cpu.fences.1 += 1)
            }
        }
    };
}
