//! Mapping and unmapping: exact, all or nothing, and without a trace afterwards.

use axerrno::AxErrorKind::{AlreadyExists, InvalidInput};
use axvm::mm::PageSize;
use axvm_testkit::MockHal;

use crate::*;

for_each_kind! {
    a_page_unmapped_inside_a_huge_leaf_takes_nothing_else_with_it,
    unmapping_frees_every_table,
    the_guest_address_may_be_above_and_below_the_host_address,
    a_range_with_a_hole_is_refused_and_nothing_changes,
    an_overlap_is_refused_and_nothing_changes,
    arithmetic_at_the_top_of_the_address_space_does_not_wrap,
    ranges_that_are_not_whole_pages_are_refused,
    the_hosts_addresses_end_where_an_entry_ends,
    tables_of_a_linear_gigabyte_are_few_and_go_with_it,
    the_largest_leaf_of_the_hardware_is_respected,
    protecting_a_page_of_a_huge_leaf_changes_that_page_alone,
    protecting_keeps_the_memory_type,
    clearing_removes_everything,
    dropping_gives_everything_back,
}

fn a_page_unmapped_inside_a_huge_leaf_takes_nothing_else_with_it<H: MockHal, A: Kind>() {
    for size in [M2, G1] {
        H::machine().regions().add_device(HPA + size * 8, size);
        let space = space::<H, A>();
        let target = HPA + size * 8;
        space.map_linear(gpa(GPA), hpa(target), size, RW).unwrap();
        for hole in [GPA, GPA + 5 * K4, GPA + size / 2, GPA + size - K4] {
            space.unmap(gpa(hole), K4).unwrap();
            assert_eq!(probe::<H, A>(&space, hole), None);
            assert_eq!(space.fault(gpa(hole), R), Ok(axvm::mm::FaultOutcome::Unmapped));
            for near in [hole.wrapping_sub(K4), hole + K4] {
                let inside = (GPA..GPA + size).contains(&near);
                let expected = inside.then(|| (target + (near - GPA), RW));
                assert_eq!(probe::<H, A>(&space, near), expected, "{near:#x} beside {hole:#x}");
            }
        }
        let middle = GPA + size / 2 + 3 * K4 + 8;
        assert_eq!(probe::<H, A>(&space, middle), Some((target + (middle - GPA), RW)));
        drop(space);
        H::machine().arena().assert_balanced();
    }
}

fn unmapping_frees_every_table<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let before = H::machine().arena().allocated();
    assert_eq!(before, root_frames::<A>());
    assert_eq!(space.table_frames(), before);
    // 4 KiB leaves, for the host address is not congruent.
    space.map_linear(gpa(GPA - M2), hpa(HPA + K4), 3 * M2, RW).unwrap();
    assert_eq!(space.table_frames(), H::machine().arena().allocated());
    assert!(space.table_frames() >= before + 4);
    // In three parts, so that each time another table becomes empty.
    space.unmap(gpa(GPA), M2).unwrap();
    space.unmap(gpa(GPA - M2), M2).unwrap();
    space.unmap(gpa(GPA + M2), M2 / 2).unwrap();
    assert!(space.table_frames() > before);
    space.unmap(gpa(GPA + M2 + M2 / 2), M2 / 2).unwrap();
    assert_eq!((space.table_frames(), H::machine().arena().allocated()), (before, before));
}

fn the_guest_address_may_be_above_and_below_the_host_address<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 4 * M2);
    let space = space::<H, A>();
    let high = HPA * 2;
    space.map_linear(gpa(GPA), hpa(HPA + K4), M2, RW).unwrap();
    space.map_linear(gpa(high), hpa(HPA + M2 + K4), M2, RX).unwrap();
    assert_eq!(probe::<H, A>(&space, GPA + 0x1234), Some((HPA + K4 + 0x1234, RW)));
    assert_eq!(probe::<H, A>(&space, high + 0x1234), Some((HPA + M2 + K4 + 0x1234, RX)));
    space.write(gpa(GPA + M2 - 8), &[7; 8]).unwrap();
    let va = H::machine().phys_to_virt(hpa(HPA + K4 + M2 - 8));
    assert_eq!(space.host_segments(gpa(GPA + M2 - 8), 8).unwrap()[0].addr, va);
}

