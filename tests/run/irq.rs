//! Interrupts from the host and from devices, and timers.

use axerrno::AxError;
use axvm::{
    irq::{IrqLine, Trigger},
    vcpu::{AxVCpuExitReason, CpuMask, VcpuEvent, VcpuExit},
};
use axvm_testkit::{
    Event, KICK_VECTOR, MockHal, Step, TIMER_VECTOR, VM, mock_hal, on_pcpu, test_config,
};

use crate::support::{HALT, start};

mock_hal!(struct Hal { arena: 4 << 20 });

/// The interrupts that vCPU 0 took since the last call.
fn taken() -> Vec<usize> {
    let irq = |record: axvm_testkit::Record| match record.event {
        Event::IrqTaken(irq) if record.vcpu == 0 => Some(irq),
        _ => None,
    };
    Hal::machine().take_trace().into_iter().filter_map(irq).collect()
}

#[test]
fn an_injection_names_vcpus_and_numbers_that_exist_or_nobody_gets_it() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    assert_eq!(vm.inject_interrupt_to_vcpu(CpuMask::default(), 40), Err(AxError::InvalidInput));
    assert_eq!(vm.inject_interrupt_to_vcpu(64, 40), Err(AxError::InvalidInput));
    assert_eq!(vm.inject_interrupt_to_vcpu(2, 40), Err(AxError::NotFound));
    let both = CpuMask::from_bits(0b101);
    assert_eq!(vm.inject_interrupt_to_vcpu(both, 40), Err(AxError::NotFound));
    for irq in [1024, usize::MAX] {
        assert_eq!(vm.inject_interrupt_to_vcpu(0, irq), Err(AxError::InvalidInput));
    }
    assert_eq!(vm.events(VcpuEvent::InterruptInjected), 0);
    assert!(!vm.has_work(0));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), []);
}

#[test]
fn interrupts_arrive_once_each_before_the_guest_goes_on() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    for irq in [40, 1023, 0, 64, 40] {
        vm.inject_interrupt_to_vcpu(0, irq).unwrap();
    }
    assert!(vm.has_work(0));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), [1023, 64, 40, 0]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), []);
}

#[test]
fn a_vcpu_in_the_guest_is_kicked_where_it_is() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    Hal::machine().program(VM, 0).push(Step::SpinUntilKicked);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            on_pcpu(3, || {
                let kicked = vm.run_vcpu(0);
                (kicked, vm.run_vcpu(0))
            })
        });
        Hal::machine().wait_in_guest(VM, 0);
        vm.inject_interrupt_to_vcpu(0, 44).unwrap();
        let kicked = Ok(AxVCpuExitReason::ExternalInterrupt { vector: KICK_VECTOR });
        assert_eq!(runner.join().unwrap(), (kicked, HALT));
    });
    assert_eq!(Hal::machine().take_kicks(), [3]);
    assert_eq!(taken(), [44]);
    // Outside the guest there is nobody to kick.
    vm.inject_interrupt_to_vcpu(0, 45).unwrap();
    assert_eq!(Hal::machine().take_kicks(), []);
}

#[test]
fn an_interrupt_that_the_hardware_cannot_take_now_is_delivered_later() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    Hal::machine().set_irq_busy(VM, 0, true);
    vm.inject_interrupt_to_vcpu(0, 50).unwrap();
    vm.inject_interrupt_to_vcpu(0, 49).unwrap();
    let call = VcpuExit::Hypercall { nr: 0, args: [0; 6] };
    let program = Hal::machine().program(VM, 0);
    for _ in 0..3 {
        program.push(Step::Exit(call));
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
        assert!(vm.has_work(0));
        vm.complete(0, 0).unwrap();
    }
    assert_eq!(taken(), []);
    // The guest opens its window: the backend exits, and both arrive, the highest first.
    program.push(Step::call(|_| Hal::machine().set_irq_busy(VM, 0, false)));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), [50, 49]);
    assert!(!vm.has_work(0));
}

#[test]
fn a_level_line_is_delivered_until_it_goes_low() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let line = IrqLine::new(vm.irq_input(), 36, Trigger::Level);
    line.assert().unwrap();
    line.assert().unwrap();
    let call = VcpuExit::Hypercall { nr: 0, args: [0; 6] };
    for _ in 0..3 {
        Hal::machine().program(VM, 0).push(Step::Exit(call));
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
        assert_eq!(taken(), [36]);
        assert!(vm.has_work(0));
        vm.complete(0, 0).unwrap();
    }
    line.deassert().unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), []);
    IrqLine::new(vm.irq_input(), 37, Trigger::Edge).assert().unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), [37]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(taken(), []);
    let lacking = IrqLine::new(vm.irq_input(), 1024, Trigger::Level);
    assert_eq!(lacking.assert(), Err(AxError::InvalidInput));
}

#[test]
fn a_reset_keeps_a_wire_s_level_and_forgets_edges() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let line = IrqLine::new(vm.irq_input(), 36, Trigger::Level);
    line.assert().unwrap();
    line.pulse().unwrap();
    vm.inject_interrupt_to_vcpu(0, 90).unwrap();
    vm.shutdown().unwrap();
    vm.reset().unwrap();
    vm.boot().unwrap();
    let program = Hal::machine().program(VM, 0);
    program.push(Step::Exit(VcpuExit::Hypercall { nr: 0, args: [0; 6] }));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
    assert_eq!(taken(), [36], "the wire is still high");
    line.deassert().unwrap();
    vm.complete(0, 0).unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
}

#[test]
fn a_deadline_arms_the_host_s_timer_and_is_told() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let machine = Hal::machine();
    let program = machine.program(VM, 0);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((vm.next_deadline(0), machine.take_timers()), (None, vec![]));
    program.push(Step::call(|guest| *guest.deadline = Some(500)));
    program.extend([Step::Exit(VcpuExit::Nothing), Step::Exit(VcpuExit::Nothing)]);
    assert_eq!(on_pcpu(2, || vm.run_vcpu(0)), HALT);
    assert_eq!(machine.take_timers(), [(2, 500)], "armed once, not at each entry");
    assert_eq!(vm.next_deadline(0), Some(500));
    // On another CPU it is armed there.
    program.push(Step::call(|_| Hal::machine().advance(500)));
    let due = Ok(AxVCpuExitReason::ExternalInterrupt { vector: TIMER_VECTOR });
    assert_eq!(on_pcpu(1, || vm.run_vcpu(0)), due);
    assert_eq!(machine.take_timers(), [(1, 500)]);
    assert_eq!(vm.next_deadline(0), Some(0), "it is due");
    // A vCPU whose timer is due does not halt.
    program.push(Step::Exit(VcpuExit::Halt));
    program.push(Step::call(|guest| *guest.deadline = None));
    assert_eq!(on_pcpu(3, || vm.run_vcpu(0)), HALT);
    assert!(program.is_empty());
}
