//! Suspension by a call of the firmware's.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use axerrno::AxError;
use axvm::{
    config::VmMemMappingType::MapAlloc,
    mm::{GuestPhysAddr, MappingFlags},
    vcpu::{AxVCpuExitReason, CpuPower, CpuUpError, VcpuExit},
};
use axvm_testkit::{
    Call, Event, MockHal, Step, VM, cpu_status_code, cpu_up_code, mock_hal, on_pcpu, test_config,
};

use crate::support::{HALT, ask, play, preset, reg, start};

mock_hal!(struct Hal { arena: 4 << 20 });

const RETENTIVE: VcpuExit = VcpuExit::CpuSuspend { resume: None };

fn to(entry: usize) -> VcpuExit {
    VcpuExit::CpuSuspend { resume: Some((GuestPhysAddr::from_usize(entry), 0x55)) }
}

#[test]
fn a_vcpu_that_keeps_its_state_sleeps_and_goes_on_behind_the_call() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let program = Hal::machine().program(VM, 0);
    program.extend([preset(9, 7), Step::Exit(RETENTIVE), preset(8, 6)]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((program.len(), vm.has_work(0)), (1, false));
    assert_eq!(Hal::machine().take_wakes(), []);
    vm.inject_interrupt_to_vcpu(0, 40).unwrap();
    assert_eq!(Hal::machine().take_wakes(), [(VM, 0)]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((reg(&vm, 9), reg(&vm, 8)), (7, 6));
}

#[test]
fn a_vcpu_that_loses_its_state_begins_at_its_entry() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    play(&vm, [preset(9, 7), Step::Exit(to(0x6000))]);
    assert_eq!(vm.vcpu_state(0).unwrap().regs[9], 0);
    vm.inject_interrupt_to_vcpu(0, 40).unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    let state = vm.vcpu_state(0).unwrap();
    assert_eq!((state.pc, state.regs[0], state.regs[9]), (0x6000, 0x55, 0));
}

#[test]
fn a_place_where_the_guest_cannot_begin_is_refused_and_nothing_is_lost() {
    let read_only = MappingFlags::READ | MappingFlags::WRITE;
    let config = test_config(1).with_memory(0x1_0000, 0x1000, read_only, MapAlloc);
    let (vm, _turn) = start::<Hal>(config);
    let refused = cpu_up_code(Err(CpuUpError::InvalidAddress));
    let still_on = |steps| {
        play(&vm, steps);
        assert_eq!((reg(&vm, 0), reg(&vm, 9), reg(&vm, 8)), (refused, 7, 6));
        let status = ask(&vm, VcpuExit::CpuStatus { target_cpu: 0 });
        assert_eq!(status, cpu_status_code(Some(CpuPower::On)));
    };
    for entry in [0, 0x3fff, 0x8000, 0x1_0000, 1 << 40, usize::MAX] {
        still_on([preset(9, 7), Step::Exit(to(entry)), preset(8, 6)]);
    }
    // The architecture may have more to object to.
    Hal::machine().fail_next(Call::Resume, AxError::InvalidInput);
    still_on([preset(9, 7), Step::Exit(to(0x4001)), preset(8, 6)]);
    let resumed = |event| matches!(event, Event::Resume(..));
    assert!(!Hal::machine().events(VM, 0).into_iter().any(resumed));
}

#[test]
fn a_suspension_that_failed_is_tried_again() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    Hal::machine().program(VM, 0).extend([preset(9, 7), Step::Exit(to(0x6000)), preset(8, 6)]);
    Hal::machine().fail_next(Call::Resume, AxError::NoMemory);
    assert_eq!(vm.run_vcpu(0), Err(AxError::NoMemory));
    assert_eq!(reg(&vm, 9), 7);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(Hal::machine().program(VM, 0).len(), 1, "asleep");
    assert_eq!(reg(&vm, 9), 0);
}

#[test]
fn an_interrupt_that_is_pending_ends_a_suspension_at_once() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    for suspend in [RETENTIVE, to(0x6000)] {
        Hal::machine().set_irq_busy(VM, 0, true);
        vm.inject_interrupt_to_vcpu(0, 40).unwrap();
        let call = VcpuExit::Hypercall { nr: 1, args: [0; 6] };
        Hal::machine().program(VM, 0).extend([Step::Exit(suspend), Step::Exit(call)]);
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })), "{suspend:?}");
        vm.complete(0, 0).unwrap();
        Hal::machine().set_irq_busy(VM, 0, false);
        assert_eq!(vm.run_vcpu(0), HALT);
        let events = Hal::machine().take_trace();
        assert!(events.iter().any(|record| record.event == Event::IrqTaken(40)));
        assert_eq!(
            ask(&vm, VcpuExit::CpuStatus { target_cpu: 0 }),
            cpu_status_code(Some(CpuPower::On))
        );
    }
}

#[test]
fn a_timer_outlasts_the_loss_of_the_state_and_ends_the_suspension() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let program = Hal::machine().program(VM, 0);
    for (suspend, deadline) in [(RETENTIVE, 500), (to(0x6000), 1000)] {
        program.push(Step::call(move |guest| *guest.deadline = Some(deadline)));
        program.extend([Step::Exit(suspend), preset(8, 6)]);
        assert_eq!(vm.run_vcpu(0), HALT);
        assert_eq!((program.len(), vm.next_deadline(0)), (1, Some(deadline)), "{suspend:?}");
        Hal::machine().set_time(deadline);
        // Due before it sleeps: it does not.
        program.push(Step::Exit(suspend));
        program.push(Step::call(|guest| *guest.deadline = None));
        loop {
            match vm.run_vcpu(0) {
                // The interrupt of the host's own timer.
                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {}
                other => break assert_eq!(other, HALT),
            }
        }
        assert!(program.is_empty(), "{suspend:?}");
    }
}

#[test]
fn no_wake_up_is_lost_between_the_call_and_the_sleep() {
    const ROUNDS: usize = 5_000;
    let (vm, _turn) = start::<Hal>(test_config(1));
    let machine = Hal::machine();
    machine.set_tracing(false);
    let mut turn = 0;
    machine.program(VM, 0).push(Step::guest(move |_| {
        turn += 1;
        if turn % 2 == 0 { RETENTIVE } else { to(0x6000) }
    }));
    let (sent, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            on_pcpu(1, || {
                for round in 1..=ROUNDS {
                    machine.wait_until("the guest to wake", || seen.load(SeqCst) + 1 >= round);
                    sent.store(round, SeqCst);
                    vm.inject_interrupt_to_vcpu(0, 40 + round % 8).unwrap();
                }
            });
        });
        let mut asleep = false;
        while seen.load(SeqCst) < ROUNDS {
            if asleep {
                let mut wakes = 0;
                machine.wait_until("a wake-up", || {
                    wakes += machine.take_wakes().len();
                    wakes > 0
                });
                assert_eq!(wakes, 1, "one wake-up for one sleep");
            }
            let before = sent.load(SeqCst);
            match vm.run_vcpu(0) {
                Ok(AxVCpuExitReason::Halt) => asleep = true,
                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {
                    asleep = false;
                    continue;
                }
                other => panic!("{other:?}"),
            }
            seen.fetch_max(before, SeqCst);
        }
    });
    machine.set_tracing(true);
}
