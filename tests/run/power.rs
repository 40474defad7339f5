//! vCPUs that are started and go off, and interrupts between them.

use axerrno::AxError;
use axvm::vcpu::{AxVCpuExitReason, CpuMask, CpuUpError, IpiTargets, VcpuEvent, VcpuExit};
use axvm_testkit::{Event, MockHal, Step, TestVm, VM, cpu_up_code, mock_hal, test_config};

use crate::support::{HALT, named, play, reg, start, start_vcpu, up};

mock_hal!(struct Hal { arena: 4 << 20 });

#[test]
fn a_vcpu_is_started_by_the_guest_s_name_for_it() {
    let (vm, _turn) = start::<Hal>(named());
    for (index, name) in [(1, 0x101), (2, 0x200), (3, 0xffff_ffff_0000)] {
        assert!(!vm.vcpu(index).unwrap().is_on());
        start_vcpu(&vm, name, index as u64);
        assert!(vm.vcpu(index).unwrap().is_on());
        assert_eq!(vm.run_vcpu(index), HALT);
        let state = vm.vcpu_state(index).unwrap();
        assert_eq!((state.pc, state.regs[0]), (0x5000, 0x77));
    }
}

#[test]
fn a_vcpu_that_is_on_or_unknown_is_not_started() {
    let (vm, _turn) = start::<Hal>(named());
    let says = |name, error| {
        play(&vm, [Step::Exit(up(name))]);
        assert_eq!(reg(&vm, 0), cpu_up_code(Err(error)), "{name:#x}");
    };
    says(0x100, CpuUpError::AlreadyOn);
    for unknown in [0, 1, 0x102, u64::MAX] {
        says(unknown, CpuUpError::InvalidTarget);
    }
    start_vcpu(&vm, 0x101, 1);
    says(0x101, CpuUpError::OnPending);
    assert_eq!(vm.run_vcpu(1), HALT);
    says(0x101, CpuUpError::AlreadyOn);
    assert!(!vm.vcpu(2).unwrap().is_on());
}

#[test]
fn a_vcpu_goes_off_and_can_be_started_again() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    for _ in 0..3 {
        start_vcpu(&vm, 1, 1);
        Hal::machine().program(VM, 1).push(Step::call(|guest| guest.regs[9] += 1));
        Hal::machine().program(VM, 1).push(Step::Exit(VcpuExit::CpuDown));
        assert_eq!(vm.run_vcpu(1), Ok(AxVCpuExitReason::CpuDown));
        assert!(!vm.vcpu(1).unwrap().is_on());
        assert_eq!(vm.run_vcpu(1), Err(AxError::BadState));
    }
    start_vcpu(&vm, 1, 1);
    assert_eq!(vm.run_vcpu(1), HALT);
    assert_eq!(vm.vcpu_state(1).unwrap().regs[9], 0, "its reset state");
}

/// Which vCPUs get an interrupt that vCPU `from` sends.
fn receivers(vm: &TestVm<Hal>, from: usize, targets: IpiTargets) -> Vec<usize> {
    Hal::machine().take_trace();
    Hal::machine().program(VM, from).push(Step::Exit(VcpuExit::SendIpi { targets, vector: 60 }));
    (0..4).for_each(|_| assert_eq!(vm.run_vcpu(from), HALT));
    (0..4)
        .filter(|&vcpu| {
            assert_eq!(vm.run_vcpu(vcpu), HALT);
            let events = Hal::machine().events(VM, vcpu);
            let taken = events.iter().filter(|event| **event == Event::IrqTaken(60)).count();
            assert!(taken <= 1);
            taken == 1
        })
        .collect()
}

#[test]
fn an_interrupt_reaches_exactly_the_vcpus_that_are_meant() {
    let (vm, _turn) = start::<Hal>(named());
    for (index, name) in [(1, 0x101), (2, 0x200), (3, 0xffff_ffff_0000)] {
        start_vcpu(&vm, name, index);
    }
    let set = |bits| IpiTargets::Set(CpuMask::from_bits(bits));
    for (from, targets, want) in [
        (0, set(0b1010), &[1, 3][..]),
        (1, set(0b0010), &[1]),
        (1, set(0), &[]),
        (1, set(1 << 63 | 1 << 2), &[2]),
        (2, IpiTargets::All, &[0, 1, 2, 3]),
        (2, IpiTargets::AllButSelf, &[0, 1, 3]),
        (3, IpiTargets::Itself, &[3]),
        (0, IpiTargets::Named { base: 0x100, mask: 0b11 }, &[0, 1]),
        (0, IpiTargets::Named { base: 0x100, mask: 0b111 }, &[]),
        (0, IpiTargets::Named { base: 0x1c1, mask: 1 << 63 }, &[2]),
        (0, IpiTargets::Named { base: 0, mask: u64::MAX }, &[]),
        (0, IpiTargets::Named { base: u64::MAX, mask: u64::MAX }, &[]),
    ] {
        assert_eq!(receivers(&vm, from, targets), want, "{from} {targets:?}");
    }
}

#[test]
fn a_vector_that_does_not_exist_reaches_nobody() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    for vector in [1024, 1 << 32, u64::MAX] {
        play(&vm, [Step::Exit(VcpuExit::SendIpi { targets: IpiTargets::All, vector })]);
    }
    assert_eq!(vm.events(VcpuEvent::InterruptInjected), 0);
}
