//! The nested page table against a plain model: random sequences in three formats and several
//! geometries. After every step each page's translation, permissions and memory type agree, no
//! table is empty, and the frames allocated are those that the tables need; at the end all are
//! given back.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use axvm::mm::{
    GpaRange, GuestPhysAddr, HostPhysAddr, HostVirtAddr, MappingFlags, PAGE_SIZE_4K, PageSize,
    PagingHandler,
    npt::{
        Ept, GStage, Geometry, Leaves, NestedPageTable, NptFormat, Removed, Stage2, TableReserve,
        release, release_tables,
    },
};
use proptest::prelude::*;

const K4: usize = PAGE_SIZE_4K;
const M2: usize = 2 << 20;
const G1: usize = 1 << 30;

// ---- frames: one arena for each thread, with addresses that are those of the process ----

#[derive(Default)]
struct Arena {
    live: HashMap<usize, usize>,
    frames: usize,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::default();
}

struct Frames;

fn layout(num: usize, align: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(num * K4, align).unwrap()
}

impl PagingHandler for Frames {
    fn alloc_frames(num: usize, align: usize) -> Option<HostPhysAddr> {
        // SAFETY: the size is not zero.
        let frame = unsafe { std::alloc::alloc(layout(num, align)) };
        // SAFETY: just allocated. Frames come dirty.
        unsafe { frame.write_bytes(0xa5, num * K4) };
        ARENA.with_borrow_mut(|arena| {
            arena.live.insert(frame as usize, num | align);
            arena.frames += num;
        });
        Some(HostPhysAddr::from_usize(frame as usize))
    }

    fn dealloc_frames(hpa: HostPhysAddr, num: usize) {
        let align = ARENA.with_borrow_mut(|arena| {
            let live = arena.live.remove(&hpa.as_usize()).expect("not allocated, or freed twice");
            assert_eq!(live & (K4 - 1), num, "freed with another count");
            arena.frames -= num;
            live - num
        });
        // SAFETY: allocated above with this layout, and not freed since.
        unsafe { std::alloc::dealloc(hpa.as_usize() as *mut u8, layout(num, align)) };
    }

    fn phys_to_virt(hpa: HostPhysAddr) -> HostVirtAddr {
        HostVirtAddr::from_usize(hpa.as_usize())
    }
}

fn allocated() -> usize {
    ARENA.with_borrow(|arena| arena.frames)
}

// ---- the model ----

/// A run of equal treatment: `start .. end` maps to `hpa`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    end: usize,
    hpa: usize,
    flags: MappingFlags,
}

/// Runs by their start; a run is as mapped, cut at the ends of unmaps, protects and splits.
#[derive(Default)]
struct Model {
    runs: BTreeMap<usize, Run>,
}

impl Model {
    fn at(&self, gpa: usize) -> Option<(usize, MappingFlags)> {
        let (&start, run) = self.runs.range(..=gpa).next_back()?;
        (gpa < run.end).then(|| (run.hpa + (gpa - start), run.flags))
    }

    fn is_free(&self, start: usize, end: usize) -> bool {
        self.runs.range(..end).next_back().is_none_or(|(_, run)| run.end <= start)
    }

    fn cut(&mut self, at: usize) {
        let Some((&start, &run)) = self.runs.range(..at).next_back() else { return };
        if at < run.end {
            self.runs.insert(start, Run { end: at, ..run });
            self.runs.insert(at, Run { hpa: run.hpa + (at - start), ..run });
        }
    }

    fn starts(&self, start: usize, end: usize) -> Vec<usize> {
        self.runs.range(start..end).map(|(&start, _)| start).collect()
    }

    /// The bytes mapped in a range.
    fn mapped(&self, start: usize, end: usize) -> usize {
        let overlap =
            |(&from, run): (&usize, &Run)| run.end.min(end).saturating_sub(from.max(start));
        self.runs.range(..end).map(overlap).sum()
    }
}

