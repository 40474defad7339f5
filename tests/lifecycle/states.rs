//! Calls in the wrong state are refused and change nothing.

use axerrno::{AxError, AxErrorKind};
use axvm::{
    vcpu::{AxArchVCpu, AxVCpuExitReason, AxVMPerCpu, VCpuState, VcpuExit},
    vm::{AxVM, VMStatus},
};
use axvm_testkit::{
    Event, KICK_VECTOR, MockHal, Program, Step, TestVm, VM, X86Like, booted, created, mock_hal,
    on_pcpu, test_config,
};

const BAD_STATE: AxError = AxError::BadState;

/// That `run_vcpu` is refused and that neither backend nor guest was touched but for the bind.
#[track_caller]
fn refused<H: MockHal>(vm: &TestVm<H>, vcpu: usize) {
    let program: Program = H::machine().program(VM, vcpu);
    let (steps, status) = (program.len(), vm.status());
    let state = vm.vcpu(vcpu).unwrap().state();
    let frames = H::machine().arena().allocated();
    H::machine().take_trace();
    assert_eq!(vm.run_vcpu(vcpu), Err(BAD_STATE));
    let touched = H::machine().events(VM, vcpu);
    assert!(
        touched.iter().all(|event| matches!(event, Event::Bind | Event::Unbind)),
        "{touched:?}"
    );
    assert_eq!(program.len(), steps);
    assert_eq!((vm.status(), vm.vcpu(vcpu).unwrap().state()), (status, state));
    assert_eq!(H::machine().arena().allocated(), frames);
}

#[test]
fn boot_asks_for_hardware_support() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().set_hardware_support(false);
    let vm = created::<Hal>(test_config(1));
    assert_eq!(vm.boot(), Err(AxError::Unsupported));
    assert_eq!(vm.status(), VMStatus::Created);
    Hal::machine().set_hardware_support(true);
    assert_eq!(vm.boot(), Ok(()));
    assert!(vm.running() && !vm.shutting_down());
    assert_eq!(vm.boot(), Err(BAD_STATE));
    assert!(vm.running());
}

#[test]
fn a_vm_runs_neither_before_boot_nor_after_shutdown() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    Hal::machine().program(VM, 0).push(Step::call(|_| panic!("the guest runs")));
    refused(&vm, 0);
    vm.boot().unwrap();
    vm.shutdown().unwrap();
    refused(&vm, 0);
    assert_eq!(vm.status(), VMStatus::Terminated);
}

#[test]
fn a_vcpu_runs_once_at_a_time() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    Hal::machine().program(VM, 0).push(Step::SpinUntilKicked);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| on_pcpu(1, || vm.run_vcpu(0)));
        Hal::machine().wait_in_guest(VM, 0);
        let vcpu = vm.vcpu(0).unwrap();
        for _ in 0..100 {
            assert_eq!(vm.run_vcpu(0), Err(BAD_STATE));
            assert_eq!(vm.vcpu_state(0).err(), Some(BAD_STATE));
            assert_eq!(vcpu.state(), VCpuState::Running);
        }
        vm.inject_interrupt_to_vcpu(0, 33).unwrap();
        let exit = AxVCpuExitReason::ExternalInterrupt { vector: KICK_VECTOR };
        assert_eq!(runner.join().unwrap(), Ok(exit));
        assert_eq!(vcpu.state(), VCpuState::Free);
    });
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
}

