//! An error on the way through `run_vcpu` leaves the vCPU unbound and usable.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use axerrno::{AxError, AxErrorKind, AxResult};
use axvm::{
    irq::{EntryState, InterruptController, IrqHw, IrqInput, VcpuNotifier},
    vcpu::{AccessWidth, AxVCpuExitReason, VCpuState, VcpuExit},
    vm::{AxVM, VMStatus},
};
use axvm_testkit::{
    Call, Event, MockHal, RAM, Step, TestVm, VM, X86Like, booted, created, enable_pcpus, mock_hal,
    test_config,
};

const HALT: AxResult<AxVCpuExitReason> = Ok(AxVCpuExitReason::Halt);

fn io() -> AxError {
    AxErrorKind::Io.into()
}

#[track_caller]
fn unbound<H: MockHal>(vm: &TestVm<H>, vcpu: usize) {
    assert_eq!(vm.vcpu(vcpu).unwrap().state(), VCpuState::Free);
    assert_eq!(H::machine().residence(VM, vcpu), None);
    assert_eq!(vm.status(), VMStatus::Running);
}

#[test]
fn a_failed_bind_leaves_the_vcpu_free() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    for _ in 0..3 {
        Hal::machine().fail_next(Call::Bind, AxErrorKind::Io);
        assert_eq!(vm.run_vcpu(0), Err(io()));
        unbound(&vm, 0);
    }
    assert_eq!(vm.run_vcpu(0), HALT);
}

#[test]
fn a_failed_run_leaves_the_vcpu_unbound() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let program = Hal::machine().program(VM, 0);
    for _ in 0..3 {
        Hal::machine().fail_next(Call::Run, AxErrorKind::Io);
        assert_eq!(vm.run_vcpu(0), Err(io()));
        unbound(&vm, 0);
        program.push(Step::Fail(AxErrorKind::ResourceBusy.into()));
        assert_eq!(vm.run_vcpu(0), Err(AxErrorKind::ResourceBusy.into()));
        unbound(&vm, 0);
    }
    assert_eq!(vm.run_vcpu(0), HALT);
}

#[test]
fn a_failed_completion_leaves_the_vcpu_unbound_and_the_instruction_is_executed_again() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    Hal::machine().program(VM, 0).push(Step::load(0x10_0000, AccessWidth::Word, 3));
    Hal::machine().fail_next(Call::Complete, AxErrorKind::Io);
    assert_eq!(vm.run_vcpu(0), Err(io()));
    unbound(&vm, 0);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(vm.vcpu_state(0).unwrap().regs[3], 0xffff);
}

#[test]
fn a_failed_completion_of_the_host_s_answer_does_not_lose_it() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let call = VcpuExit::Hypercall { nr: 9, args: [1; 6] };
    let reason = Ok(AxVCpuExitReason::Hypercall { nr: 9, args: [1; 6] });
    Hal::machine().program(VM, 0).push(Step::Exit(call));
    assert_eq!(vm.run_vcpu(0), reason);
    vm.complete(0, 5).unwrap();
    Hal::machine().fail_next(Call::Complete, AxErrorKind::Io);
    assert_eq!(vm.run_vcpu(0), Err(io()));
    unbound(&vm, 0);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(vm.vcpu_state(0).unwrap().regs[0], 5);
    assert_eq!(vm.complete(0, 6), Err(AxError::BadState));
}

#[test]
fn a_failed_power_on_leaves_the_vcpu_to_be_started() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: RAM.into(), arg: 77 };
    Hal::machine().program(VM, 0).push(Step::Exit(up));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { target_cpu: 1, .. })));
    for _ in 0..2 {
        Hal::machine().fail_next(Call::PowerOn, AxErrorKind::Io);
        assert_eq!(vm.run_vcpu(1), Err(io()));
        unbound(&vm, 1);
    }
    assert_eq!(vm.run_vcpu(1), HALT);
    assert_eq!(vm.vcpu_state(1).unwrap().regs[0], 77);
}

#[test]
fn a_vcpu_that_cannot_begin_where_it_was_told_to_is_off_and_may_be_started_elsewhere() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    for _ in 0..2 {
        let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: RAM.into(), arg: 77 };
        Hal::machine().program(VM, 0).push(Step::Exit(up));
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { target_cpu: 1, .. })));
        Hal::machine().fail_next(Call::PowerOn, AxErrorKind::InvalidInput);
        assert_eq!(vm.run_vcpu(1), Err(AxError::InvalidInput));
        assert_eq!(vm.run_vcpu(1), Err(AxError::BadState));
    }
    let nowhere = VcpuExit::CpuUp { target_cpu: 1, entry_point: 0x7_0000_0000.into(), arg: 77 };
    Hal::machine().program(VM, 0).push(Step::Exit(nowhere));
    assert_eq!(vm.run_vcpu(0), HALT, "the guest is told that the address is invalid");
}

