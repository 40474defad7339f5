//! Sleep and wake-up.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use axvm::{
    irq::{IrqLine, Trigger},
    vcpu::{AxVCpuExitReason, VcpuExit},
};
use axvm_testkit::{MockHal, Step, VM, mock_hal, on_pcpu, set_pcpu, test_config};

use crate::support::{HALT, start};

mock_hal!(struct Hal { arena: 4 << 20 });

#[test]
fn a_halted_vcpu_is_woken_exactly_once() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let vcpu = vm.vcpu(0).unwrap();
    for _ in 0..3 {
        assert_eq!(vm.run_vcpu(0), HALT);
        assert!(!vm.has_work(vcpu.id()));
        assert_eq!(Hal::machine().take_wakes(), []);
        for irq in 40..45 {
            vm.inject_interrupt_to_vcpu(0, irq).unwrap();
        }
        assert_eq!(Hal::machine().take_wakes(), [(VM, 0)]);
        assert!(vm.has_work(vcpu.id()));
    }
    assert_eq!(vm.run_vcpu(0), HALT);
    vm.shutdown().unwrap();
    assert_eq!(Hal::machine().take_wakes(), [(VM, 0)], "the end of the VM is worth waking for");
}

#[test]
fn a_vcpu_that_has_not_halted_is_not_woken() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    vm.inject_interrupt_to_vcpu(0, 40).unwrap();
    let program = Hal::machine().program(VM, 0);
    program.push(Step::Exit(VcpuExit::Hypercall { nr: 1, args: [0; 6] }));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
    vm.inject_interrupt_to_vcpu(0, 41).unwrap();
    assert_eq!(Hal::machine().take_wakes(), []);
    vm.complete(0, 0).unwrap();
    // Run again by the host without being woken: nobody wakes it later for that halt.
    assert_eq!(vm.run_vcpu(0), HALT);
    program.push(Step::Exit(VcpuExit::Hypercall { nr: 1, args: [0; 6] }));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
    vm.inject_interrupt_to_vcpu(0, 42).unwrap();
    assert_eq!(Hal::machine().take_wakes(), []);
}

#[test]
fn an_interrupt_that_comes_while_the_guest_halts_keeps_it_awake() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let other = vm.clone();
    let program = Hal::machine().program(VM, 0);
    program.push(Step::call(move |_| other.inject_interrupt_to_vcpu(0, 40).unwrap()));
    program.push(Step::Exit(VcpuExit::Halt));
    program.push(Step::call(|guest| guest.regs[1] = 1));
    // The kick of the injection ends the first run.
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::ExternalInterrupt { .. })));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert!(!program.is_empty(), "that halt had nothing pending");
    vm.inject_interrupt_to_vcpu(0, 41).unwrap();
    assert_eq!(Hal::machine().take_wakes(), [(VM, 0)]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert!(program.is_empty());
}

#[test]
fn a_level_that_goes_low_while_the_guest_runs_does_not_end_its_sleep_unnoticed() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let line = IrqLine::new(vm.irq_input(), 36, Trigger::Level);
    line.assert().unwrap();
    // The entry finds it high; the device lowers it, on another CPU, and the guest halts.
    Hal::machine().program(VM, 0).push(Step::call(move |_| line.deassert().unwrap()));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert!(!vm.has_work(0));
    vm.inject_interrupt_to_vcpu(0, 40).unwrap();
    assert_eq!(Hal::machine().take_wakes(), [(VM, 0)], "the host waits for this");
}

#[test]
fn no_wake_up_is_lost_against_an_injector() {
    const ROUNDS: usize = 10_000;
    let (vm, _turn) = start::<Hal>(test_config(1));
    let machine = Hal::machine();
    machine.set_tracing(false);
    let sent = AtomicUsize::new(0);
    let seen = AtomicUsize::new(0);
    // Both CPUs of the host: one runs the vCPU when it is woken, and only then.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            on_pcpu(1, || {
                for round in 1..=ROUNDS {
                    // Not before the last one was seen: each round has one chance to be lost.
                    machine.wait_until("the guest to wake", || seen.load(SeqCst) + 1 >= round);
                    sent.store(round, SeqCst);
                    vm.inject_interrupt_to_vcpu(0, 40 + round % 8).unwrap();
                }
            });
        });
        set_pcpu(0);
        let mut wakes = 0;
        let mut halted = false;
        while seen.load(SeqCst) < ROUNDS {
            if halted {
                machine.wait_until("a wake-up", || {
                    wakes += machine.take_wakes().len();
                    wakes > 0
                });
                assert_eq!(wakes, 1, "one wake-up for one halt");
                wakes = 0;
                assert!(vm.has_work(0));
            }
            let before = sent.load(SeqCst);
            match vm.run_vcpu(0) {
                Ok(AxVCpuExitReason::Halt) => halted = true,
                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {
                    halted = false;
                    continue;
                }
                other => panic!("{other:?}"),
            }
            seen.fetch_max(before, SeqCst);
        }
    });
    machine.set_tracing(true);
}
