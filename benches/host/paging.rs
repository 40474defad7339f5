//! Nested page tables, beside `page_table_multiarch`'s PageTable64 (four levels, x86-64 entries).

use std::hint::black_box;

use axvm::mm::{HostPhysAddr, HostVirtAddr, MappingFlags, PageSize};
use page_table_multiarch::x86_64::X64PageTable;

use crate::frames::Frames;
use crate::report::{Op, random_below};

const MAP: Op = Op::instr("map 1 GiB in 4 KiB pages, per PTE", 15.0).pending();
const UNMAP: Op = Op::instr("unmap 1 GiB in 4 KiB pages, per PTE", 15.0).pending();
const TRANSLATE_4K: Op = Op::instr("translate, 4 KiB leaf", 45.0).pending();
const TRANSLATE_2M: Op = Op::instr("translate, 2 MiB leaf", 40.0).pending();
const FAULT: Op = Op::instr("fault on a lazy page, without the zeroing", 150.0).pending();
const FRAMES_EPT: Op = Op::frames("table frames for 1 GiB linear, EPT", 3.0).pending();
const FRAMES_SV39X4: Op = Op::frames("table frames for 1 GiB linear, Sv39x4", 2.0).pending();
const FRAMES_AFTER: Op = Op::frames("table frames after unmap", 1.0).pending();

/// The rows of the table.
pub const OPS: &[Op] =
    &[MAP, UNMAP, TRANSLATE_4K, TRANSLATE_2M, FAULT, FRAMES_EPT, FRAMES_SV39X4, FRAMES_AFTER];

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
