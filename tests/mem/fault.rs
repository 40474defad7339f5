//! Faults: one zeroed page each, one frame however many fault, and what is spurious resumes.

use std::sync::Barrier;

use axerrno::AxErrorKind::NoMemory;
use axvm::{
    config::VmMemMappingType::{MapAlloc, MapLazy, MapLazyHuge},
    device::Dummy,
    mm::{FaultOutcome, GpaRange},
    vcpu::{AccessWidth, VcpuEvent},
};
use axvm_testkit::{MockHal, Step};

use crate::*;

for_each_kind! {
    a_second_fault_keeps_the_frame_and_its_data,
    vcpus_that_fault_together_get_one_frame,
    threads_that_fault_together_get_one_frame,
    demand_paging_serves_loads_stores_fetches_and_walks,
    a_fault_gives_exactly_one_zeroed_page,
    a_spurious_fault_resumes,
    devices_and_lazy_memory_live_side_by_side,
    a_guest_waits_while_the_host_has_no_memory,
    an_instruction_of_two_accesses_is_served_across_pages,
}

fn lazy(vcpus: usize, size: usize) -> AxVMConfig {
    AxVMConfig::new(1, "lazy").with_cpus(vcpus).with_memory(GPA, size, RWX, MapLazy)
}

fn a_second_fault_keeps_the_frame_and_its_data<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, M2));
    guest_store(&vm, 0, GPA + 0x18, 0xdead_beef);
    let frame = probe::<H, A>(vm.memory(), GPA);
    let allocated = H::machine().arena().allocated();
    for access in [R, W, X, RW] {
        assert_eq!(vm.memory().fault(gpa(GPA + 0x18), access), Ok(FaultOutcome::Spurious));
        assert!(vm.memory().handle_page_fault(gpa(GPA + 0xff8), access));
    }
    assert_eq!(probe::<H, A>(vm.memory(), GPA), frame);
    assert_eq!(H::machine().arena().allocated(), allocated);
    assert_eq!(guest_load(&vm, 0, GPA + 0x18), 0xdead_beef);
}

/// Both store to the page that they fault on together; nobody's data is lost.
fn vcpus_that_fault_together_get_one_frame<H: MockHal, A: Kind>() {
    const ROUNDS: usize = 300;
    H::machine().set_tracing(false);
    let vm = boot::<H, A>(lazy(2, ROUNDS * K4).with_memory(GPA + G1, M2 * 4, RW, MapLazyHuge));
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for id in 0..2 {
            let (vm, barrier) = (&vm, &barrier);
            spawn(scope, id, move || {
                for round in 0..ROUNDS {
                    let huge = GPA + G1 + (round % 4) * M2 + round / 4 * 64;
                    let at = [GPA + round * K4, huge].map(|page| page + id * 8);
                    barrier.wait();
                    let value = (round * 2 + id + 1) as u64;
                    let store = |at| Step::store(at, AccessWidth::Qword, value);
                    steps(vm, id, at.map(store));
                }
            });
        }
    });
    for round in 0..ROUNDS {
        for id in 0..2 {
            let value = vm.read_from_guest_of::<u64>(gpa(GPA + round * K4 + id * 8));
            assert_eq!(value, Ok((round * 2 + id + 1) as u64), "round {round}");
        }
    }
    let tables = vm.memory().table_frames();
    let populated = vm.events(VcpuEvent::PagePopulated);
    assert_eq!(populated, ROUNDS as u64 + 4);
    assert_eq!(H::machine().arena().allocated(), tables + ROUNDS + 4 * 512);
}

/// The same without the run loop, with the host's copies among them.
fn threads_that_fault_together_get_one_frame<H: MockHal, A: Kind>() {
    const ROUNDS: usize = 300;
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA), ROUNDS * K4, RW, false).unwrap();
    let barrier = Barrier::new(3);
    std::thread::scope(|scope| {
        for id in 0..3 {
            let (space, barrier) = (&space, &barrier);
            spawn(scope, id, move || {
                for round in 0..ROUNDS {
                    let at = gpa(GPA + round * K4 + id * 8);
                    barrier.wait();
                    if id == 2 {
                        space.store(at, 7u64).unwrap();
                        continue;
                    }
                    assert!(space.handle_page_fault(at, W));
                    space.write_obj(at, &7u64).unwrap();
                }
            });
        }
    });
    for round in 0..ROUNDS {
        assert_eq!(space.read_obj::<[u64; 3]>(gpa(GPA + round * K4)), Ok([7; 3]), "{round}");
    }
    assert_eq!(H::machine().arena().allocated(), space.table_frames() + ROUNDS);
}

fn demand_paging_serves_loads_stores_fetches_and_walks<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, M2));
    let load = |page: usize| Step::load(GPA + page * K4 + 8, AccessWidth::Dword, 3);
    let store = |page: usize| Step::store(GPA + page * K4 + 8, AccessWidth::Word, 0x5a5a);
    steps(
        &vm,
        0,
        [
            load(0),
            store(1),
            load(2).late(),
            store(3).late(),
            load(4).undecodable(),
            store(5).undecodable(),
            Step::Fetch { gpa: GPA + 6 * K4 },
            Step::Walk { gpa: GPA + 7 * K4 },
            load(0),
        ],
    );
    assert_eq!(vm.vcpu_state(0).unwrap().regs[3], 0);
    assert_eq!(vm.vcpu_state(0).unwrap().pc, 9 * 4);
    assert_eq!(vm.events(VcpuEvent::PagePopulated), 8);
    assert_eq!((vm.events(VcpuEvent::Unclaimed), vm.events(VcpuEvent::FaultInjected)), (0, 0));
    for page in [1, 3, 5] {
        assert_eq!(vm.read_from_guest_of::<u16>(gpa(GPA + page * K4 + 8)), Ok(0x5a5a));
    }
}

