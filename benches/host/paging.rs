//! Nested page tables, beside `page_table_multiarch`'s PageTable64 (four levels, x86-64 entries).

use std::hint::black_box;

use axvm::mm::npt::{Ept, GStage, Geometry, NestedPageTable, NptFormat, TableReserve};
use axvm::mm::{
    AddrSpace, FaultOutcome, GpaRange, HostPhysAddr, HostVirtAddr, MappingFlags, PageSize,
};
use page_table_multiarch::x86_64::X64PageTable;

use crate::frames::Frames;
use crate::machine::{Host, NoTlb};
use crate::report::{OURS, Op, random_below};

const MAP: Op = Op::instr("map 1 GiB in 4 KiB pages, per PTE", 15.0);
const UNMAP: Op = Op::instr("unmap 1 GiB in 4 KiB pages, per PTE", 15.0);
const TRANSLATE_4K: Op = Op::instr("translate, 4 KiB leaf", 45.0);
const TRANSLATE_2M: Op = Op::instr("translate, 2 MiB leaf", 40.0);
const FAULT: Op = Op::instr("fault on a lazy page, without the zeroing", 150.0);
const FRAMES_EPT: Op = Op::frames("table frames for 1 GiB linear, EPT", 3.0);
const FRAMES_SV39X4: Op = Op::frames("table frames for 1 GiB linear, Sv39x4", 2.0);
const FRAMES_AFTER: Op = Op::frames("table frames after unmap", 1.0);

const UNMAP_OWNED: Op = Op::extra("unmap 256 MiB of owned 4 KiB frames, per PTE");
const UNMAP_PAGE: Op = Op::extra("unmap single 4 KiB pages, per call");
const WALK_4K: Op = Op::extra("the walk alone, 4 KiB leaf");
const WALK_2M: Op = Op::extra("the walk alone, 2 MiB leaf");

/// The rows of the table, and four for information.
pub const OPS: &[Op] = &[
    MAP,
    UNMAP,
    UNMAP_OWNED,
    UNMAP_PAGE,
    TRANSLATE_4K,
    WALK_4K,
    TRANSLATE_2M,
    WALK_2M,
    FAULT,
    FRAMES_EPT,
    FRAMES_SV39X4,
    FRAMES_AFTER,
];

const GIB: usize = 1 << 30;
const PAGES: usize = GIB >> 12;
/// Guest-physical start; 1 GiB-aligned.
const GPA: usize = 0x8000_0000;
/// Host-physical start; 2 MiB-aligned, not 1 GiB-aligned, so 2 MiB leaves are the largest.
const HPA: usize = 0x1_0020_0000;
const TRANSLATIONS: usize = 20_000;

/// Runs every case.
pub fn run() {
    multiarch_4k();
    multiarch_2m();
    ours_4k();
    ours_2m();
    ours_owned();
    ours_walk(WALK_4K, PageSize::Size4K);
    ours_walk(WALK_2M, PageSize::Size2M);
    ours_fault();
    let ept = ours_frames::<Ept>(FRAMES_EPT, Geometry::EPT);
    let gstage = ours_frames::<GStage>(FRAMES_SV39X4, Geometry::SV39X4);
    FRAMES_AFTER.value(OURS, ept.max(gstage));
}

/// Random addresses in the mapped GiB.
fn addresses() -> Vec<usize> {
    random_below(GIB).take(TRANSLATIONS).map(|offset| GPA + offset).collect()
}

fn rwx() -> MappingFlags {
    black_box(MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE)
}

const MULTIARCH: &str = "page_table_multiarch";

fn multiarch_4k() {
    let mut table = X64PageTable::<Frames>::try_new().expect("a root");
    let flags = rwx();
    MAP.run(MULTIARCH, PAGES, || {
        let mut cursor = table.cursor();
        for page in 0..PAGES {
            let offset = page << 12;
            cursor
                .map(
                    HostVirtAddr::from(GPA + offset),
                    HostPhysAddr::from(HPA + offset),
                    PageSize::Size4K,
                    flags,
                )
                .expect("the page is free");
        }
    });
    TRANSLATE_4K.each(MULTIARCH, &addresses(), |gpa| table.query(HostVirtAddr::from(gpa)));
    UNMAP.run(MULTIARCH, PAGES, || {
        let mut cursor = table.cursor();
        for page in 0..PAGES {
            let unmapped = cursor.unmap(HostVirtAddr::from(GPA + (page << 12)));
            black_box(unmapped.expect("the page is mapped"));
        }
    });
}

fn multiarch_2m() {
    let before = Frames::in_use();
    let mut table = X64PageTable::<Frames>::try_new().expect("a root");
    let to_hpa = |gpa: HostVirtAddr| HostPhysAddr::from(gpa.as_usize() - GPA + HPA);
    table
        .cursor()
        .map_region(HostVirtAddr::from(GPA), to_hpa, GIB, rwx(), true)
        .expect("the region is free");
    FRAMES_EPT.value(MULTIARCH, Frames::in_use() - before);
    TRANSLATE_2M.each(MULTIARCH, &addresses(), |gpa| table.query(HostVirtAddr::from(gpa)));
    table.cursor().unmap_region(HostVirtAddr::from(GPA), GIB).expect("the region is mapped");
    FRAMES_AFTER.value(MULTIARCH, Frames::in_use() - before);
}

