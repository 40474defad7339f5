use super::*;

fn arena() -> Arena {
    Arena::new(8 << 20)
}

fn pointer(arena: &Arena, pa: HostPhysAddr) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(arena.phys_to_virt(pa).unwrap().as_usize())
}

fn address(pa: usize) -> HostPhysAddr {
    HostPhysAddr::from_usize(pa)
}

#[test]
fn a_frame_is_aligned_and_full_of_junk() {
    let arena = arena();
    arena.alloc(1, PAGE).unwrap();
    for (num, align) in [(1, PAGE), (4, 4 * PAGE), (512, 512 * PAGE), (3, PAGE)] {
        let pa = arena.alloc(num, align).unwrap();
        assert_eq!(pa.as_usize() % align, 0);
        // SAFETY: allocated just now, with this length.
        let bytes = unsafe { core::slice::from_raw_parts(pointer(&arena, pa), num * PAGE) };
        assert!(bytes.iter().all(|&byte| byte == JUNK));
        let va = arena.phys_to_virt(pa).unwrap();
        assert_ne!(va.as_usize(), pa.as_usize());
        assert_eq!(arena.virt_to_phys(va), Some(pa));
    }
}

#[test]
fn every_frame_can_be_had_and_had_again() {
    let arena = arena();
    for _ in 0..3 {
        let frames: Vec<_> = core::iter::from_fn(|| arena.alloc(1, PAGE)).collect();
        assert_eq!(frames.len(), arena.capacity());
        assert_eq!(arena.alloc(1, PAGE), None);
        frames.into_iter().for_each(|pa| arena.dealloc(pa, 1));
        let chunks: Vec<_> = core::iter::from_fn(|| arena.alloc(512, 512 * PAGE)).collect();
        assert_eq!(chunks.len(), arena.capacity() / 512);
        chunks.into_iter().for_each(|pa| arena.dealloc(pa, 512));
    }
    arena.assert_balanced();
}

#[test]
fn a_frame_rests_before_it_is_handed_out_again_and_has_a_new_generation() {
    let arena = arena();
    let pa = arena.alloc(1, PAGE).unwrap();
    let generation = arena.generation(pa);
    arena.dealloc(pa, 1);
    assert_eq!(arena.generation(pa), None);
    assert_ne!(arena.alloc(1, PAGE), Some(pa));
    while arena.alloc(1, PAGE).unwrap() != pa {}
    assert_ne!(arena.generation(pa), generation);
}

#[test]
fn failures_come_when_asked_for() {
    let arena = arena();
    arena.fail_nth_only(2);
    assert!(arena.alloc(1, PAGE).is_some());
    assert_eq!(arena.alloc(1, PAGE), None);
    assert!(arena.alloc(1, PAGE).is_some());
    arena.fail_after(1);
    assert_eq!((arena.alloc(1, PAGE), arena.alloc(1, PAGE)), (None, None));
    assert_eq!((arena.injected(), arena.allocations(), arena.allocated()), (2, 5, 2));
    arena.fail_never();
    assert!(arena.alloc(1, PAGE).is_some());
}

#[test]
#[should_panic = "double free"]
fn a_double_free_is_caught() {
    let arena = arena();
    let pa = arena.alloc(1, PAGE).unwrap();
    arena.dealloc(pa, 1);
    arena.dealloc(pa, 1);
}

#[test]
#[should_panic = "wrong count 1: allocated with 4"]
fn a_wrong_count_is_caught() {
    let arena = arena();
    arena.dealloc(arena.alloc(4, PAGE).unwrap(), 1);
}

#[test]
#[should_panic = "in the middle of an allocation"]
fn a_free_in_the_middle_is_caught() {
    let arena = arena();
    let pa = arena.alloc(4, PAGE).unwrap();
    arena.dealloc(address(pa.as_usize() + PAGE), 3);
}

#[test]
#[should_panic = "never allocated"]
fn a_free_of_what_was_never_allocated_is_caught() {
    arena().dealloc(address(ARENA_BASE + PAGE), 1);
}

#[test]
#[should_panic = "not of this arena"]
fn a_free_of_a_foreign_address_is_caught() {
    arena().dealloc(address(0x1000), 1);
}

#[test]
#[should_panic = "misaligned"]
fn a_misaligned_free_is_caught() {
    let arena = arena();
    let pa = arena.alloc(1, PAGE).unwrap();
    arena.dealloc(address(pa.as_usize() + 8), 1);
}

#[test]
#[should_panic = "1 frames leaked"]
fn a_leak_is_caught() {
    let arena = arena();
    arena.alloc(1, PAGE).unwrap();
    arena.assert_balanced();
}

#[test]
#[should_panic = "use after free"]
fn a_write_to_a_freed_frame_is_caught() {
    let arena = arena();
    let pa = arena.alloc(1, PAGE).unwrap();
    arena.dealloc(pa, 1);
    // SAFETY: the memory exists; that the frame is free is the point.
    unsafe { pointer(&arena, pa).add(77).write(0) };
    arena.check_poison();
}

#[test]
#[should_panic = "use after free"]
fn a_written_freed_frame_is_not_handed_out() {
    let arena = arena();
    let pa = arena.alloc(1, PAGE).unwrap();
    arena.dealloc(pa, 1);
    // SAFETY: as above.
    unsafe { pointer(&arena, pa).write(0) };
    while arena.alloc(1, PAGE).is_some() {}
}
