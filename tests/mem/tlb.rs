//! The software TLB against unmapping and protecting while vCPUs run: no stale hit ever (the kit
//! panics at one), no frame freed too early or kept too long, and no flush for nothing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use axvm::{
    config::VmMemMappingType::{MapAlloc, MapLazy},
    mm::tlb::NestedTlb,
    vcpu::{Access, MemFault},
};
use axvm_testkit::{Flush, MockHal, Step, on_pcpu};

use crate::*;

for_each_kind! {
    a_frame_waits_until_the_vcpu_that_may_use_it_has_left,
    a_vcpu_that_entered_again_holds_up_nothing,
    a_vcpu_outside_holds_up_nothing,
    few_changes_are_flushed_by_range_and_many_at_once,
    a_vcpu_that_moves_finds_no_stale_entry,
    vcpus_that_share_a_cpu_find_no_stale_entry,
    nothing_is_flushed_at_entry_without_need,
    splitting_under_a_running_guest_breaks_before_it_makes,
    unmapping_under_running_guests_frees_no_frame_too_early,
}

/// A guest that loads from `at`, then stays inside until `go` is set, deaf to kicks.
fn load_and_stay(at: usize, inside: &Arc<AtomicBool>, go: &Arc<AtomicBool>) -> Step {
    let (inside, go) = (inside.clone(), go.clone());
    Step::call(move |guest| {
        guest.load(at, AccessWidth::Qword).expect("mapped");
        inside.store(true, SeqCst);
        guest.mmu.machine.wait_until("the test", || go.load(SeqCst));
    })
}

fn flags() -> (Arc<AtomicBool>, Arc<AtomicBool>) {
    Default::default()
}

fn a_frame_waits_until_the_vcpu_that_may_use_it_has_left<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "tlb").with_memory(GPA, 2 * K4, RW, MapAlloc));
    let machine = H::machine();
    assert_eq!(guest_load(&vm, 0, GPA), 0);
    for protect in [false, true] {
        let (inside, go) = flags();
        machine.program(1, 0).push(load_and_stay(GPA, &inside, &go));
        let before = machine.arena().allocated();
        std::thread::scope(|scope| {
            let vm = &vm;
            spawn(scope, 2, move || finish(vm, 0));
            machine.wait_until("the guest", || inside.load(SeqCst));
            assert!(vm.memory().is_settled());
            machine.take_kicks();
            if protect {
                vm.memory().protect(gpa(GPA), K4, R).unwrap();
            } else {
                vm.unmap_region(gpa(GPA), K4).unwrap();
            }
            let broadcast = A::Tlb::BROADCAST;
            assert_eq!(vm.memory().is_settled(), broadcast);
            assert_eq!(machine.take_kicks(), if broadcast { vec![] } else { vec![2] });
            let freed = before - machine.arena().allocated();
            assert_eq!(freed, usize::from(broadcast && !protect));
            go.store(true, SeqCst);
        });
        assert_eq!(before - machine.arena().allocated(), usize::from(!protect));
        assert!(vm.memory().is_settled());
        if !protect {
            assert_eq!(guest_load(&vm, 0, GPA), u64::MAX);
            vm.memory().map_alloc(gpa(GPA), K4, RW, true).unwrap();
        }
    }
}

fn a_vcpu_that_entered_again_holds_up_nothing<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "tlb").with_memory(GPA, 2 * K4, RW, MapAlloc));
    let machine = H::machine();
    let ((inside, go), (again, end)) = (flags(), flags());
    let before = machine.arena().allocated();
    machine.program(1, 0).extend([
        load_and_stay(GPA, &inside, &go),
        // An exit that the VM serves by itself.
        Step::load(GPA - K4, AccessWidth::Dword, 1),
        load_and_stay(GPA + K4, &again, &end),
    ]);
    std::thread::scope(|scope| {
        let vm = &vm;
        // The kick makes it return to the host, which comes back at once.
        spawn(scope, 3, move || finish(vm, 0));
        machine.wait_until("the guest", || inside.load(SeqCst));
        vm.unmap_region(gpa(GPA), K4).unwrap();
        go.store(true, SeqCst);
        machine.wait_until("the second entry", || again.load(SeqCst));
        assert!(machine.in_guest(3));
        assert!(vm.memory().is_settled());
        assert_eq!(machine.arena().allocated(), before - 1);
        end.store(true, SeqCst);
    });
}