fn a_range_with_a_hole_is_refused_and_nothing_changes<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 2 * M2);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), M2, RW).unwrap();
    space.map_linear(gpa(GPA + M2 + K4), hpa(HPA + M2 + K4), M2 - K4, RW).unwrap();
    let watched = [GPA, GPA + M2 - K4, GPA + M2, GPA + M2 + K4, GPA + 2 * M2 - K4];
    let before = (probes::<H, A>(&space, &watched), space.table_frames());
    for (from, size) in [
        (GPA + K4, M2),
        (GPA + M2, K4),
        (GPA + M2, 2 * K4),
        (GPA - K4, 2 * K4),
        (GPA + 2 * M2 - K4, 2 * K4),
        (GPA, 2 * M2),
        (0, K4),
    ] {
        assert_eq!(space.unmap(gpa(from), size), error(InvalidInput), "{from:#x}");
        assert_eq!(space.protect(gpa(from), size, R), error(InvalidInput), "{from:#x}");
    }
    assert_eq!((probes::<H, A>(&space, &watched), space.table_frames()), before);
    assert_eq!(space.write(gpa(GPA + M2 - K4), &[1; K4]), Ok(()));
}

fn an_overlap_is_refused_and_nothing_changes<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, M2);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), 4 * K4, RW).unwrap();
    space.map_alloc(gpa(GPA + 8 * K4), 4 * K4, RW, false).unwrap();
    let before = (H::machine().arena().allocated(), space.table_frames());
    for (from, pages) in [(0, 1), (3, 1), (3, 2), (0, 12), (4, 5), (11, 4), (9, 1)] {
        let (from, size) = (gpa(GPA + from * K4), pages * K4);
        assert_eq!(space.map_linear(from, hpa(HPA + K4), size, R), error(AlreadyExists));
        assert_eq!(space.map_alloc(from, size, R, true), error(AlreadyExists));
        assert_eq!(space.map_alloc(from, size, R, false), error(AlreadyExists));
    }
    assert_eq!((H::machine().arena().allocated(), space.table_frames()), before);
    assert_eq!(probe::<H, A>(&space, GPA), Some((HPA, RW)));
    space.map_linear(gpa(GPA + 4 * K4), hpa(HPA + 4 * K4), 4 * K4, RW).unwrap();
}

fn arithmetic_at_the_top_of_the_address_space_does_not_wrap<H: MockHal, A: Kind>() {
    let geometry = A::npt_geometry().unwrap();
    let limit = (1usize << geometry.input_bits().min(47)).min(axvm::mm::ADDRESS_LIMIT);
    let make =
        |base, size| Space::<H, A>::new_empty(geometry, PageSize::Size1G, gpa(base), size, 1);
    assert_eq!(make(0, limit + K4).map(drop), error(InvalidInput));
    assert_eq!(make(K4, limit).map(drop), error(InvalidInput));
    assert_eq!(make(usize::MAX - K4 + 1, K4).map(drop), error(InvalidInput));
    assert_eq!(make(0, 0).map(drop), error(InvalidInput));
    assert_eq!(make(0, 0x1800).map(drop), error(InvalidInput));
    let space = make(0, limit).unwrap();
    H::machine().regions().add_device(HPA, 2 * K4);
    let last = limit - K4;
    space.map_linear(gpa(last), hpa(HPA), K4, RW).unwrap();
    assert_eq!(probe::<H, A>(&space, last), Some((HPA, RW)));
    for (base, size) in [
        (last, 2 * K4),
        (limit, K4),
        (last - K4, usize::MAX & !(K4 - 1)),
        (usize::MAX & !(K4 - 1), K4),
        (usize::MAX & !(K4 - 1), 2 * K4),
        (K4, usize::MAX - K4 + 1),
        (1 << 63, 1 << 63),
    ] {
        let at = gpa(base);
        assert_eq!(space.map_linear(at, hpa(HPA), size, RW), error(InvalidInput), "{at:?}");
        assert_eq!(space.map_alloc(at, size, RW, true), error(InvalidInput), "{at:?}");
        assert_eq!(space.unmap(at, size), error(InvalidInput), "{at:?}");
        assert_eq!(space.protect(at, size, R), error(InvalidInput), "{at:?}");
    }
    let mut bytes = [0; 16];
    for at in [limit - 8, limit, usize::MAX, usize::MAX - 7, 1 << 63, last + K4 - 1] {
        assert_eq!(space.read(gpa(at), &mut bytes), error(InvalidInput), "{at:#x}");
        assert_eq!(space.write(gpa(at), &bytes), error(InvalidInput), "{at:#x}");
        assert_eq!(space.host_segments(gpa(at), usize::MAX).map(drop), error(InvalidInput));
        assert_eq!(space.load::<u64>(gpa(at & !7)).is_ok(), at & !7 == limit - 8, "{at:#x}");
    }
    for at in [limit, usize::MAX, 1 << 63, 1 << 50, 1 << 48] {
        assert_eq!(space.translate(gpa(at)), None, "{at:#x}");
        assert_eq!(space.fault(gpa(at), R), Ok(axvm::mm::FaultOutcome::Unmapped), "{at:#x}");
        assert!(!space.in_region(gpa(at)));
    }
    space.unmap(gpa(last), K4).unwrap();
    assert_eq!(space.table_frames(), root_frames::<A>());
}

