//! Callers on several CPUs at once.

use std::sync::{
    Barrier,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axerrno::{AxError, AxResult};
use axvm::{
    vcpu::{AxVCpuExitReason, VCpuState, VcpuExit},
    vm::VMStatus,
};
use axvm_testkit::{
    MockHal, Step, TestVm, VM, booted, created, mock_hal, on_pcpu, set_pcpu, test_config,
};

const CALLERS: usize = 4;

/// Has all callers make a call at the same moment; how many succeeded, and the others said
/// `BadState`.
fn race(call: impl Fn() -> AxResult + Sync) -> usize {
    let (start, won) = (Barrier::new(CALLERS), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                start.wait();
                match call() {
                    Ok(()) => drop(won.fetch_add(1, SeqCst)),
                    Err(error) => assert_eq!(error, AxError::BadState),
                }
            });
        }
    });
    won.into_inner()
}

#[test]
fn of_concurrent_boots_and_shutdowns_exactly_one_succeeds() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    for round in 0..500 {
        assert_eq!(race(|| vm.boot()), 1, "boot, round {round}");
        assert_eq!(vm.status(), VMStatus::Running);
        assert_eq!(race(|| vm.shutdown()), 1, "shutdown, round {round}");
        assert_eq!(vm.wait_terminated(), Ok(()));
        vm.reset().unwrap();
    }
}

#[test]
fn a_shutdown_that_meets_a_boot_wins() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    for _ in 0..500 {
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let _ = vm.boot();
            });
            start.wait();
            assert_eq!(vm.shutdown(), Ok(()));
        });
        assert!(!vm.running());
        assert_eq!(vm.wait_terminated(), Ok(()));
        assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
        vm.reset().unwrap();
    }
}

/// Runs a vCPU until the VM is down, as a host does.
fn run_until_down<H: MockHal>(vm: &TestVm<H>, vcpu: usize) {
    set_pcpu(vcpu);
    loop {
        match vm.run_vcpu(vcpu) {
            Ok(AxVCpuExitReason::ExternalInterrupt { .. } | AxVCpuExitReason::Nothing) => {}
            Ok(AxVCpuExitReason::SystemDown) => break,
            Err(error) => {
                assert_eq!(error, AxError::BadState);
                assert_ne!(vm.status(), VMStatus::Running);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Switches all of the VM's vCPUs on.
fn start_all<H: MockHal>(vm: &TestVm<H>) {
    for target_cpu in 1..vm.vcpu_num() as u64 {
        let up = VcpuExit::CpuUp { target_cpu, entry_point: 0x4000.into(), arg: 0 };
        H::machine().program(VM, 0).push(Step::Exit(up));
        loop {
            match vm.run_vcpu(0) {
                Ok(AxVCpuExitReason::CpuUp { .. }) => break,
                // A kick that came late.
                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_shutdown_makes_running_vcpus_leave() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(4));
    for _ in 0..30 {
        start_all(&vm);
        std::thread::scope(|scope| {
            for vcpu in 0..4 {
                Hal::machine().program(VM, vcpu).push(Step::SpinUntilKicked);
                let vm = &vm;
                scope.spawn(move || run_until_down(vm, vcpu));
            }
            (0..4).for_each(|vcpu| Hal::machine().wait_in_guest(VM, vcpu));
            assert_eq!(vm.shutdown(), Ok(()));
            assert!(vm.shutting_down());
            assert_eq!(vm.wait_terminated(), Ok(()));
            assert!((0..4).all(|vcpu| Hal::machine().residence(VM, vcpu).is_none()));
        });
        assert_eq!(vm.status(), VMStatus::Terminated);
        assert!(vm.vcpu_list().iter().all(|vcpu| vcpu.state() == VCpuState::Free));
        (0..4).for_each(|vcpu| Hal::machine().program(VM, vcpu).clear());
        Hal::machine().take_kicks();
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}

#[test]
fn a_guest_that_powers_off_takes_its_other_vcpus_with_it() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(3));
    for exit in [VcpuExit::SystemDown, VcpuExit::SystemReset, VcpuExit::FailEntry { reason: 1 }] {
        start_all(&vm);
        std::thread::scope(|scope| {
            for vcpu in 1..3 {
                Hal::machine().program(VM, vcpu).push(Step::SpinUntilKicked);
                let vm = &vm;
                scope.spawn(move || run_until_down(vm, vcpu));
            }
            (1..3).for_each(|vcpu| Hal::machine().wait_in_guest(VM, vcpu));
            Hal::machine().program(VM, 0).push(Step::Exit(exit));
            assert!(vm.run_vcpu(0).is_ok());
            if vm.status() != VMStatus::Failed {
                assert_eq!(vm.wait_terminated(), Ok(()));
            }
        });
        (1..3).for_each(|vcpu| Hal::machine().program(VM, vcpu).clear());
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}

#[test]
fn entries_and_shutdowns_that_meet_always_end_terminated() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().set_tracing(false);
    let vm = booted::<Hal>(test_config(3));
    for round in 0..400 {
        start_all(&vm);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let (vm, start) = (&vm, &start);
                scope.spawn(move || {
                    set_pcpu(vcpu);
                    start.wait();
                    while vm.run_vcpu(vcpu) != Err(AxError::BadState) {}
                });
            }
            start.wait();
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            vm.shutdown().unwrap();
            vm.wait_terminated().unwrap();
        });
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}

#[test]
fn the_last_one_out_terminates_also_by_a_look_at_the_state_or_a_failed_bind() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().set_tracing(false);
    let vm = booted::<Hal>(test_config(1));
    for round in 0..1000 {
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                if round % 2 == 0 {
                    let _ = on_pcpu(1, || vm.vcpu_state(0));
                } else {
                    Hal::machine().fail_next(axvm_testkit::Call::Bind, AxError::NoMemory);
                    let _ = on_pcpu(1, || vm.run_vcpu(0));
                }
            });
            start.wait();
            vm.shutdown().unwrap();
        });
        // Without anybody's help.
        assert_eq!(vm.status(), VMStatus::Terminated, "round {round}");
        Hal::machine().fail_never();
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}

#[test]
fn resets_and_stray_runs_do_not_meet() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().set_tracing(false);
    let vm = booted::<Hal>(test_config(1));
    let rounds = 300;
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            set_pcpu(1);
            while done.load(SeqCst) < rounds {
                match vm.run_vcpu(0) {
                    Ok(AxVCpuExitReason::Halt | AxVCpuExitReason::SystemDown) => {}
                    Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {}
                    Err(AxError::BadState) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        for _ in 0..rounds {
            vm.shutdown().unwrap();
            vm.wait_terminated().unwrap();
            vm.reset().unwrap();
            vm.boot().unwrap();
            done.fetch_add(1, SeqCst);
        }
    });
    assert_eq!(vm.vcpu(0).unwrap().state(), VCpuState::Free);
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
}
