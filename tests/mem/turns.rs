//! vCPUs that take turns on physical CPUs: none uses what another, or itself elsewhere, cached of
//! the guest's own page tables. The kit looks at each entry.

use axerrno::AxError;
use axvm::vcpu::{GuestFence, IpiTargets};
use axvm_testkit::{Call, Event, MockHal, Record, on_pcpu};

use crate::*;

for_each_kind! {
    vcpus_in_turns_on_one_cpu_fence_at_each_turn,
    a_vcpu_alone_on_a_cpu_fences_once,
    a_turn_that_did_not_come_to_run_does_not_count,
    vcpus_that_move_about_and_fail_meet_no_stage_1_of_others,
}

/// A VM with three vCPUs that are on.
fn three<H: MockHal, A: Kind>() -> AxVMRef<H, A> {
    let vm = boot::<H, A>(AxVMConfig::new(1, "turns").with_cpus(3));
    H::machine().take_trace();
    vm
}

/// Runs a vCPU to its halt; whether it forgot translations before it entered the guest.
#[track_caller]
fn turn<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize) -> bool {
    H::machine().take_trace();
    finish(vm, vcpu);
    let matters = |record: Record| match record.event {
        Event::Enter | Event::Fence(_) => Some(record.event),
        _ => None,
    };
    let course: Vec<_> = H::machine().take_trace().into_iter().filter_map(matters).collect();
    match course[..] {
        [Event::Enter] => false,
        [
            Event::Fence(GuestFence::Instructions),
            Event::Fence(GuestFence::Translations),
            Event::Enter,
        ] => true,
        _ => panic!("{course:?}"),
    }
}

fn vcpus_in_turns_on_one_cpu_fence_at_each_turn<H: MockHal, A: Kind>() {
    let vm = three::<H, A>();
    turn(&vm, 0);
    for _ in 0..5 {
        assert!(turn(&vm, 1) && turn(&vm, 2) && turn(&vm, 0));
        // A second run in a row is no turn.
        assert!(!turn(&vm, 0));
    }
}

fn a_vcpu_alone_on_a_cpu_fences_once<H: MockHal, A: Kind>() {
    let vm = three::<H, A>();
    for vcpu in 0..3 {
        on_pcpu(vcpu + 1, || assert!(turn(&vm, vcpu), "its first time here"));
    }
    for _ in 0..5 {
        (0..3).for_each(|vcpu| on_pcpu(vcpu + 1, || assert!(!turn(&vm, vcpu))));
    }
}

fn a_turn_that_did_not_come_to_run_does_not_count<H: MockHal, A: Kind>() {
    let vm = three::<H, A>();
    finish(&vm, 1);
    finish(&vm, 0);
    vm.inject_interrupt_to_vcpu(1, 40).unwrap();
    H::machine().fail_next(Call::Inject, AxError::Io);
    assert_eq!(vm.run_vcpu(1), Err(AxError::Io));
    // What it was to forget there, it does not forget elsewhere.
    on_pcpu(1, || finish(&vm, 1));
    assert!(turn(&vm, 1));
}

fn vcpus_that_move_about_and_fail_meet_no_stage_1_of_others<H: MockHal, A: Kind>() {
    let vm = three::<H, A>();
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 33) % below
    };
    for _ in 0..2000 {
        let (vcpu, cpu) = (next(3) as usize, next(3) as usize);
        on_pcpu(cpu, || match next(6) {
            0 => {
                H::machine().fail_next(Call::Bind, AxError::Io);
                assert_eq!(vm.run_vcpu(vcpu), Err(AxError::Io));
            }
            1 => {
                vm.inject_interrupt_to_vcpu(vcpu, 40).unwrap();
                H::machine().fail_next(Call::Inject, AxError::Io);
                assert!(vm.run_vcpu(vcpu).is_err());
                H::machine().fail_never();
            }
            2 => {
                H::machine().fail_next(Call::Run, AxError::Io);
                assert_eq!(vm.run_vcpu(vcpu), Err(AxError::Io));
            }
            3 => {
                let (targets, fence) = (IpiTargets::All, GuestFence::Translations);
                let call = VcpuExit::RemoteFence { targets, fence };
                steps(&vm, vcpu, [Step::Exit(call)]);
            }
            4 => change_a_mapping(&vm, vcpu),
            _ => finish(&vm, vcpu),
        });
    }
}

/// Has entries of the nested table forgotten, by range.
fn change_a_mapping<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize) {
    vm.memory().map_alloc(gpa(GPA), K4, RW, true).unwrap();
    assert_eq!(guest_load(vm, vcpu, GPA), 0);
    vm.unmap_region(gpa(GPA), K4).unwrap();
}