#[test]
fn a_failed_unbind_loses_the_vcpu_until_a_reset_and_nothing_else() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    Hal::machine().fail_next(Call::Unbind, AxErrorKind::Io);
    assert_eq!(vm.run_vcpu(0), Err(io()));
    assert_eq!(vm.vcpu(0).unwrap().state(), VCpuState::Invalid);
    assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
    assert_eq!(vm.vcpu(0).unwrap().state(), VCpuState::Invalid);
    assert_eq!((vm.shutdown(), vm.wait_terminated()), (Ok(()), Ok(())));
    vm.reset().unwrap();
    vm.boot().unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    drop(vm);
    Hal::machine().assert_balanced();
}

#[test]
fn a_failed_state_call_leaves_the_vcpu_as_it_was() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    let mut state = vm.vcpu_state(0).unwrap();
    state.regs[4] = 4;
    Hal::machine().fail_next(Call::SetState, AxErrorKind::InvalidInput);
    assert_eq!(vm.set_vcpu_state(0, &state), Err(AxError::InvalidInput));
    assert_eq!(vm.vcpu(0).unwrap().state(), VCpuState::Free);
    assert_eq!(vm.vcpu_state(0).unwrap().regs[4], 0);
    vm.set_vcpu_state(0, &state).unwrap();
    assert_eq!(vm.vcpu_state(0).unwrap(), state);
}

#[test]
fn a_state_that_is_set_waits_for_no_answer_of_the_old_one() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let state = vm.vcpu_state(0).unwrap();
    Hal::machine().program(VM, 0).push(Step::Exit(VcpuExit::Hypercall { nr: 9, args: [1; 6] }));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
    vm.set_vcpu_state(0, &state).unwrap();
    assert_eq!(vm.complete(0, 1), Err(AxError::BadState));
    assert_eq!(vm.run_vcpu(0), HALT);
}

/// A controller that fails when told to.
struct Stubborn {
    fails: AtomicBool,
    pending: AtomicBool,
    notifier: Arc<dyn VcpuNotifier>,
}

impl IrqInput for Stubborn {
    fn set_level(&self, _: usize, _: bool) -> AxResult {
        Ok(())
    }

    fn pulse(&self, _: usize) -> AxResult {
        Ok(())
    }
}

impl<Hw: IrqHw + ?Sized> InterruptController<Hw> for Stubborn {
    fn inject(&self, vcpu: usize, _: usize) -> AxResult {
        self.pending.store(true, SeqCst);
        self.notifier.notify(vcpu);
        Ok(())
    }

    fn pending(&self, _: usize) -> bool {
        self.pending.load(SeqCst)
    }

    fn before_entry(&self, _: usize, hw: &mut Hw) -> AxResult<EntryState> {
        if self.fails.swap(false, SeqCst) {
            return Err(io());
        }
        if self.pending.swap(false, SeqCst) {
            hw.inject(50)?;
        }
        Ok(EntryState::default())
    }

    fn after_exit(&self, _: usize, _: &mut Hw) {}

    fn reset(&self) {}
}

#[test]
fn a_failing_interrupt_controller_loses_no_interrupt() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    enable_pcpus::<X86Like<Hal>>(1);
    let vm: TestVm<Hal> = AxVM::with_controller(test_config(1), |notifier| {
        let (fails, pending) = (AtomicBool::new(true), AtomicBool::new(false));
        Ok(Arc::new(Stubborn { fails, pending, notifier }))
    })
    .unwrap();
    vm.boot().unwrap();
    vm.inject_interrupt_to_vcpu(0, 1).unwrap();
    assert_eq!(vm.run_vcpu(0), Err(io()));
    unbound(&vm, 0);
    assert!(vm.has_work(0));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert!(Hal::machine().events(VM, 0).contains(&Event::IrqTaken(50)));
}

#[test]
fn a_controller_that_cannot_be_made_leaves_nothing_behind() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let made = AxVM::<Hal, X86Like<Hal>>::with_controller(test_config(2), |_| Err(io()));
    assert_eq!(made.err(), Some(io()));
    Hal::machine().assert_balanced();
}