/// What the table is, found by translating: the tables that must exist, and every leaf.
fn shape<F: NptFormat>(npt: &NestedPageTable<F, Frames>, model: &Model) -> BTreeSet<(u32, usize)> {
    let mut tables = BTreeSet::new();
    for (&start, run) in &model.runs {
        let mut gpa = start;
        while gpa < run.end {
            let found = npt.translate(gpa.into()).expect("mapped in the model");
            assert_eq!(found.hpa.as_usize(), run.hpa + (gpa - start), "{gpa:#x}");
            assert_eq!(found.flags, run.flags, "{gpa:#x}");
            let size = found.size as usize;
            // The last byte of the leaf leads where it should, or belongs to another run (then a
            // leaf spans two runs that the model cut and the table had no reason to).
            let leaf = gpa & !(size - 1);
            let last = (leaf + size).min(run.end) - 1;
            let tail = npt.translate(last.into()).expect("mapped in the model");
            assert_eq!(tail.hpa.as_usize(), run.hpa + (last - start));
            for shift in [21u32, 30, 39].into_iter().filter(|&shift| size < 1 << shift) {
                if shift < npt.geometry().levels() as u32 * 9 + 12 {
                    tables.insert((shift, gpa >> shift));
                }
            }
            gpa = last + 1;
        }
    }
    // The root is not below an entry.
    let top = (npt.geometry().levels() as u32 - 1) * 9 + 12;
    tables.retain(|&(shift, _)| shift <= top);
    tables
}

// ---- steps ----

#[derive(Clone, Debug)]
enum Step {
    Map { at: usize, len: usize, hpa: usize, flags: usize, max: PageSize },
    Page { at: usize, hpa: usize, flags: usize, size: PageSize },
    Unmap { at: usize, len: usize, leaves: bool },
    Protect { at: usize, len: usize, flags: usize },
    Split { at: usize },
}

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M), Just(PageSize::Size1G)]
}

/// Addresses near boundaries: of 2 MiB, 1 GiB, 512 GiB, and the ends of the input range
/// (resolved modulo the geometry's size).
fn address() -> impl Strategy<Value = usize> {
    let anchor = prop_oneof![
        4 => Just(0),
        4 => Just(G1),
        2 => Just(G1 + M2),
        2 => Just(512 * G1 - G1),
        2 => Just(512 * G1),
        1 => Just(usize::MAX / 2 + 1 - 2 * G1),
    ];
    let offset = prop_oneof![
        4 => (0usize..4).prop_map(|n| n * M2),
        4 => (0usize..12).prop_map(|n| n * K4),
        2 => (500usize..512).prop_map(|n| n * K4),
        1 => (508usize..513).prop_map(|n| n * M2),
        1 => Just(0),
    ];
    (anchor, offset).prop_map(|(anchor, offset)| anchor + offset)
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        5 => (1usize..8).prop_map(|n| n * K4),
        3 => (1usize..4).prop_map(|n| n * M2),
        1 => (505usize..520).prop_map(|n| n * K4),
        1 => Just(G1),
        1 => Just(G1 + M2 + K4),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (address(), length(), 0usize..6, 0usize..8, size())
            .prop_map(|(at, len, hpa, flags, max)| Step::Map { at, len, hpa, flags, max }),
        3 => (address(), 0usize..6, 0usize..8, size())
            .prop_map(|(at, hpa, flags, size)| Step::Page { at, hpa, flags, size }),
        5 => (address(), length(), any::<bool>())
            .prop_map(|(at, len, leaves)| Step::Unmap { at, len, leaves }),
        3 => (address(), length(), 0usize..8)
            .prop_map(|(at, len, flags)| Step::Protect { at, len, flags }),
        2 => address().prop_map(|at| Step::Split { at }),
    ]
}

/// A host address with a chosen alignment relative to `gpa`.
fn host(choice: usize, gpa: usize) -> usize {
    let base = 0x10_0000_0000;
    match choice {
        0 => base + (gpa & (M2 - 1)),
        1 => base + K4,
        _ => base + (gpa & (G1 - 1)),
    }
}