fn a_fault_gives_exactly_one_zeroed_page<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, M2));
    guest_store(&vm, 0, GPA + K4, 1);
    let allocated = H::machine().arena().allocated();
    assert_eq!(allocated, vm.memory().table_frames() + 1);
    assert_eq!(probes::<H, A>(vm.memory(), &[GPA, GPA + 2 * K4]), [None, None]);
    guest_store(&vm, 0, GPA + 3 * K4 - 8, 1);
    assert_eq!(H::machine().arena().allocated(), allocated + 1);
    let page = vm.read_from_guest_of::<[u64; 512]>(gpa(GPA + 2 * K4)).unwrap();
    assert_eq!((page[511], page[..511].iter().sum()), (1, 0u64));
}

fn a_spurious_fault_resumes<H: MockHal, A: Kind>() {
    // Absent pages are cached: after a fault the guest faults again, until the page is flushed.
    H::machine().tlb().set_cache_negative(true);
    let vm = boot::<H, A>(lazy(2, M2));
    guest_store(&vm, 0, GPA, 0x42);
    assert_eq!(guest_load(&vm, 0, GPA), 0x42);
    // Mapped by another vCPU while this one's CPU remembers nothing there: still one fault.
    assert_eq!(guest_load(&vm, 0, GPA + M2), u64::MAX);
    vm.memory().map_alloc(gpa(GPA + M2), K4, RW, true).unwrap();
    vm.write_to_guest_of(gpa(GPA + M2), &0x43u64).unwrap();
    assert_eq!(guest_load(&vm, 0, GPA + M2), 0x43);
    assert!(vm.events(VcpuEvent::SpuriousFault) >= 2);
    assert_eq!(vm.events(VcpuEvent::FaultInjected), 0);
}

fn devices_and_lazy_memory_live_side_by_side<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, 4 * K4).with_memory(GPA + 5 * K4, 4 * K4, RW, MapLazy));
    let page = |n: usize| GpaRange::new(gpa(GPA + n * K4), K4).unwrap();
    vm.add_mmio_device(std::sync::Arc::new(Dummy::new(page(4)))).unwrap();
    for taken in [3, 5] {
        let device = std::sync::Arc::new(Dummy::new(page(taken)));
        assert_eq!(vm.add_mmio_device(device), error(axerrno::AxErrorKind::AlreadyExists));
    }
    let overlap = vm.map_region(gpa(GPA + 4 * K4), hpa(HPA), K4, RW);
    assert_eq!(overlap, error(axerrno::AxErrorKind::AlreadyExists));
    guest_store(&vm, 0, GPA + 4 * K4 - 8, 0xaa);
    guest_store(&vm, 0, GPA + 4 * K4, 0xbb);
    guest_store(&vm, 0, GPA + 5 * K4, 0xcc);
    assert_eq!(guest_load(&vm, 0, GPA + 4 * K4 - 8), 0xaa);
    assert_eq!(guest_load(&vm, 0, GPA + 5 * K4), 0xcc);
    assert_ne!(guest_load(&vm, 0, GPA + 4 * K4), 0xbb);
    assert_eq!(vm.events(VcpuEvent::PagePopulated), 2);
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 0);
    // Instructions that come undecoded find their way too.
    let load = |at| Step::load(at, AccessWidth::Qword, 6).late();
    steps(&vm, 0, [load(GPA + 4 * K4), load(GPA + 5 * K4)]);
    assert_eq!(vm.vcpu_state(0).unwrap().regs[6], 0xcc);
}

fn a_guest_waits_while_the_host_has_no_memory<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, M2));
    H::machine().program(1, 0).push(Step::store(GPA, AccessWidth::Qword, 0x66));
    let before = H::machine().arena().allocated();
    for n in 1..=2 {
        H::machine().arena().fail_after(n);
        assert_eq!(vm.run_vcpu(0), error(NoMemory));
        assert_eq!(vm.memory().fault(gpa(GPA), W), error(NoMemory));
        assert!(!vm.memory().handle_page_fault(gpa(GPA), W));
        assert_eq!(vm.write_to_guest_of(gpa(GPA), &1u8), error(NoMemory));
        assert_eq!(H::machine().arena().allocated(), before);
        H::machine().arena().fail_never();
    }
    finish(&vm, 0);
    assert_eq!(guest_load(&vm, 0, GPA), 0x66);
    // A page that is mapped needs none.
    H::machine().arena().fail_after(1);
    assert_eq!(vm.memory().fault(gpa(GPA), W), Ok(FaultOutcome::Spurious));
    H::machine().arena().fail_never();
}

fn an_instruction_of_two_accesses_is_served_across_pages<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(lazy(1, 2 * K4).with_memory(GPA + M2, K4, RW, MapAlloc));
    let border = GPA + K4;
    let pair = |value| {
        let store = |at, value| Step::store(at, AccessWidth::Qword, value);
        Step::pair(store(border - 8, value), store(border, value + 1))
    };
    steps(&vm, 0, [pair(1)]);
    assert_eq!(vm.read_from_guest_of::<[u64; 2]>(gpa(border - 8)), Ok([1, 2]));
    assert_eq!(vm.events(VcpuEvent::PagePopulated), 2);
}
