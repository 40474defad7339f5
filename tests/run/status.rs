//! What a guest is told about its vCPUs.

use axvm::vcpu::{AxVCpuExitReason, CpuPower, GuestFence, IpiTargets, VcpuEvent, VcpuExit};
use axvm_testkit::{
    Event, MockHal, NO_SUCH_CPU, Step, TestVm, VM, cpu_status_code, mock_hal, on_pcpu, test_config,
};

use crate::support::{HALT, ask, named, play, preset, reg, run_at_home, start, start_vcpu};

mock_hal!(struct Hal { arena: 4 << 20 });

#[track_caller]
fn says(vm: &TestVm<Hal>, target_cpu: u64, status: Option<CpuPower>) {
    assert_eq!(ask(vm, VcpuExit::CpuStatus { target_cpu }), cpu_status_code(status));
}

#[test]
fn the_guest_is_told_each_state_of_a_vcpu_by_its_name() {
    let (vm, _turn) = start::<Hal>(named());
    let program = Hal::machine().program(VM, 1);
    says(&vm, 0x100, Some(CpuPower::On));
    for _ in 0..2 {
        says(&vm, 0x101, Some(CpuPower::Off));
        start_vcpu(&vm, 0x101, 1);
        says(&vm, 0x101, Some(CpuPower::OnPending));
        assert_eq!(vm.run_vcpu(1), HALT);
        says(&vm, 0x101, Some(CpuPower::On));
        program.push(Step::Exit(VcpuExit::CpuSuspend { resume: None }));
        assert_eq!(vm.run_vcpu(1), HALT);
        says(&vm, 0x101, Some(CpuPower::Suspended));
        // Woken, it is so until it runs.
        vm.inject_interrupt_to_vcpu(1, 40).unwrap();
        says(&vm, 0x101, Some(CpuPower::Suspended));
        assert_eq!(vm.run_vcpu(1), HALT);
        says(&vm, 0x101, Some(CpuPower::On));
        program.push(Step::Exit(VcpuExit::CpuDown));
        assert_eq!(vm.run_vcpu(1), Ok(AxVCpuExitReason::CpuDown));
    }
    for unknown in [0, 1, 0x102, u64::MAX] {
        says(&vm, unknown, None);
    }
}

#[test]
fn a_vcpu_in_the_guest_is_on_whoever_asks() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    start_vcpu(&vm, 1, 1);
    let suspend = VcpuExit::CpuSuspend { resume: Some((0x5000.into(), 0)) };
    Hal::machine().program(VM, 1).extend([Step::Exit(suspend), Step::SpinUntilKicked]);
    std::thread::scope(|scope| {
        let sleeper = || on_pcpu(1, || vm.run_vcpu(1));
        assert_eq!(scope.spawn(sleeper).join().unwrap(), HALT);
        says(&vm, 1, Some(CpuPower::Suspended));
        let runner = scope.spawn(sleeper);
        Hal::machine().wait_in_guest(VM, 1);
        says(&vm, 1, Some(CpuPower::On));
        vm.inject_interrupt_to_vcpu(1, 40).unwrap();
        assert!(matches!(runner.join().unwrap(), Ok(AxVCpuExitReason::ExternalInterrupt { .. })));
    });
}

#[test]
fn a_call_that_names_a_vcpu_that_does_not_exist_reaches_nobody() {
    let (vm, _turn) = start::<Hal>(named());
    start_vcpu(&vm, 0x101, 1);
    start_vcpu(&vm, 0x200, 2);
    let others = || (run_at_home(&vm, 1), run_at_home(&vm, 2));
    assert_eq!(others(), (HALT, HALT));
    Hal::machine().take_trace();
    for (base, mask) in
        [(0x100, 0b111), (0, 1), (0, u64::MAX), (0x101, 1 << 63), (u64::MAX, 1), (0x200, 0b11)]
    {
        let targets = IpiTargets::Named { base, mask };
        let calls = [
            VcpuExit::SendIpi { targets, vector: 60 },
            VcpuExit::RemoteFence { targets, fence: GuestFence::Instructions },
        ];
        for call in calls {
            assert_eq!(ask(&vm, call), NO_SUCH_CPU, "{call:?}");
        }
    }
    assert_eq!(vm.events(VcpuEvent::InterruptInjected), 0);
    assert_eq!(others(), (HALT, HALT));
    let fenced = |event| matches!(event, Event::Fence(GuestFence::Instructions));
    assert!(!Hal::machine().trace().iter().any(|record| fenced(record.event)));
    // All that exist, and nobody at all, are no mistakes.
    for (base, mask) in [(0x100, 0b11), (0x1ff, 0b10), (0xffff_ffff_0000, 1), (7, 0)] {
        let targets = IpiTargets::Named { base, mask };
        let fence = VcpuExit::RemoteFence { targets, fence: GuestFence::Instructions };
        play(&vm, [preset(0, 1), Step::Exit(fence)]);
        assert_eq!(reg(&vm, 0), 1, "{base:#x} {mask:#b}");
    }
}
