//! Memory of the host's allocator: zeroed, in chunks where there are any, given back in the units
//! in which it was taken.

use axerrno::AxErrorKind::NoMemory;
use axvm::{
    config::VmMemMappingType::{MapAlloc, MapLazyHuge},
    mm::{FaultOutcome, PageSize},
    vcpu::VcpuEvent,
};
use axvm_testkit::MockHal;

use crate::*;

for_each_kind! {
    eager_memory_is_zeroed_and_in_chunks,
    a_split_chunk_is_freed_whole_after_its_last_page,
    a_split_chunk_survives_the_address_space_no_longer,
    without_chunks_single_frames_do,
    chunks_are_not_used_where_the_hardware_has_no_large_leaves,
    lazy_huge_memory_comes_two_megabytes_at_a_time,
    lazy_huge_memory_falls_back_to_pages,
    lazy_huge_memory_is_split_exactly,
    memory_given_back_comes_zeroed_to_the_next_guest,
}

fn sizes<H: MockHal>() -> (usize, usize) {
    let live = H::machine().arena().live();
    let count = |frames| live.iter().filter(|&&(_, num)| num == frames).count();
    (count(512), count(1))
}

fn all_zero<H: MockHal, A: Kind>(space: &Space<H, A>, from: usize, size: usize) {
    let mut bytes = vec![0xff; size];
    space.read(gpa(from), &mut bytes).unwrap();
    let dirty = bytes.iter().position(|&byte| byte != 0);
    assert_eq!(dirty, None, "of {size:#x} bytes at {from:#x}");
}

fn eager_memory_is_zeroed_and_in_chunks<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let (from, size) = (GPA - 3 * K4, 2 * M2 + 5 * K4);
    space.map_alloc(gpa(from), size, RW, true).unwrap();
    assert_eq!(sizes::<H>().0, 2);
    let singles = sizes::<H>().1
        + A::npt_geometry().map_or(0, |g| usize::from(g.root_frames() > 1))
        - (space.table_frames() - root_frames::<A>() + 1);
    assert_eq!(singles, 5);
    all_zero::<H, A>(&space, from, size);
    space.clear().unwrap();
    assert_eq!(H::machine().arena().allocated(), root_frames::<A>());
}

fn a_split_chunk_is_freed_whole_after_its_last_page<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA), M2, RW, true).unwrap();
    let base = probe::<H, A>(&space, GPA).unwrap().0;
    space.write(gpa(GPA), &[3; M2]).unwrap();
    // In an order that is neither up nor down.
    let mut pages: Vec<usize> = (0..512).map(|n| n * 37 % 512).collect();
    let last = pages.pop().unwrap();
    for page in pages {
        space.unmap(gpa(GPA + page * K4), K4).unwrap();
        assert_eq!(sizes::<H>().0, 1, "the chunk is freed in parts, or too early");
    }
    let left = GPA + last * K4;
    assert_eq!(probe::<H, A>(&space, left), Some((base + last * K4, RW)));
    assert_eq!(space.read_obj::<[u8; K4]>(gpa(left)), Ok([3; K4]));
    // The arena panics when the count is not the 512 that were taken.
    space.unmap(gpa(left), K4).unwrap();
    assert_eq!(H::machine().arena().allocated(), root_frames::<A>());
    // The addresses may be used again meanwhile.
    space.map_alloc(gpa(GPA), M2, RW, true).unwrap();
    space.unmap(gpa(GPA + K4), M2 - K4).unwrap();
    space.map_alloc(gpa(GPA + 2 * K4), K4, RW, true).unwrap();
    space.unmap(gpa(GPA), K4).unwrap();
    assert_eq!(sizes::<H>().0, 0);
    all_zero::<H, A>(&space, GPA + 2 * K4, K4);
}

fn a_split_chunk_survives_the_address_space_no_longer<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA), 3 * M2, RW, true).unwrap();
    space.unmap(gpa(GPA + K4), M2).unwrap();
    space.protect(gpa(GPA + 2 * M2 + K4), K4, R).unwrap();
    drop(space);
    H::machine().assert_balanced();
}

fn without_chunks_single_frames_do<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let arena = H::machine().arena();
    // All but one aligned run of 512 frames has a frame in use.
    let mut used = Vec::new();
    while let Some(chunk) = arena.alloc(512, M2) {
        used.push(chunk);
    }
    let mut stones = Vec::new();
    for chunk in used.into_iter().skip(1) {
        arena.dealloc(chunk, 512);
        stones.push(chunk);
    }
    let mut singles = Vec::new();
    let first = |pa: HostPhysAddr| pa.as_usize().is_multiple_of(M2);
    while !stones.is_empty() {
        let frame = arena.alloc(1, K4).unwrap();
        stones.retain(|&chunk| !(first(frame) && chunk == frame));
        singles.push(frame);
    }
    let (mut kept, mut back) = (Vec::new(), Vec::new());
    singles.into_iter().for_each(|pa| if first(pa) { kept.push(pa) } else { back.push(pa) });
    back.into_iter().for_each(|pa| arena.dealloc(pa, 1));
    assert_eq!(arena.alloc(512, M2), None, "the test made no stones");
    space.map_alloc(gpa(GPA), 2 * M2, RW, true).unwrap();
    all_zero::<H, A>(&space, GPA, 2 * M2);
    space.unmap(gpa(GPA + K4), K4).unwrap();
    space.unmap(gpa(GPA + 2 * K4), 2 * M2 - 2 * K4).unwrap();
    assert_eq!(probe::<H, A>(&space, GPA + K4), None);
    // More than there is, in chunks or frames: refused whole.
    let before = arena.allocated();
    assert_eq!(space.map_alloc(gpa(GPA + M2), 32 << 20, RW, true), error(NoMemory));
    assert_eq!(arena.allocated(), before);
    assert!(!space.in_region(gpa(GPA + M2)));
}