fn a_vcpu_outside_holds_up_nothing<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "tlb").with_cpus(2).with_memory(
        GPA,
        64 * K4,
        RW,
        MapAlloc,
    ));
    for vcpu in 0..2 {
        on_pcpu(vcpu, || assert_eq!(guest_load(&vm, vcpu, GPA), 0));
    }
    let before = H::machine().arena().allocated();
    H::machine().take_kicks();
    vm.unmap_region(gpa(GPA), 3 * K4).unwrap();
    assert_eq!(H::machine().arena().allocated(), before - 3);
    assert!(vm.memory().is_settled());
    assert_eq!(H::machine().take_kicks(), []);
    for vcpu in 0..2 {
        on_pcpu(vcpu, || assert_eq!(guest_load(&vm, vcpu, GPA), u64::MAX));
    }
}

fn few_changes_are_flushed_by_range_and_many_at_once<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "log").with_memory(GPA, 256 * K4, RW, MapAlloc));
    let machine = H::machine();
    let touch = |pages: usize| (0..pages).map(|n| Step::load(GPA + n * K4, AccessWidth::Byte, 1));
    steps(&vm, 0, touch(256));
    let mut next = 0;
    for changes in [1, 3, 16, 17, 40] {
        machine.tlb().take_log();
        let first = next;
        for _ in 0..changes {
            vm.unmap_region(gpa(GPA + next * K4), K4).unwrap();
            next += 1;
        }
        let at_once = machine.tlb().take_log();
        // The unmapped pages are absent: a hit of one of their frames would panic.
        steps(&vm, 0, touch(256));
        let later = machine.tlb().take_log();
        let (flushes, none) = if A::Tlb::BROADCAST { (at_once, later) } else { (later, at_once) };
        assert_eq!(none, []);
        let whole = flushes.iter().filter(|(_, flush)| matches!(flush, Flush::Guest(_))).count();
        let ranges: Vec<_> = flushes
            .iter()
            .filter_map(|(_, flush)| match flush {
                Flush::Range(_, range) => Some(range.start().as_usize()),
                _ => None,
            })
            .collect();
        if A::Tlb::BROADCAST || changes <= 16 {
            let expected: Vec<_> = (first..next).map(|page| GPA + page * K4).collect();
            assert_eq!((ranges, whole), (expected, 0), "{changes} changes");
        } else {
            assert_eq!((ranges, whole), (vec![], 1), "{changes} changes");
        }
    }
}

fn a_vcpu_that_moves_finds_no_stale_entry<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "moves").with_memory(GPA, M2, RW, MapLazy));
    for round in 0..40 {
        // It leaves entries on a CPU, and comes back after they became stale, or not.
        for pcpu in [0, 1, 0, 2, 1] {
            on_pcpu(pcpu, || {
                guest_store(&vm, 0, GPA + round * K4, round as u64 + 7);
                assert_eq!(guest_load(&vm, 0, GPA), 7);
            });
        }
        if round > 0 {
            vm.unmap_region(gpa(GPA + round * K4), K4).unwrap();
            on_pcpu(round % 3, || {
                assert_eq!(guest_load(&vm, 0, GPA + round * K4), u64::MAX);
                assert_eq!(guest_load(&vm, 0, GPA), 7);
            });
        }
    }
}

fn vcpus_that_share_a_cpu_find_no_stale_entry<H: MockHal, A: Kind>() {
    let vm =
        boot::<H, A>(AxVMConfig::new(1, "shares").with_cpus(3).with_memory(GPA, M2, RW, MapLazy));
    for round in 0..60 {
        let at = GPA + round * K4;
        let (writer, reader) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        on_pcpu(round % 2, || guest_store(&vm, writer, at, 5));
        on_pcpu(round % 2, || assert_eq!(guest_load(&vm, reader, at), 5));
        on_pcpu((round + 1) % 2, || assert_eq!(guest_load(&vm, reader, at), 5));
        vm.unmap_region(gpa(at), K4).unwrap();
        for pcpu in [round % 2, (round + 1) % 2] {
            on_pcpu(pcpu, || {
                for vcpu in 0..3 {
                    assert_eq!(guest_load(&vm, vcpu, at), u64::MAX);
                }
            });
        }
    }
}

fn nothing_is_flushed_at_entry_without_need<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "calm").with_cpus(2).with_memory(
        GPA,
        200 * K4,
        RW,
        MapLazy,
    ));
    for vcpu in 0..2 {
        on_pcpu(vcpu, || guest_store(&vm, vcpu, GPA, 1));
    }
    let before = H::machine().tlb().flushes();
    for round in 0..200 {
        on_pcpu(round % 2, || {
            // Faults that populate, accesses to nothing, copies by the host, new regions.
            guest_store(&vm, round % 2, GPA + round * K4, 1);
            assert_eq!(guest_load(&vm, round % 2, GPA - K4), u64::MAX);
            vm.write_to_guest_of(gpa(GPA + round * K4), &1u64).unwrap();
        });
        vm.memory().map_alloc(gpa(GPA + G1 + round * K4), K4, RW, round % 2 == 0).unwrap();
    }
    assert_eq!(H::machine().tlb().flushes(), before);
}

