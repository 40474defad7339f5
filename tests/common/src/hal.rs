//! The mock HAL: [`mock_hal!`](crate::mock_hal) makes a marker type with a machine of its own.

use std::{cell::Cell, marker::PhantomData};

use axerrno::{AxErrorKind, AxResult};
use axvm::{
    AxVMHal,
    mm::{HostPhysAddr, HostVirtAddr, PagingHandler},
    vcpu::{AxArchVCpu, AxVMPerCpu},
};

use crate::Machine;

/// A HAL that `mock_hal!` made.
pub trait MockHal: AxVMHal {
    /// Its machine, always the same.
    fn machine() -> &'static Machine;
}

thread_local! {
    static PCPU: Cell<usize> = const { Cell::new(0) };
}

/// The physical CPU that this thread is; 0 at first.
pub fn pcpu() -> usize {
    PCPU.get()
}

/// Makes this thread physical CPU `id` from now on.
pub fn set_pcpu(id: usize) {
    PCPU.set(id);
}

/// Runs `act` as physical CPU `id`.
pub fn on_pcpu<R>(id: usize, act: impl FnOnce() -> R) -> R {
    struct Back(usize);
    impl Drop for Back {
        fn drop(&mut self) {
            set_pcpu(self.0);
        }
    }
    let _back = Back(PCPU.replace(id));
    act()
}

/// Switches virtualization on, on the physical CPUs 0 to `count` - 1.
///
/// # Panics
/// When one refuses.
#[track_caller]
pub fn enable_pcpus<A: AxArchVCpu>(count: usize) -> Vec<AxVMPerCpu<A>> {
    let enable = |id| {
        on_pcpu(id, || {
            let mut cpu = AxVMPerCpu::<A>::new(id).expect("a per-CPU part");
            cpu.hardware_enable().expect("hardware_enable");
            cpu
        })
    };
    (0..count).map(enable).collect()
}

/// Calls `attempt` with the 1st, the 2nd, … allocation of frames failing, it and all after it,
/// until it succeeds with none failing; then the same with only that one failing. A failed
/// attempt must say `NoMemory` and leave the count of frames as it was. Returns the outcomes of
/// the two successes and how many allocations there were to fail.
///
/// # Panics
/// When an attempt breaks that promise.
#[track_caller]
pub fn fail_every_allocation<R>(
    machine: &Machine,
    mut attempt: impl FnMut() -> AxResult<R>,
    mut undo: impl FnMut(R),
) -> u64 {
    let arena = machine.arena();
    let mut failed = 0;
    for only in [false, true] {
        for n in 1.. {
            let before = arena.allocated();
            if only {
                arena.fail_nth_only(n)
            } else {
                arena.fail_after(n)
            }
            let outcome = attempt();
            let injected = arena.injected();
            arena.fail_never();
            match outcome {
                // With one failure only, the crate may have found another way.
                Ok(done) if injected == 0 || only => undo(done),
                Ok(_) => panic!("allocation {n} failed and nobody noticed"),
                Err(error) => {
                    assert!(injected > 0, "without a failed allocation: {error:?}");
                    assert_eq!(error, AxErrorKind::NoMemory.into(), "allocation {n} failed");
                }
            }
            let after = arena.allocated();
            assert_eq!(after, before, "allocation {n} failed: frames before and after");
            if injected == 0 {
                break;
            }
            failed += 1;
        }
    }
    arena.check_poison();
    failed
}

/// The frames of `H`'s machine.
pub struct Frames<H>(PhantomData<fn() -> H>);

impl<H: MockHal> PagingHandler for Frames<H> {
    #[track_caller]
    fn alloc_frames(num: usize, align: usize) -> Option<HostPhysAddr> {
        H::machine().arena().alloc(num, align)
    }

    #[track_caller]
    fn dealloc_frames(paddr: HostPhysAddr, num: usize) {
        H::machine().arena().dealloc(paddr, num);
    }

    #[track_caller]
    fn phys_to_virt(paddr: HostPhysAddr) -> HostVirtAddr {
        H::machine().phys_to_virt(paddr)
    }
}

/// Makes a HAL type with statics of its own: `mock_hal!(pub struct MyHal);`, or with fields of
/// [`MachineConfig`](crate::MachineConfig): `mock_hal!(struct MyHal { vmid_bits: 2 });`.
#[macro_export]
macro_rules! mock_hal {
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(;)?) => {
        $crate::mock_hal!($(#[$meta])* $vis struct $name {});
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($field:ident: $value:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name;

        impl $crate::MockHal for $name {
            fn machine() -> &'static $crate::Machine {
                static MACHINE: ::std::sync::OnceLock<$crate::Machine> =
                    ::std::sync::OnceLock::new();
                MACHINE.get_or_init(|| {
                    #[allow(clippy::needless_update)]
                    $crate::Machine::new($crate::MachineConfig {
                        $($field: $value,)*
                        ..$crate::MachineConfig::DEFAULT
                    })
                })
            }
        }

        $crate::forward_hal!($name);
    };
}

/// The part of `mock_hal!` that does not depend on its form, and what of `AxVMHal` is not in it.
#[doc(hidden)]
#[macro_export]
macro_rules! forward_hal {
    ($name:ident $($extra:tt)*) => {
        impl $crate::reexport::AxVMHal for $name {
            type PagingHandler = $crate::Frames<$name>;

            fn alloc_memory_region_at(base: $crate::reexport::HostPhysAddr, size: usize) -> bool {
                $crate::services::alloc_memory_region_at::<Self>(base, size)
            }
            fn dealloc_memory_region_at(base: $crate::reexport::HostPhysAddr, size: usize) {
                $crate::services::dealloc_memory_region_at::<Self>(base, size)
            }
            fn virt_to_phys(
                vaddr: $crate::reexport::HostVirtAddr,
            ) -> $crate::reexport::HostPhysAddr {
                $crate::services::virt_to_phys::<Self>(vaddr)
            }
            fn current_time_nanos() -> u64 {
                $crate::services::current_time_nanos::<Self>()
            }
            fn current_vm_id() -> usize {
                $crate::services::current_vm_id::<Self>()
            }
            fn current_vcpu_id() -> usize {
                $crate::services::current_vcpu_id::<Self>()
            }
            fn current_pcpu_id() -> usize {
                $crate::pcpu()
            }
            fn vcpu_resides_on(vm_id: usize, vcpu_id: usize) -> $crate::reexport::AxResult<usize> {
                $crate::services::vcpu_resides_on::<Self>(vm_id, vcpu_id)
            }
            fn inject_irq_to_vcpu(
                vm_id: usize,
                vcpu_id: usize,
                irq: usize,
            ) -> $crate::reexport::AxResult {
                $crate::services::inject_irq_to_vcpu::<Self>(vm_id, vcpu_id, irq)
            }
            fn kick_pcpu(cpu: usize) {
                $crate::services::kick_pcpu::<Self>(cpu)
            }
            fn wake_vcpu(vm_id: usize, vcpu_id: usize) {
                $crate::services::wake_vcpu::<Self>(vm_id, vcpu_id)
            }
            fn set_timer(deadline: u64) {
                $crate::services::set_timer::<Self>(deadline)
            }
            fn counter_frequency() -> Option<u64> {
                $crate::services::counter_frequency::<Self>()
            }
            fn relax() {
                ::std::thread::yield_now()
            }
            $($extra)*
        }
    };
}
