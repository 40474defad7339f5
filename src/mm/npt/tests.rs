//! The walker's promises one by one. Random sequences are in `tests/npt_model.rs`.

use alloc::{vec, vec::Vec};
use core::sync::atomic::Ordering;
use std::{alloc::Layout, cell::RefCell, collections::BTreeMap, thread_local};

use super::{table::Slot, *};
use crate::mm::{GpaRange, GuestPhysAddr, HostVirtAddr, PAGE_SIZE_4K, PagingHandler};

const M2: usize = 2 << 20;
const G1: usize = 1 << 30;
const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);
const RX: MappingFlags = MappingFlags::READ.union(MappingFlags::EXECUTE);

#[derive(Default)]
struct Arena {
    live: BTreeMap<usize, Layout>,
    /// Allocations that still succeed, if limited.
    left: Option<usize>,
    misalign: bool,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::default();
}

/// Dirty frames of the process; every test runs in a thread of its own.
struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(num: usize, align: usize) -> Option<HostPhysAddr> {
        ARENA.with_borrow_mut(|arena| {
            if let Some(left) = &mut arena.left {
                *left = left.checked_sub(1)?;
            }
            let num = num + usize::from(arena.misalign);
            let layout = Layout::from_size_align(num * PAGE_SIZE_4K, align).unwrap();
            // SAFETY: the size is not zero.
            let frame = unsafe { std::alloc::alloc(layout) };
            // SAFETY: just allocated.
            unsafe { frame.write_bytes(0xa5, layout.size()) };
            arena.live.insert(frame as usize, layout);
            let offset = if arena.misalign { PAGE_SIZE_4K } else { 0 };
            Some(HostPhysAddr::from_usize(frame as usize + offset))
        })
    }

    fn dealloc_frames(hpa: HostPhysAddr, num: usize) {
        ARENA.with_borrow_mut(|arena| {
            let extra = usize::from(arena.misalign);
            let frame = hpa.as_usize() - extra * PAGE_SIZE_4K;
            let layout = arena.live.remove(&frame).expect("freed twice, or never allocated");
            assert_eq!(layout.size(), (num + extra) * PAGE_SIZE_4K);
            // SAFETY: allocated with this layout, and not freed since.
            unsafe { std::alloc::dealloc(frame as *mut u8, layout) };
        });
    }

    fn phys_to_virt(hpa: HostPhysAddr) -> HostVirtAddr {
        HostVirtAddr::from_usize(hpa.as_usize())
    }
}

fn live() -> usize {
    ARENA.with_borrow(|arena| arena.live.len())
}

fn range(start: usize, size: usize) -> GpaRange {
    GpaRange::new(GuestPhysAddr::from_usize(start), size).unwrap()
}

fn pa(address: usize) -> HostPhysAddr {
    HostPhysAddr::from_usize(address)
}

fn mapped<F: NptFormat>(
    geometry: Geometry,
    gpa: usize,
    hpa: usize,
    size: usize,
    max: PageSize,
) -> NestedPageTable<F, Frames> {
    let mut npt = NestedPageTable::new(geometry).unwrap();
    let tables = npt.tables_to_map(range(gpa, size), pa(hpa), max);
    let mut reserve = TableReserve::new(tables).unwrap();
    npt.map(range(gpa, size), pa(hpa), RW, max, &mut reserve);
    assert!(reserve.is_empty());
    npt
}

fn split<F: NptFormat>(npt: &mut NestedPageTable<F, Frames>, at: usize) -> Vec<GpaRange> {
    let at = GuestPhysAddr::from_usize(at);
    let mut reserve = TableReserve::new(npt.tables_to_split(at)).unwrap();
    let mut flushed = vec![];
    npt.split_at(at, &mut reserve, &mut |range| flushed.push(range));
    flushed
}

fn leads<F: NptFormat>(npt: &NestedPageTable<F, Frames>, gpa: usize) -> Option<(usize, PageSize)> {
    npt.translate(GuestPhysAddr::from_usize(gpa)).map(|to| (to.hpa.as_usize(), to.size))
}

fn every_leaf_decodes_to_what_was_encoded<F: NptFormat>() {
    let highest = (1usize << F::PA_BITS) - G1;
    for bits in 0..64 {
        let flags = MappingFlags::from_bits_truncate(bits);
        if !F::supports(flags) {
            continue;
        }
        for (level, size) in
            [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G].iter().enumerate()
        {
            for address in [0, G1, highest, 0x5555_5555_4000_0000 & highest] {
                let entry = F::leaf(pa(address), flags, *size);
                let flags = flags - MappingFlags::USER;
                assert_eq!(F::decode(entry, level), Entry::Leaf { pa: pa(address), flags });
                let marked = entry | F::ACCESSED_DIRTY;
                assert_eq!(F::decode(marked, level), Entry::Leaf { pa: pa(address), flags });
            }
        }
    }
    for level in 1..4 {
        let entry = F::table(pa(highest));
        assert_eq!(F::decode(entry, level), Entry::Table(pa(highest)));
    }
    assert_eq!(F::decode(0, 0), Entry::Absent);
    assert!(!F::supports(MappingFlags::empty()) && !F::supports(MappingFlags::WRITE));
}