fn ranges_that_are_not_whole_pages_are_refused<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    for (from, to, size) in [
        (GPA + 1, HPA, K4),
        (GPA, HPA + 8, K4),
        (GPA, HPA, K4 + 8),
        (GPA, HPA, 0),
        (GPA + K4 / 2, HPA + K4 / 2, K4),
    ] {
        let outcome = space.map_linear(gpa(from), hpa(to), size, RW);
        assert_eq!(outcome, error(InvalidInput), "{from:#x} {to:#x} {size:#x}");
    }
    assert_eq!(space.map_alloc(gpa(GPA), 0, RW, true), error(InvalidInput));
    assert_eq!(space.map_alloc(gpa(GPA + 8), K4, RW, false), error(InvalidInput));
    assert!(!space.in_region(gpa(GPA)));
    assert_eq!(H::machine().arena().allocated(), root_frames::<A>());
}

fn the_hosts_addresses_end_where_an_entry_ends<H: MockHal, A: Kind>() {
    use axvm::mm::npt::NptFormat;
    let space = space::<H, A>();
    let end = 1usize << A::Npt::PA_BITS;
    for target in [end, end - K4, usize::MAX - K4 + 1, end - M2 + K4] {
        let outcome = space.map_linear(gpa(GPA), hpa(target), M2, RW);
        assert_eq!(outcome, error(InvalidInput), "{target:#x}");
    }
    assert_eq!(space.table_frames(), root_frames::<A>());
    space.map_linear(gpa(GPA), hpa(end - M2), M2, RW).unwrap();
    assert_eq!(space.translate(gpa(GPA + M2 - 1)), Some(hpa(end - 1)));
}

/// What `table_frames` counts is 4 KiB frames, the root's included: RISC-V's root is four.
fn tables_of_a_linear_gigabyte_are_few_and_go_with_it<H: MockHal, A: Kind>() {
    let (root, levels) = (root_frames::<A>(), A::npt_geometry().unwrap().levels());
    let space = space::<H, A>();
    // Aligned to 2 MiB, and to no more: a table of 1 GiB entries, two of 2 MiB ones.
    space.map_linear(gpa(GPA), hpa(HPA + M2), G1, RW).unwrap();
    // EPT 3, Sv39x4 2 with its root of 16 KiB counted once: 5 frames.
    assert_eq!(space.table_frames() - root + 1, levels - 1);
    assert_eq!(space.translate(gpa(GPA + G1 - 1)), Some(hpa(HPA + M2 + G1 - 1)));
    space.unmap(gpa(GPA), G1).unwrap();
    assert_eq!(space.table_frames(), root);
    // Aligned to 1 GiB: one leaf.
    space.map_linear(gpa(GPA), hpa(HPA), G1, RW).unwrap();
    assert_eq!(space.table_frames() - root + 1, levels - 2);
    // Off by 4 KiB: 512 tables of 4 KiB entries more.
    space.unmap(gpa(GPA), G1).unwrap();
    space.map_linear(gpa(GPA), hpa(HPA + K4), G1, RW).unwrap();
    assert_eq!(space.table_frames() - root + 1, levels - 1 + 512);
    space.unmap(gpa(GPA), G1).unwrap();
    assert_eq!(space.table_frames(), root);
    assert_eq!(H::machine().arena().allocated(), root);
}