fn chunks_are_not_used_where_the_hardware_has_no_large_leaves<H: MockHal, A: Kind>() {
    H::machine().set_max_leaf(PageSize::Size4K);
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA), M2, RW, true).unwrap();
    assert_eq!(sizes::<H>().0, 0);
    drop(space);
    // Nor at the first use, where the region asks for them.
    let vm = boot::<H, A>(AxVMConfig::new(1, "small").with_memory(GPA, M2, RW, MapLazyHuge));
    guest_store(&vm, 0, GPA, 1);
    assert_eq!(sizes::<H>().0, 0);
    assert!(probe::<H, A>(vm.memory(), GPA + K4).is_none());
}

fn lazy_huge_memory_comes_two_megabytes_at_a_time<H: MockHal, A: Kind>() {
    let config = AxVMConfig::new(1, "huge").with_memory(GPA - K4, 2 * M2, RW, MapLazyHuge);
    let vm = boot::<H, A>(config);
    let tables = vm.memory().table_frames();
    guest_store(&vm, 0, GPA + 5 * K4, 1);
    assert_eq!(sizes::<H>().0, 1);
    assert_eq!(vm.events(VcpuEvent::PagePopulated), 1);
    // One leaf: no table of 4 KiB entries.
    let upper = A::npt_geometry().unwrap().levels() - 2;
    assert_eq!(vm.memory().table_frames(), tables + upper);
    all_zero::<H, A>(vm.memory(), GPA, 5 * K4);
    assert_eq!(guest_load(&vm, 0, GPA + M2 - 8), 0);
    assert_eq!(vm.events(VcpuEvent::PagePopulated), 1);
    // The region ends before these leaves would: single pages.
    guest_store(&vm, 0, GPA - K4, 1);
    guest_store(&vm, 0, GPA + M2, 1);
    assert_eq!((sizes::<H>().0, vm.events(VcpuEvent::PagePopulated)), (1, 3));
    assert!(probe::<H, A>(vm.memory(), GPA + M2 + K4).is_none());
    drop(vm);
    H::machine().assert_balanced();
}

fn lazy_huge_memory_falls_back_to_pages<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "huge").with_memory(GPA, 2 * M2, RW, MapLazyHuge));
    // No chunk is to be had, once.
    H::machine().arena().fail_nth_only(1);
    guest_store(&vm, 0, GPA + 8, 0x77);
    assert_eq!(H::machine().arena().injected(), 1);
    H::machine().arena().fail_never();
    assert_eq!(sizes::<H>().0, 0);
    // A table is there now: pages from here on, and the first one stays.
    guest_store(&vm, 0, GPA + K4, 0x88);
    assert_eq!((guest_load(&vm, 0, GPA + 8), guest_load(&vm, 0, GPA + K4)), (0x77, 0x88));
    assert_eq!(sizes::<H>().0, 0);
    guest_store(&vm, 0, GPA + M2, 0x99);
    assert_eq!(sizes::<H>().0, 1);
    drop(vm);
    H::machine().assert_balanced();
}

fn lazy_huge_memory_is_split_exactly<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "huge").with_memory(GPA, M2, RW, MapLazyHuge));
    for page in [0, 6, 7, 8, 511] {
        guest_store(&vm, 0, GPA + page * K4, page as u64 + 1);
    }
    vm.unmap_region(gpa(GPA + 7 * K4), K4).unwrap();
    assert_eq!(guest_load(&vm, 0, GPA + 7 * K4), u64::MAX);
    for page in [0, 6, 8, 511] {
        assert_eq!(guest_load(&vm, 0, GPA + page * K4), page as u64 + 1);
    }
    assert_eq!(sizes::<H>().0, 1);
    vm.unmap_region(gpa(GPA), 7 * K4).unwrap();
    vm.unmap_region(gpa(GPA + 8 * K4), M2 - 8 * K4).unwrap();
    assert_eq!(H::machine().arena().allocated(), root_frames::<A>());
}

fn memory_given_back_comes_zeroed_to_the_next_guest<H: MockHal, A: Kind>() {
    let mut frames = std::collections::HashSet::new();
    for round in 0..80 {
        let vm = boot::<H, A>(AxVMConfig::new(1, "next").with_memory(GPA, M2, RW, MapAlloc));
        vm.memory().map_alloc(gpa(GPA + M2), 2 * K4, RW, false).unwrap();
        vm.memory().map_alloc(gpa(GPA + M2 + 2 * K4), 2 * K4, RW, true).unwrap();
        for page in [0, 511, 512, 513, 514, 515] {
            let at = GPA + page * K4;
            assert_eq!(guest_load(&vm, 0, at), 0, "round {round}, page {page}");
            all_zero::<H, A>(vm.memory(), at, K4);
            vm.memory().write(gpa(at), &[0xee; K4]).unwrap();
            frames.insert(probe::<H, A>(vm.memory(), at).unwrap().0);
        }
        assert_eq!(vm.memory().fault(gpa(GPA), W), Ok(FaultOutcome::Spurious));
    }
    assert!(frames.len() < 80 * 6, "no frame came back, so this shows nothing");
}