#[test]
fn decode_is_the_opposite_of_leaf() {
    every_leaf_decodes_to_what_was_encoded::<Ept>();
    every_leaf_decodes_to_what_was_encoded::<Stage2>();
    every_leaf_decodes_to_what_was_encoded::<GStage>();
}

#[test]
fn a_root_is_contiguous_and_aligned_to_its_size() {
    for (geometry, size) in [
        (Geometry::SV39X4, 0x4000),
        (Geometry::stage2(40).unwrap(), 0x2000),
        (Geometry::EPT, 0x1000),
    ] {
        let npt = NestedPageTable::<GStage, Frames>::new(geometry).unwrap();
        assert_eq!(npt.root().as_usize() % size, 0);
        assert_eq!(npt.table_frames() * PAGE_SIZE_4K, size);
        drop(npt);
        assert_eq!(live(), 0);
    }
    ARENA.with_borrow_mut(|arena| arena.misalign = true);
    assert_eq!(NestedPageTable::<GStage, Frames>::new(Geometry::SV39X4).err(), Some(OutOfFrames));
    assert_eq!(live(), 0);
}

#[test]
fn one_gib_of_2_mib_leaves_takes_two_tables_beside_the_root_on_ept_and_one_on_sv39x4() {
    let ept = mapped::<Ept>(Geometry::EPT, 0x8000_0000, M2, G1, PageSize::Size1G);
    assert_eq!(ept.table_frames(), 3);
    let root = Geometry::SV39X4.root_frames();
    let sv39 = mapped::<GStage>(Geometry::SV39X4, 0x8000_0000, M2, G1, PageSize::Size1G);
    assert_eq!(sv39.table_frames() - root, 1);
    let whole = mapped::<Ept>(Geometry::EPT, 0x8000_0000, G1, G1, PageSize::Size1G);
    assert_eq!(
        (whole.table_frames(), leads(&whole, 0x8000_0000).unwrap().1),
        (2, PageSize::Size1G)
    );
}

#[test]
fn unmapping_one_page_of_a_1_gib_leaf_takes_exactly_that_page() {
    let mut npt = mapped::<Ept>(Geometry::EPT, G1, 8 * G1, G1, PageSize::Size1G);
    let page = G1 + 5 * M2 + 7 * PAGE_SIZE_4K;
    assert_eq!(split(&mut npt, page), [range(G1, G1)]);
    assert_eq!(split(&mut npt, page + PAGE_SIZE_4K), []);
    let mut removed = vec![];
    assert_eq!(npt.count_removed(range(page, PAGE_SIZE_4K)), 4);
    npt.unmap(range(page, PAGE_SIZE_4K), &mut removed, Leaves::Report);
    let hpa = pa(page + 7 * G1);
    assert_eq!(removed, [Removed::Leaf { hpa, size: PageSize::Size4K }]);
    for gpa in (G1..2 * G1).step_by(PAGE_SIZE_4K) {
        let size = if gpa / M2 == page / M2 { PageSize::Size4K } else { PageSize::Size2M };
        assert_eq!(leads(&npt, gpa), (gpa != page).then_some((gpa + 7 * G1, size)));
    }
}

/// What is written and flushed while a leaf is split, as another CPU would see it.
fn entry_at_the_flush<F: NptFormat>() -> Entry {
    let mut npt = mapped::<F>(Geometry::SV39X4, 0, G1, M2, PageSize::Size2M);
    let at = GuestPhysAddr::from_usize(PAGE_SIZE_4K);
    let mut reserve = TableReserve::new(1).unwrap();
    let root = npt.root_table();
    let mut seen = vec![];
    npt.split_at(at, &mut reserve, &mut |flushed| {
        assert_eq!(flushed, range(0, M2));
        let Slot::Table(table) = root.slot::<F>(0) else { panic!("no table") };
        seen.push(F::decode(table.entry(0).load(Ordering::Relaxed), 1));
    });
    assert_eq!(leads(&npt, 0x1234), Some((G1 + 0x1234, PageSize::Size4K)));
    assert_eq!(seen.len(), 1);
    seen[0]
}

#[test]
fn arm_breaks_then_flushes_then_makes_and_others_flush_last() {
    assert_eq!(entry_at_the_flush::<Stage2>(), Entry::Absent);
    assert!(matches!(entry_at_the_flush::<Ept>(), Entry::Table(_)));
    assert!(matches!(entry_at_the_flush::<GStage>(), Entry::Table(_)));
}