fn the_largest_leaf_of_the_hardware_is_respected<H: MockHal, A: Kind>() {
    for (leaf, tables) in [(PageSize::Size4K, 513), (PageSize::Size2M, 1)] {
        H::machine().set_max_leaf(leaf);
        let space = space::<H, A>();
        let upper = A::npt_geometry().unwrap().levels() - 3;
        space.map_linear(gpa(GPA), hpa(HPA), G1, RW).unwrap();
        assert_eq!(space.table_frames(), root_frames::<A>() + upper + tables, "{leaf:?}");
    }
}

fn protecting_a_page_of_a_huge_leaf_changes_that_page_alone<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, G1);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), G1, RWX).unwrap();
    let page = GPA + M2 + 7 * K4;
    space.protect(gpa(page), K4, R).unwrap();
    let watched = [GPA, page - K4, page, page + K4, GPA + G1 - K4];
    let flags: Vec<_> = probes::<H, A>(&space, &watched).iter().map(|p| p.unwrap().1).collect();
    assert_eq!(flags, [RWX, RWX, R, RWX, RWX]);
    assert_eq!(space.write(gpa(page - 4), &[1; 8]), error(InvalidInput));
    assert_eq!(space.write(gpa(page - 4), &[1; 4]), Ok(()));
    assert_eq!(space.fault(gpa(page), W), Ok(axvm::mm::FaultOutcome::Denied));
    // Across the bounds of the regions that resulted.
    space.protect(gpa(page - K4), 3 * K4, RW).unwrap();
    assert_eq!(space.write(gpa(page - 4), &[2; K4 + 8]), Ok(()));
    assert_eq!(probe::<H, A>(&space, page), Some((HPA + (page - GPA), RW)));
    space.unmap(gpa(GPA), G1).unwrap();
    assert_eq!(space.table_frames(), root_frames::<A>());
}

/// A device's registers stay a device's, and RAM stays RAM, whatever the flags say.
fn protecting_keeps_the_memory_type<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, M2);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), K4, RW | DEVICE).unwrap();
    space.map_linear(gpa(GPA + K4), hpa(HPA + K4), K4, RW).unwrap();
    space.map_alloc(gpa(GPA + 2 * K4), K4, RW, false).unwrap();
    space.protect(gpa(GPA), K4, R).unwrap();
    space.protect(gpa(GPA + K4), 2 * K4, R | DEVICE).unwrap();
    assert_eq!(space.read(gpa(GPA), &mut [0; 8]), error(InvalidInput));
    assert_eq!(space.read(gpa(GPA + K4), &mut [0; 8]), Ok(()));
    assert_eq!(space.read(gpa(GPA + 2 * K4), &mut [0; 8]), Ok(()));
    assert_eq!(space.write(gpa(GPA + K4), &[0; 8]), error(InvalidInput));
}

fn clearing_removes_everything<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, M2);
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA), M2, RW).unwrap();
    space.map_alloc(gpa(GPA + M2), M2 + 5 * K4, RW, true).unwrap();
    space.map_alloc(gpa(GPA + 16 * M2), M2, RW, false).unwrap();
    space.write(gpa(GPA + 16 * M2), &[1; 3 * K4]).unwrap();
    space.protect(gpa(GPA + M2 + K4), K4, R).unwrap();
    space.clear().unwrap();
    assert_eq!(H::machine().arena().allocated(), root_frames::<A>());
    assert!(space.is_settled());
    let everything = space.range();
    assert!(!space.overlaps_region(everything));
    space.map_alloc(gpa(GPA), K4, RW, true).unwrap();
    assert_eq!(space.read_obj::<u64>(gpa(GPA)), Ok(0));
}

fn dropping_gives_everything_back<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    space.map_linear(gpa(GPA), hpa(HPA + K4), M2, RW).unwrap();
    // Whole chunks, a split chunk with some pages gone, single frames, lazy ones.
    space.map_alloc(gpa(GPA + M2), 2 * M2 + 5 * K4, RW, true).unwrap();
    space.unmap(gpa(GPA + M2 + 3 * K4), 4 * K4).unwrap();
    space.map_alloc(gpa(GPA + 16 * M2), M2, RW, false).unwrap();
    space.write(gpa(GPA + 16 * M2 + 8), &[1; 3 * K4]).unwrap();
    drop(space);
    H::machine().assert_balanced();
}
