//! Every allocation is made to fail, one by one: `NoMemory`, and all is as before.

use axerrno::AxResult;
use axvm::{
    config::VmMemMappingType::{MapAlloc, MapIdentical, MapLazy, MapLazyHuge, MapReserved},
    mm::FaultOutcome,
};
use axvm_testkit::{MockHal, fail_every_allocation};

use crate::*;

for_each_kind! {
    a_new_address_space_fails_without_a_trace,
    a_linear_mapping_fails_without_a_trace,
    an_allocation_fails_without_a_trace,
    a_fault_fails_without_a_trace,
    a_copy_to_lazy_memory_fails_without_a_trace,
    unmapping_part_of_a_huge_leaf_fails_without_a_trace,
    unmapping_part_of_a_chunk_fails_without_a_trace,
    protecting_part_of_a_huge_leaf_fails_without_a_trace,
    a_vm_fails_without_a_trace,
}

/// Makes each allocation of `act` fail; `undo` makes all as before again. What the hardware finds
/// at `watched`, and the count of table frames, are the same after each failure and after `undo`.
#[track_caller]
fn each_failure_changes_nothing<H: MockHal, A: Kind>(
    space: &Space<H, A>,
    watched: &[usize],
    act: impl Fn() -> AxResult,
    undo: impl Fn(),
) -> u64 {
    let state = || (probes::<H, A>(space, watched), space.table_frames());
    let before = state();
    let attempt = || {
        let outcome = act();
        if outcome.is_err() {
            assert_eq!(state(), before, "after a failure");
        }
        outcome
    };
    let failed = fail_every_allocation(H::machine(), attempt, |()| {
        undo();
        assert_eq!(state(), before, "after the test's undo");
    });
    assert!(failed > 0, "nothing was there to fail");
    failed
}

fn a_new_address_space_fails_without_a_trace<H: MockHal, A: Kind>() {
    let geometry = A::npt_geometry().unwrap();
    let make = || Space::<H, A>::new_empty(geometry, A::max_leaf(), gpa(0), 1 << 40, 2);
    assert_eq!(fail_every_allocation(H::machine(), make, drop), 2);
    H::machine().assert_balanced();
}

fn a_linear_mapping_fails_without_a_trace<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 8 * M2);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA - M2 - 4 * K4), hpa(HPA), K4, RW).unwrap();
    let (from, size) = (GPA - M2, 3 * M2);
    let watched = [from - 4 * K4, from, GPA, GPA + M2, from + size - K4];
    // 4 KiB leaves in tables below two tables of 2 MiB entries, then large leaves.
    for offset in [K4, 0] {
        let act = || space.map_linear(gpa(from), hpa(HPA + M2 + offset), size, RW);
        let undo = || space.unmap(gpa(from), size).unwrap();
        let failed = each_failure_changes_nothing::<H, A>(&space, &watched, act, undo);
        assert!(failed >= if offset == 0 { 2 } else { 8 }, "{failed}");
        assert!(!space.in_region(gpa(from)));
    }
}

fn an_allocation_fails_without_a_trace<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let (from, size) = (GPA - 3 * K4, 2 * M2 + 5 * K4);
    let watched = [from, GPA, GPA + K4, GPA + M2, from + size - K4];
    let act = || space.map_alloc(gpa(from), size, RW, true);
    let undo = || space.unmap(gpa(from), size).unwrap();
    each_failure_changes_nothing::<H, A>(&space, &watched, act, undo);
    assert!(!space.in_region(gpa(from)));
    act().unwrap();
    let mut bytes = vec![1; size];
    space.read(gpa(from), &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
}

fn a_fault_fails_without_a_trace<H: MockHal, A: Kind>() {
    let config = AxVMConfig::new(1, "faults").with_memory(GPA, 2 * M2, RW, MapLazy).with_memory(
        GPA + G1,
        2 * M2,
        RW,
        MapLazyHuge,
    );
    let vm = AxVM::<H, A>::new(config).unwrap();
    let space = vm.memory();
    for page in [GPA, GPA + M2 - K4, GPA + G1 + M2] {
        let watched = [page - K4, page, page + K4];
        let act = || space.fault(gpa(page + 8), W).map(|o| assert_eq!(o, FaultOutcome::Populated));
        let undo = || {
            // The whole region, as it may have got 2 MiB; and a lazy one in its place.
            let (from, size) = (page & !(M2 - 1), M2);
            space.unmap(gpa(from), size).unwrap();
            if page < GPA + G1 {
                space.map_alloc(gpa(from), size, RW, false).unwrap();
            }
        };
        if page < GPA + G1 {
            let failed = each_failure_changes_nothing::<H, A>(space, &watched, act, undo);
            // The page and its tables, each twice.
            assert_eq!(failed as usize, 2 * A::npt_geometry().unwrap().levels());
        } else {
            // Falls back: fails only when nothing is left.
            let before = H::machine().arena().allocated();
            H::machine().arena().fail_after(1);
            assert_eq!(space.fault(gpa(page), W), error(axerrno::AxErrorKind::NoMemory));
            H::machine().arena().fail_never();
            assert_eq!(H::machine().arena().allocated(), before);
            assert_eq!(probes::<H, A>(space, &watched), [None; 3]);
            act().unwrap();
            undo();
        }
    }
    drop(vm);
    H::machine().assert_balanced();
}