type Space<F = Ept> = AddrSpace<Host, F, NoTlb>;

fn space<F: NptFormat>(geometry: Geometry, max_leaf: PageSize) -> Space<F> {
    Space::new_empty(black_box(geometry), max_leaf, 0.into(), 1 << 40, 4).expect("a root")
}

fn ours_4k() {
    let space = space::<Ept>(Geometry::EPT, PageSize::Size1G);
    // Against 2 MiB the two addresses differ by a page: only 4 KiB leaves fit.
    let (hpa, flags) = (HPA + 0x1000, rwx());
    MAP.run(OURS, PAGES, || {
        space.map_linear(GPA.into(), hpa.into(), GIB, flags).expect("the range is free");
    });
    assert_eq!(space.table_frames(), 3 + 512);
    let addresses = addresses();
    for &gpa in &addresses {
        assert_eq!(space.translate(gpa.into()), Some((gpa - GPA + hpa).into()));
    }
    TRANSLATE_4K.each(OURS, &addresses, |gpa| space.translate(gpa.into()));
    UNMAP.run(OURS, PAGES, || space.unmap(GPA.into(), GIB).expect("the region is mapped"));
    assert_eq!(space.table_frames(), 1);
}

fn ours_2m() {
    let space = space::<Ept>(Geometry::EPT, PageSize::Size1G);
    space.map_linear(GPA.into(), HPA.into(), GIB, rwx()).expect("the range is free");
    TRANSLATE_2M.each(OURS, &addresses(), |gpa| space.translate(gpa.into()));
}

/// Memory of the host's allocator: unmapping gives back every frame.
fn ours_owned() {
    const SIZE: usize = GIB / 4;
    let space = space::<Ept>(Geometry::EPT, PageSize::Size4K);
    let map = || space.map_alloc(GPA.into(), SIZE, rwx(), true).expect("there is memory");
    map();
    UNMAP_OWNED.run(OURS, SIZE >> 12, || {
        space.unmap(GPA.into(), SIZE).expect("the region is mapped");
    });
    map();
    const SINGLE: usize = 2000;
    UNMAP_PAGE.run(OURS, SINGLE, || {
        for page in 0..SINGLE {
            space.unmap((GPA + (page << 12)).into(), 0x1000).expect("the page is mapped");
        }
    });
}

/// [`Space::translate`] without what keeps the tables alive meanwhile.
fn ours_walk(op: Op, leaf: PageSize) {
    let range = GpaRange::new(GPA.into(), GIB).expect("a range");
    let mut table = NestedPageTable::<Ept, Frames>::new(black_box(Geometry::EPT)).expect("a root");
    let needed = table.tables_to_map(range, HPA.into(), leaf);
    let mut reserve = TableReserve::new(needed).expect("frames");
    table.map(range, HPA.into(), rwx(), leaf, &mut reserve);
    op.each(OURS, &addresses(), |gpa| table.translate(gpa.into()));
}

/// Each page faults once. The zeroing is subtracted, of every page and of every table that
/// appears on the way, as much as the same calls to `memset` cost by themselves.
fn ours_fault() {
    let space = space::<Ept>(Geometry::EPT, PageSize::Size1G);
    space.map_alloc(GPA.into(), GIB, rwx(), false).expect("the range is free");
    let mut seen = std::collections::HashSet::new();
    let pages: Vec<_> = addresses().into_iter().filter(|gpa| seen.insert(gpa >> 12)).collect();
    // A table for each 2 MiB, and one for the GiB. A fresh space has the root alone.
    let areas = pages.iter().map(|gpa| gpa >> 21).collect::<std::collections::HashSet<_>>();
    let tables = areas.len() + 2;
    let access = black_box(MappingFlags::WRITE);
    let mut page = vec![1_u8; 4096];
    let zeroing = || {
        for _ in 0..pages.len() + tables {
            // SAFETY: the page is the vector's.
            unsafe { black_box(page.as_mut_ptr()).write_bytes(0, black_box(4096)) };
        }
    };
    FAULT.each_less(OURS, &pages, zeroing, |gpa| space.fault(gpa.into(), access));
    assert_eq!(space.table_frames(), 1 + tables);
    for gpa in pages {
        assert_eq!(space.fault(gpa.into(), access), Ok(FaultOutcome::Spurious));
    }
}

/// Frames of the tables for 2 MiB-aligned linear memory; returns those after the unmap. The root
/// counts as one, however large it is.
fn ours_frames<F: NptFormat>(op: Op, geometry: Geometry) -> usize {
    let before = Frames::in_use() + geometry.root_frames() - 1;
    let space = space::<F>(geometry, PageSize::Size1G);
    space.map_linear(GPA.into(), HPA.into(), GIB, rwx()).expect("the range is free");
    op.value(OURS, Frames::in_use() - before);
    space.unmap(GPA.into(), GIB).expect("the region is mapped");
    Frames::in_use() - before
}