#[test]
fn a_cpu_without_virtualization_runs_nothing() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    type Vcpu = X86Like<Hal>;
    let vm = AxVM::<Hal, Vcpu>::new(test_config(1)).unwrap();
    vm.boot().unwrap();
    let mut cpu = AxVMPerCpu::<Vcpu>::new(0).unwrap();
    assert!(!cpu.is_enabled());
    refused(&vm, 0);
    assert_eq!(vm.vcpu_state(0).err(), Some(BAD_STATE));
    let state = axvm_testkit::ScriptedState::default();
    assert_eq!(vm.set_vcpu_state(0, &state), Err(BAD_STATE));
    assert!(!Hal::machine().events(VM, 0).contains(&Event::Bind));
    cpu.hardware_enable().unwrap();
    assert_eq!(cpu.hardware_enable(), Err(BAD_STATE));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(on_pcpu(1, || vm.run_vcpu(0)), Err(BAD_STATE), "another CPU");
    assert_eq!(on_pcpu(usize::MAX, || vm.run_vcpu(0)), Err(BAD_STATE), "no CPU that is known");
    cpu.hardware_disable().unwrap();
    assert_eq!(cpu.hardware_disable(), Err(BAD_STATE));
    refused(&vm, 0);
}

#[test]
fn a_cpu_that_refuses_to_switch_stays_as_it_is() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    type Vcpu = X86Like<Hal>;
    use axvm_testkit::Call;
    assert_eq!(AxVMPerCpu::<Vcpu>::new(256).err(), Some(AxError::InvalidInput));
    let mut cpu = AxVMPerCpu::<Vcpu>::new(0).unwrap();
    Hal::machine().fail_next(Call::Enable, AxErrorKind::Unsupported);
    assert_eq!(cpu.hardware_enable(), Err(AxError::Unsupported));
    assert!(!cpu.is_enabled() && !Vcpu::hardware().is_enabled(0));
    cpu.hardware_enable().unwrap();
    Hal::machine().fail_next(Call::Disable, AxErrorKind::Io);
    assert_eq!(cpu.hardware_disable(), Err(AxErrorKind::Io.into()));
    assert!(cpu.is_enabled() && Vcpu::hardware().is_enabled(0));
    cpu.hardware_disable().unwrap();
    assert!(!cpu.is_enabled() && !Vcpu::hardware().is_enabled(0));
}

#[test]
fn a_vcpu_that_is_off_does_not_run() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    refused(&vm, 1);
    Hal::machine().program(VM, 0).push(Step::Exit(VcpuExit::CpuDown));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuDown));
    refused(&vm, 0);
}

#[test]
fn a_vcpu_that_does_not_exist_is_invalid() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    for vcpu in [2, 63, 64, usize::MAX] {
        assert_eq!(vm.run_vcpu(vcpu), Err(AxError::InvalidInput));
        assert_eq!(vm.complete(vcpu, 0), Err(AxError::InvalidInput));
        assert_eq!(vm.vcpu_state(vcpu).err(), Some(AxError::InvalidInput));
        assert_eq!(vm.next_deadline(vcpu), None);
        assert!(vm.vcpu(vcpu).is_none());
    }
    assert_eq!((vm.vcpu_num(), vm.vcpu_list().len()), (2, 2));
}

#[test]
fn an_interrupt_reaches_a_vcpu_of_another_vm() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let machine = Hal::machine();
    let first = booted::<Hal>(test_config(1));
    let mut config = test_config(2);
    config.id = 7;
    let second = booted::<Hal>(config);
    // From within a guest of the first, by the host's own way in.
    let target = second.clone();
    machine.on_inject(move |vm, vcpu, irq| {
        assert_eq!(vm, 7);
        target.inject_interrupt_to_vcpu(vcpu, irq)
    });
    machine.program(VM, 0).push(Step::call(|_| {
        use axvm::AxVMHal;
        assert_eq!(Hal::inject_irq_to_vcpu(7, 0, 40), Ok(()));
    }));
    assert_eq!(first.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(second.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert!(machine.events(7, 0).contains(&Event::IrqTaken(40)));
    assert!(!machine.events(VM, 0).contains(&Event::IrqTaken(40)));
    machine.take_injections();
    first.inject_interrupt_to_vcpu(0, 41).unwrap();
    assert_eq!(machine.take_injections(), [], "the crate does not call the documented item");
    machine.on_inject(|_, _, _| Ok(()));
}