fn flags(choice: usize) -> MappingFlags {
    use MappingFlags as M;
    [
        M::READ,
        M::READ | M::WRITE,
        M::READ | M::EXECUTE,
        M::READ | M::WRITE | M::EXECUTE,
        M::READ | M::WRITE | M::DEVICE,
        M::READ | M::UNCACHED,
        M::READ | M::WRITE | M::DEVICE | M::UNCACHED,
        M::READ | M::WRITE | M::EXECUTE,
    ][choice]
}

fn permissions() -> MappingFlags {
    MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE
}

struct Test<F: NptFormat> {
    npt: NestedPageTable<F, Frames>,
    model: Model,
}

impl<F: NptFormat> Test<F> {
    fn range(&self, at: usize, len: usize) -> (usize, usize, GpaRange) {
        let end = self.npt.geometry().input_range().end().as_usize();
        let start = at % end;
        let end = (start + len).min(end);
        (start, end, GpaRange::new(start.into(), end - start).unwrap())
    }

    fn split(&mut self, at: usize) {
        let gpa = GuestPhysAddr::from_usize(at);
        let tables = self.npt.tables_to_split(gpa);
        assert!(tables <= 2);
        let before = self.npt.table_frames();
        let mut reserve = TableReserve::new(tables).unwrap();
        let view = self.npt.view();
        let mut flushes = 0;
        self.npt.split_at(gpa, &mut reserve, &mut |range| {
            flushes += 1;
            assert!(range.start().as_usize() < at && at < range.end().as_usize());
            // SAFETY: the table lives, and nothing has been released.
            let during = unsafe { view.translate(range.start()) };
            assert_eq!(during.is_none(), F::BREAK_BEFORE_MAKE);
        });
        assert_eq!(flushes, usize::from(tables > 0));
        assert!(reserve.is_empty());
        assert_eq!(self.npt.table_frames(), before + tables);
        assert_eq!(self.npt.tables_to_split(gpa), 0);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Map { at, len, hpa, flags: choice, max } => {
                let (start, end, range) = self.range(at, len);
                if !self.model.is_free(start, end) {
                    return;
                }
                // Many 4 KiB leaves only tire the test.
                let max = if end - start > 4 * M2 && max == PageSize::Size4K {
                    PageSize::Size2M
                } else {
                    max
                };
                let hpa =
                    if end - start > 4 * M2 { host(hpa.max(2), start) } else { host(hpa, start) };
                let host = HostPhysAddr::from_usize(hpa);
                let tables = self.npt.tables_to_map(range, host, max);
                let before = self.npt.table_frames();
                let mut reserve = TableReserve::new(tables).unwrap();
                self.npt.map(range, host, flags(choice), max, &mut reserve);
                assert!(reserve.is_empty(), "tables_to_map is exact");
                assert_eq!(self.npt.table_frames(), before + tables);
                self.model.runs.insert(start, Run { end, hpa, flags: flags(choice) });
            }
            Step::Page { at, hpa, flags: choice, size } => {
                let (start, end, range) = self.range(at & !(size as usize - 1), size as usize);
                let hpa = host(hpa, start) & !(size as usize - 1);
                let host = HostPhysAddr::from_usize(hpa);
                let free = self.model.is_free(start, end);
                let (gpa, flags) = (range.start(), flags(choice));
                let before = allocated();
                let mut reserve = TableReserve::empty();
                let done = match self.npt.map_page(gpa, host, flags, size, &mut reserve) {
                    Ok(done) => done,
                    Err(_) => {
                        assert_eq!(allocated(), before);
                        assert_eq!(self.npt.translate(gpa), None);
                        let tables = self.npt.tables_to_map(range, host, size);
                        assert!(tables > 0);
                        reserve = TableReserve::new(tables).unwrap();
                        let done = self.npt.map_page(gpa, host, flags, size, &mut reserve);
                        assert!(reserve.is_empty());
                        done.unwrap()
                    }
                };
                assert_eq!(done, free);
                if done {
                    self.model.runs.insert(start, Run { end, hpa, flags });
                }
            }
            Step::Unmap { at, len, leaves } => {
                let (start, end, range) = self.range(at, len);
                self.split(start);
                if end < self.npt.geometry().input_range().end().as_usize() {
                    self.split(end);
                }
                self.unmap(start, end, range, leaves);
            }
            Step::Protect { at, len, flags: choice } => {
                let (start, end, range) = self.range(at, len);
                self.split(start);
                self.split(end);
                let new = flags(choice) & permissions();
                self.npt.protect(range, new);
                self.model.cut(start);
                self.model.cut(end);
                for start in self.model.starts(start, end) {
                    let run = self.model.runs.get_mut(&start).unwrap();
                    run.flags = (run.flags - permissions()) | new;
                }
            }
            Step::Split { at } => self.split(self.range(at, K4).0),
        }
    }

    fn unmap(&mut self, start: usize, end: usize, range: GpaRange, leaves: bool) {
        let bound = self.npt.count_removed(range);
        let mut removed = Vec::with_capacity(bound);
        let before = self.npt.table_frames();
        let how = if leaves { Leaves::Report } else { Leaves::Ignore };
        self.npt.unmap(range, &mut removed, how);
        assert!(removed.len() <= bound);
        let (mut bytes, mut tables) = (0, 0);
        for removed in removed {
            let expected = match removed {
                Removed::Leaf { .. } => 0,
                Removed::Table { tables, .. } => tables,
            };
            // SAFETY: just handed out; nobody walks.
            let freed = unsafe {
                if leaves {
                    release::<F, Frames>(removed, &mut |_, size| bytes += size as usize)
                } else {
                    release_tables::<F, Frames>(removed)
                }
            };
            assert_eq!(freed, expected);
            tables += freed;
        }
        assert_eq!(self.npt.table_frames(), before - tables);
        if leaves {
            assert_eq!(bytes, self.model.mapped(start, end), "every page is reported once");
        }
        self.model.cut(start);
        self.model.cut(end);
        for start in self.model.starts(start, end) {
            self.model.runs.remove(&start);
        }
    }

    fn check(&self) {
        let tables = shape(&self.npt, &self.model);
        let frames = self.npt.geometry().root_frames() + tables.len();
        assert_eq!(self.npt.table_frames(), frames, "no table is empty, none is missing");
        assert_eq!(allocated(), frames);
        for (&start, run) in &self.model.runs {
            for gpa in [start.wrapping_sub(K4), run.end] {
                let found = self.npt.translate(gpa.into()).map(|t| (t.hpa.as_usize(), t.flags));
                assert_eq!(found, self.model.at(gpa), "{gpa:#x}");
            }
        }
    }
}

