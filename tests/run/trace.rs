//! The host sees each exit, and arms its timer where the guest's needs it.

use std::sync::Mutex;

use axvm::vcpu::{AccessWidth, VcpuExit};
use axvm_testkit::{
    Event, Machine, MachineConfig, MockHal, RAM, Step, VM, forward_hal, mock_hal, test_config,
};

use crate::support::{HALT, preset, start, start_vcpu};

/// A HAL that writes down what it is shown.
#[derive(Clone, Copy, Debug)]
struct Tracing;

static SEEN: Mutex<Vec<(usize, usize, VcpuExit)>> = Mutex::new(Vec::new());

impl MockHal for Tracing {
    fn machine() -> &'static Machine {
        static MACHINE: std::sync::OnceLock<Machine> = std::sync::OnceLock::new();
        MACHINE.get_or_init(|| {
            Machine::new(MachineConfig { arena: 4 << 20, ..MachineConfig::DEFAULT })
        })
    }
}

forward_hal!(Tracing
    fn trace_exit(vm_id: usize, vcpu_id: usize, exit: &VcpuExit) {
        assert_eq!(Self::machine().bound_on(axvm_testkit::pcpu()), Some((vm_id, vcpu_id)));
        SEEN.lock().unwrap().push((vm_id, vcpu_id, *exit));
    }
);

#[test]
fn the_host_sees_each_exit_once_in_order_whoever_serves_it() {
    let (vm, _turn) = start::<Tracing>(test_config(2));
    SEEN.lock().unwrap().clear();
    start_vcpu(&vm, 1, 1);
    let load = |gpa| Step::load(gpa, AccessWidth::Dword, 3);
    let call = VcpuExit::Hypercall { nr: 7, args: [1; 6] };
    for vcpu in [0, 1, 0] {
        let steps = [
            load(0x10_0000),
            load(RAM),
            Step::Exit(VcpuExit::Nothing),
            Step::Exit(call),
            load(0x10_0000),
            preset(1, 1),
        ];
        Tracing::machine().program(VM, vcpu).extend(steps);
        assert!(vm.run_vcpu(vcpu).is_ok());
        vm.complete(vcpu, 0).unwrap();
        assert_eq!(vm.run_vcpu(vcpu), HALT);
    }
    let seen = std::mem::take(&mut *SEEN.lock().unwrap());
    let left = |record: axvm_testkit::Record| match record.event {
        Event::Exit(exit) => Some((record.vm, record.vcpu, exit)),
        _ => None,
    };
    let exits: Vec<_> = Tracing::machine().take_trace().into_iter().filter_map(left).collect();
    assert_eq!(seen, exits);
    assert_eq!(seen.len(), 2 + 3 * 5);
    for vcpu in 0..2 {
        let own = seen.iter().filter(|&&(_, by, _)| by == vcpu).count() as u64;
        assert_eq!(own, vm.vcpu(vcpu).unwrap().stats().total_exits());
    }
}

mock_hal!(struct Hal { arena: 4 << 20 });

#[test]
fn a_timer_that_the_hardware_delivers_needs_none_of_the_hosts_while_the_guest_runs() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let (machine, program) = (Hal::machine(), Hal::machine().program(VM, 0));
    let alarm = |at| Step::call(move |guest| *guest.deadline = Some(at));
    machine.set_times_guests(true);
    program.extend([alarm(500), Step::Exit(VcpuExit::Nothing)]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((machine.take_timers(), vm.next_deadline(0)), (vec![], Some(500)));
    // Where it does not, once per deadline.
    machine.set_times_guests(false);
    let nothing = || Step::Exit(VcpuExit::Nothing);
    program.extend([nothing(), nothing(), alarm(700), nothing(), nothing(), alarm(600), nothing()]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(machine.take_timers(), [(0, 500), (0, 700), (0, 600)]);
    assert_eq!(vm.next_deadline(0), Some(600));
}