#[test]
fn accessed_and_dirty_survive_split_and_protect() {
    let mut npt = mapped::<Ept>(Geometry::SV39X4, 0, G1, G1, PageSize::Size1G);
    npt.root_table().entry(0).fetch_or(Ept::ACCESSED_DIRTY, Ordering::Relaxed);
    split(&mut npt, M2 + PAGE_SIZE_4K);
    npt.protect(range(0, M2 + PAGE_SIZE_4K), RX);
    let mut leaves = 0;
    let Slot::Table(middle) = npt.root_table().slot::<Ept>(0) else { panic!("not split") };
    let Slot::Table(last) = middle.slot::<Ept>(1) else { panic!("not split") };
    for table in [middle, last] {
        for index in 0..table.len() {
            if let Slot::Leaf { raw, flags, .. } = table.slot::<Ept>(index) {
                assert_eq!(raw & Ept::ACCESSED_DIRTY, Ept::ACCESSED_DIRTY);
                assert_eq!(flags, if index == 0 { RX } else { RW });
                leaves += 1;
            }
        }
    }
    assert_eq!(leaves, 511 + 512);
}

#[test]
fn protect_keeps_the_memory_type() {
    let mut npt = NestedPageTable::<Stage2, Frames>::new(Geometry::stage2(40).unwrap()).unwrap();
    let mut reserve = TableReserve::new(2).unwrap();
    let (gpa, device) = (GuestPhysAddr::from_usize(0), RW | MappingFlags::DEVICE);
    let map = npt.map_page(gpa, pa(0x1000), device, PageSize::Size4K, &mut reserve);
    assert_eq!(map, Ok(true));
    npt.protect(range(0, PAGE_SIZE_4K), MappingFlags::READ);
    let flags = MappingFlags::READ | MappingFlags::DEVICE;
    assert_eq!(npt.translate(gpa).map(|to| to.flags), Some(flags));
}

#[test]
fn a_second_fault_on_a_page_keeps_the_first_frame() {
    let mut npt = NestedPageTable::<Ept, Frames>::new(Geometry::EPT).unwrap();
    let gpa = GuestPhysAddr::from_usize(G1);
    let mut none = TableReserve::empty();
    let mut map = |hpa, reserve: &mut _| npt.map_page(gpa, pa(hpa), RW, PageSize::Size4K, reserve);
    assert_eq!(map(0x5000, &mut none), Err(OutOfFrames));
    assert_eq!(map(0x5000, &mut TableReserve::new(3).unwrap()), Ok(true));
    assert_eq!(map(0x6000, &mut none), Ok(false));
    assert_eq!(leads(&npt, G1), Some((0x5000, PageSize::Size4K)));
    assert_eq!(npt.table_frames(), 4);
}

#[test]
fn a_reserve_that_cannot_be_filled_gives_everything_back() {
    for frames in 0..5 {
        ARENA.with_borrow_mut(|arena| arena.left = Some(frames));
        assert_eq!(TableReserve::<Frames>::new(5).err(), Some(OutOfFrames));
        assert_eq!(live(), 0);
    }
    ARENA.with_borrow_mut(|arena| arena.left = Some(0));
    assert!(NestedPageTable::<Ept, Frames>::new(Geometry::EPT).is_err());
}

#[test]
fn frames_of_a_reserve_are_zero_however_dirty_they_came() {
    let mut reserve = TableReserve::<Frames>::new(3).unwrap();
    for left in (0..3).rev() {
        let table = reserve.take_table(0).unwrap();
        assert!(table.entries().iter().all(|entry| entry.load(Ordering::Relaxed) == 0));
        assert_eq!(reserve.len(), left);
        Frames::dealloc_frame(table.hpa());
    }
    assert_eq!(reserve.take(), None);
}

#[test]
fn unmapping_page_by_page_in_either_direction_leaves_the_root() {
    for reverse in [false, true] {
        let mut npt = mapped::<Ept>(Geometry::EPT, G1 - M2, M2, 2 * M2, PageSize::Size4K);
        assert_eq!(npt.table_frames(), 6);
        let mut pages: Vec<_> = (G1 - M2..G1 + M2).step_by(PAGE_SIZE_4K).collect();
        if reverse {
            pages.reverse();
        }
        let mut freed = 0;
        for page in pages {
            let mut removed = vec![];
            npt.unmap(range(page, PAGE_SIZE_4K), &mut removed, Leaves::Ignore);
            for removed in removed {
                // SAFETY: just handed out, nobody walks.
                freed += unsafe { release_tables::<Ept, Frames>(removed) };
            }
        }
        assert_eq!((npt.table_frames(), freed, live()), (1, 5, 1));
    }
}

#[test]
fn addresses_beyond_the_input_range_lead_nowhere() {
    let npt = mapped::<GStage>(Geometry::SV39X4, 0, 0, 2 * M2, PageSize::Size2M);
    assert!(leads(&npt, 0x1000).is_some());
    for gpa in [1 << 41, (1 << 41) + 0x1000, 1 << 63, usize::MAX] {
        assert_eq!(leads(&npt, gpa), None);
        assert_eq!(npt.tables_to_split(GuestPhysAddr::from_usize(gpa)), 0);
    }
}