fn a_copy_to_lazy_memory_fails_without_a_trace<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let lazy = || space.map_alloc(gpa(GPA), M2, RW, false).unwrap();
    lazy();
    // Each page may be populated or not, but nothing is lost.
    let act = || space.write_obj(gpa(GPA + M2 - 8), &7u64);
    let undo = || {
        space.unmap(gpa(GPA), M2).unwrap();
        lazy();
    };
    each_failure_changes_nothing::<H, A>(&space, &[GPA + M2 - K4], act, undo);
    let act = || space.host_segments(gpa(GPA + 5), 1).map(drop);
    each_failure_changes_nothing::<H, A>(&space, &[GPA], act, undo);
    let act = || space.store(gpa(GPA), 1u8);
    each_failure_changes_nothing::<H, A>(&space, &[GPA], act, undo);
}

fn huge<H: MockHal, A: Kind>() -> Space<H, A> {
    H::machine().regions().add_device(HPA, 2 * G1);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), 2 * G1, RW).unwrap();
    space
}

/// From the middle of one 1 GiB leaf to the middle of the next.
const MIDDLE: (usize, usize) = (GPA + M2 + 3 * K4, G1 + 5 * M2);

fn unmapping_part_of_a_huge_leaf_fails_without_a_trace<H: MockHal, A: Kind>() {
    let space = huge::<H, A>();
    let (from, size) = MIDDLE;
    let watched = [GPA, from - K4, from, GPA + G1, from + size - K4, from + size];
    let act = || space.unmap(gpa(from), size);
    let undo = || {
        space.unmap(gpa(GPA), from - GPA).unwrap();
        space.unmap(gpa(from + size), GPA + 2 * G1 - from - size).unwrap();
        space.map_linear(gpa(GPA), hpa(HPA), 2 * G1, RW).unwrap();
    };
    // Two tables at each end, each of the four made to fail twice.
    assert_eq!(each_failure_changes_nothing::<H, A>(&space, &watched, act, undo), 8);
}

fn unmapping_part_of_a_chunk_fails_without_a_trace<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let fill = || space.map_alloc(gpa(GPA), 2 * M2, RW, true).unwrap();
    fill();
    let act = || space.unmap(gpa(GPA + M2 - K4), 2 * K4);
    // The frames behind differ afterwards: only whether something is mapped is compared.
    let undo = || {
        space.unmap(gpa(GPA), M2 - K4).unwrap();
        space.unmap(gpa(GPA + M2 + K4), M2 - K4).unwrap();
        fill();
    };
    assert_eq!(each_failure_changes_nothing::<H, A>(&space, &[], act, undo), 4);
    assert!(space.read(gpa(GPA), &mut vec![0; 2 * M2]).is_ok());
    drop(space);
    H::machine().assert_balanced();
}

fn protecting_part_of_a_huge_leaf_fails_without_a_trace<H: MockHal, A: Kind>() {
    let space = huge::<H, A>();
    let (from, size) = MIDDLE;
    let watched = [GPA, from - K4, from, GPA + G1, from + size - K4, from + size];
    let act = || space.protect(gpa(from), size, R);
    let undo = || {
        space.unmap(gpa(GPA), 2 * G1).unwrap();
        space.map_linear(gpa(GPA), hpa(HPA), 2 * G1, RW).unwrap();
    };
    assert_eq!(each_failure_changes_nothing::<H, A>(&space, &watched, act, undo), 8);
    assert_eq!(space.write(gpa(from), &[1; 8]), Ok(()));
}

fn a_vm_fails_without_a_trace<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 2 * M2);
    H::machine().set_tracing(false);
    let config = || {
        AxVMConfig::new(1, "all kinds")
            .with_cpus(2)
            .with_memory(GPA, M2 + 3 * K4, RWX, MapAlloc)
            .with_memory(GPA + 2 * M2 + K4, 3 * K4, RW, MapIdentical)
            .with_memory(GPA + 4 * M2, M2, RW, MapLazy)
            .with_memory(HPA, M2, R, MapReserved)
    };
    let make = || AxVM::<H, A>::new(config());
    let failed = fail_every_allocation(H::machine(), make, drop);
    assert!(failed > 10, "{failed}");
    H::machine().assert_balanced();
}