fn run<F: NptFormat>(geometry: Geometry, steps: &[Step]) {
    let mut test =
        Test::<F> { npt: NestedPageTable::new(geometry).unwrap(), model: Model::default() };
    assert_eq!(test.npt.root().as_usize() % geometry.root_size(), 0);
    for (n, step) in steps.iter().enumerate() {
        test.apply(step);
        if n % 8 == 7 {
            test.check();
        }
    }
    test.check();
    let all = geometry.input_range();
    if steps.len().is_multiple_of(2) {
        test.unmap(0, all.end().as_usize(), all, true);
        assert_eq!(allocated(), geometry.root_frames());
    }
    drop(test);
    assert_eq!(allocated(), 0);
}

macro_rules! against_the_model {
    ($($name:ident: $format:ty, $geometry:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig {
                cases: std::env::var("PROPTEST_CASES")
                    .ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000),
                failure_persistence: None,
                ..ProptestConfig::default()
            })]
            $(
                #[test]
                fn $name(steps in prop::collection::vec(step(), 200..220)) {
                    let geometry: fn(usize) -> Geometry = $geometry;
                    run::<$format>(geometry(steps.len()), &steps);
                }
            )*
        }
    };
}

against_the_model! {
    ept_agrees_with_the_model: Ept, |_| Geometry::EPT;
    stage2_agrees_with_the_model: Stage2,
        |n| Geometry::stage2([39, 40, 43, 44, 48][n % 5]).unwrap();
    gstage_agrees_with_the_model: GStage,
        |n| [Geometry::SV39X4, Geometry::SV48X4][n % 2];
}