/// A guest that loads from `at` again and again, and asserts what it finds, until told to stop.
fn reader(at: Vec<usize>, good: fn(usize, u64) -> bool, stop: &Arc<AtomicBool>) -> Step {
    let stop = stop.clone();
    let (mut turn, mut absent) = (0, false);
    Step::guest(move |guest| {
        for _ in 0..50 {
            if stop.load(SeqCst) {
                return VcpuExit::Halt;
            }
            let page = at[turn % at.len()];
            match guest.load(page, AccessWidth::Qword) {
                Some(value) => assert!(good(page, value), "{value:#x} at {page:#x}"),
                None if !absent => {
                    absent = true;
                    let gpa = gpa(page);
                    let fault = MemFault { gpa, access: Access::Read, walk: false, insn: None };
                    return VcpuExit::MemFault(fault);
                }
                // It faulted and is absent still: the page was unmapped.
                None => {}
            }
            (turn, absent) = (turn + 1, false);
        }
        VcpuExit::Nothing
    })
}

/// Runs a vCPU until its guest halts.
fn run_until_halt<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize) {
    while vm.run_vcpu(vcpu).unwrap() != AxVCpuExitReason::Halt {}
}

/// Tells the guests to stop when it is dropped, also by a panic.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn splitting_under_a_running_guest_breaks_before_it_makes<H: MockHal, A: Kind>() {
    H::machine().set_tracing(false);
    let vm = boot::<H, A>(AxVMConfig::new(1, "split").with_memory(GPA, 4 * M2, RW, MapAlloc));
    for slot in 0..4 {
        vm.write_to_guest_of(gpa(GPA + slot * M2), &1u64).unwrap();
    }
    let stop = Stop(Arc::default());
    let at = (0..4).map(|slot| GPA + slot * M2).collect();
    H::machine().program(1, 0).push(reader(at, |_, value| value == 1, &stop.0));
    std::thread::scope(|scope| {
        let vm = &vm;
        spawn(scope, 1, move || run_until_halt(vm, 0));
        let stop = stop;
        H::machine().wait_in_guest(1, 0);
        for slot in 0..4 {
            let at = GPA + slot * M2;
            vm.memory().protect(gpa(at + K4), K4, R).unwrap();
            vm.unmap_region(gpa(at + 9 * K4), 3 * K4).unwrap();
            for _ in 0..20 {
                std::thread::yield_now();
            }
        }
        drop(stop);
    });
}

fn unmapping_under_running_guests_frees_no_frame_too_early<H: MockHal, A: Kind>() {
    const ROUNDS: usize = 300;
    H::machine().set_tracing(false);
    let vm = boot::<H, A>(AxVMConfig::new(1, "stress").with_cpus(2));
    let unsettled = AtomicUsize::new(0);
    let stop = Stop(Arc::default());
    let pages: Vec<_> = (0..4).map(|page| GPA + page * K4).collect();
    for vcpu in 0..2 {
        // Zero when just populated, or what the host wrote, never junk or another page's.
        let good = |page: usize, value: u64| value == 0 || value == page as u64;
        H::machine().program(1, vcpu).push(reader(pages.clone(), good, &stop.0));
    }
    std::thread::scope(|scope| {
        for vcpu in 0..2 {
            let vm = &vm;
            spawn(scope, vcpu + 1, move || run_until_halt(vm, vcpu));
        }
        let stop = stop;
        for round in 0..ROUNDS {
            let lazy = round % 2 == 0;
            vm.memory().map_alloc(gpa(GPA), 4 * K4, RW, !lazy).unwrap();
            for &page in &pages {
                vm.write_to_guest_of(gpa(page), &(page as u64)).unwrap();
            }
            std::thread::yield_now();
            vm.unmap_region(gpa(GPA + K4), 2 * K4).unwrap();
            vm.memory().clear().unwrap();
            unsettled.fetch_add(usize::from(!vm.memory().is_settled()), SeqCst);
        }
        drop(stop);
    });
    assert!(vm.memory().is_settled(), "{unsettled:?} of {ROUNDS} rounds had to wait");
    drop(vm);
    H::machine().assert_balanced();
}
