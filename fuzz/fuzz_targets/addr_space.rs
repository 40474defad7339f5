//! The address space of a VM against a list of regions and a set of pages: random maps, unmaps,
//! protects, faults, guest accesses and resets with arguments good and bad, in the format that
//! the input chooses, with allocations that fail, from outside the guest and from within. Results,
//! translations, permissions and contents agree; what fails with `NoMemory` changes nothing; no
//! frame is lost.

#![no_main]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock},
};

use arbitrary::Arbitrary;
use axerrno::{AxError, AxResult};
use axvm::{
    config::{AxVMConfig, VmMemMappingType},
    mm::{
        ADDRESS_LIMIT, FaultOutcome, MappingFlags, PAGE_SIZE_4K as PAGE, PageSize, npt::NptFormat,
    },
    vcpu::{AccessWidth, AxArchVCpu, AxVCpuExitReason, AxVMPerCpu},
    vm::{AxVM, AxVMRef},
};
use axvm_testkit::{
    Ept, GStage, HwNpt, Mmu, MockHal, ScriptedVCpu, Stage2, Step, enable_pcpus, mock_hal,
};
use common::Place;
use libfuzzer_sys::fuzz_target;

mock_hal!(struct Hal { arena: 64 << 20 });

const M2: usize = 2 << 20;
const G1: usize = 1 << 30;
/// Host memory for linear mappings, aligned to 1 GiB.
const HOST: usize = 0x20_0000_0000;
const HOST_SIZE: usize = G1 + G1 / 4;
/// Where configured regions are.
const BASES: [usize; 4] = [0x4000_0000, 0x8000_0000 - M2, 0xc000_0000, 0];

#[derive(Debug, Arbitrary)]
struct Input {
    format: u8,
    max_leaf: u8,
    fail_new: Option<u8>,
    boot: bool,
    config: [Option<Configured>; 4],
    ops: Vec<(Op, Option<Fail>, bool)>,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Fail {
    only: bool,
    nth: u8,
}

#[derive(Debug, Arbitrary)]
struct Configured {
    page: u8,
    size: Size,
    flags: u8,
    kind: u8,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Size {
    Pages(u8),
    Megs { chunks: u8, pages: u8 },
    Gig { pages: u8 },
    Any(usize),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Host {
    /// As far from a boundary of 1 GiB as the guest's address, and so many pages more.
    Congruent(u8),
    Page(u16),
    Any(usize),
}

#[derive(Debug, Arbitrary)]
enum Op {
    Linear { at: Place, exact: bool, size: Size, host: Host, flags: u8 },
    Alloc { at: Place, exact: bool, size: Size, flags: u8, populate: bool },
    Unmap { at: Place, exact: bool, size: Size },
    Protect { at: Place, exact: bool, size: Size, flags: u8 },
    Fault { at: Place, access: u8 },
    Load { at: Place },
    Store { at: Place, value: u64 },
    Fetch { at: Place },
    Clear,
    Reset,
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Pages(pages) => usize::from(pages) * PAGE,
            Self::Megs { chunks, pages } => {
                usize::from(chunks % 3) * M2 + usize::from(pages) * PAGE
            }
            Self::Gig { pages } => G1 + usize::from(pages) * PAGE,
            Self::Any(size) => size,
        }
    }
}

fn flags(bits: u8) -> MappingFlags {
    MappingFlags::from_bits_truncate(bits.into())
}

fn permissions(flags: MappingFlags) -> MappingFlags {
    flags & (MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE)
}

/// What the manuals let a leaf say.
fn expressible<F: HwNpt>(flags: MappingFlags) -> bool {
    let some = !permissions(flags).is_empty();
    let readable = flags.contains(MappingFlags::READ);
    let writable = flags.contains(MappingFlags::WRITE);
    // Execute-only is not for Arm here.
    some && (readable || !writable) && (readable || F::NAME != Stage2::NAME)
}

// ---- the model ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Linear(usize),
    Taken,
    Eager,
    Lazy { huge: bool },
}

#[derive(Clone, Copy, Debug)]
struct Seg {
    start: usize,
    end: usize,
    flags: MappingFlags,
    kind: Kind,
    /// The host added it, later than the VM was made.
    host: bool,
}

impl Seg {
    fn slice(self, start: usize, end: usize) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        let kind = match self.kind {
            Kind::Linear(hpa) => Kind::Linear(hpa + from.saturating_sub(self.start)),
            other => other,
        };
        (from < to).then_some(Self { start: from, end: to, kind, ..self })
    }
}

struct Test<F: HwNpt, const B: bool> {
    vm: AxVMRef<Hal, ScriptedVCpu<Hal, F, B>>,
    bits: Option<u32>,
    limit: usize,
    max_leaf: PageSize,
    booted: bool,
    huge: bool,
    plan: Vec<Seg>,
    segs: Vec<Seg>,
    /// Pages of lazy regions that have a frame.
    populated: BTreeSet<usize>,
    /// Where pages that the VM owns were found.
    seen: BTreeMap<usize, usize>,
    /// And the other way round.
    owner: HashMap<usize, usize>,
    /// The first word of each page seen.
    content: HashMap<usize, u64>,
    next_tag: u64,
}

impl<F: HwNpt, const B: bool> Test<F, B> {
    fn new(input: &Input, bits: Option<u32>) -> Option<Self> {
        let machine = Hal::machine();
        let max_leaf =
            [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][usize::from(input.max_leaf % 3)];
        machine.set_input_bits(bits.unwrap_or(0));
        machine.set_max_leaf(max_leaf);
        let mut config = AxVMConfig::new(1, "fuzz");
        let mut plan = Vec::new();
        for (base, region) in BASES.into_iter().zip(&input.config) {
            let Some(region) = region else { continue };
            let (start, size) = (base + usize::from(region.page) * PAGE, region.size.bytes());
            let map_type = [
                VmMemMappingType::MapAlloc,
                VmMemMappingType::MapLazy,
                VmMemMappingType::MapLazyHuge,
                VmMemMappingType::MapIdentical,
                VmMemMappingType::MapReserved,
            ][usize::from(region.kind % 5)];
            if size > 16 * M2 && map_type == VmMemMappingType::MapAlloc || size > 2 * G1 {
                continue;
            }
            let size = match map_type {
                VmMemMappingType::MapIdentical => size % (4 * M2),
                _ => size,
            };
            let kind = match map_type {
                VmMemMappingType::MapAlloc => Kind::Eager,
                VmMemMappingType::MapLazy => Kind::Lazy { huge: false },
                VmMemMappingType::MapLazyHuge => Kind::Lazy { huge: true },
                VmMemMappingType::MapIdentical => Kind::Taken,
                VmMemMappingType::MapReserved => Kind::Linear(start),
            };
            let flags = flags(region.flags);
            config = config.with_memory(start, size, flags, map_type);
            plan.push(Seg { start, end: start.saturating_add(size), flags, kind, host: false });
        }
        if let Some(nth) = input.fail_new {
            machine.arena().fail_after(u64::from(nth) + 1);
        }
        let valid = config.validate().is_ok();
        let vm = AxVM::<Hal, ScriptedVCpu<Hal, F, B>>::new(config);
        let injected = machine.arena().injected();
        machine.arena().fail_never();
        let vm = match vm {
            Ok(vm) => vm,
            Err(error) => {
                assert!(!valid || error == AxError::NoMemory && injected > 0, "{error}");
                return None;
            }
        };
        if input.boot {
            vm.boot().expect("boot");
        }
        plan.sort_by_key(|seg| seg.start);
        let default_bits = match F::NAME {
            name if name == Ept::NAME => 48,
            name if name == Stage2::NAME => 40,
            _ => 41,
        };
        let limit = ADDRESS_LIMIT.min(1 << bits.unwrap_or(default_bits).min(47));
        assert_eq!(vm.memory().range().end().as_usize(), limit);
        let lazy_huge = plan.iter().any(|seg| seg.kind == Kind::Lazy { huge: true });
        Some(Self {
            vm,
            bits,
            limit,
            max_leaf,
            booted: input.boot,
            huge: max_leaf != PageSize::Size4K || lazy_huge,
            segs: plan.clone(),
            plan,
            populated: BTreeSet::new(),
            seen: BTreeMap::new(),
            owner: HashMap::new(),
            content: HashMap::new(),
            next_tag: 1,
        })
    }

    fn resolve(&self, place: Place, exact: bool) -> usize {
        let mut places = vec![0, 0x4000_0000, 0x8000_0000, 0xc000_0000, self.limit, usize::MAX];
        places.extend(self.segs.iter().flat_map(|seg| [seg.start, seg.end]));
        let at = place.resolve(&places);
        if exact { at } else { at & !(PAGE - 1) }
    }

    fn at(&self, gpa: usize) -> Option<Seg> {
        self.segs.iter().find(|seg| (seg.start..seg.end).contains(&gpa)).copied()
    }

    /// A range of whole pages in the address space.
    fn range(&self, at: usize, size: usize) -> Option<(usize, usize)> {
        let end = at.checked_add(size)?;
        (size > 0 && (at | size) & (PAGE - 1) == 0 && end <= self.limit).then_some((at, end))
    }

    fn covered(&self, start: usize, end: usize) -> bool {
        let parts = self.segs.iter().filter_map(|seg| seg.slice(start, end));
        parts.map(|part| part.end - part.start).sum::<usize>() == end - start
    }

    /// Replaces the part of each region in a range.
    fn replace(&mut self, start: usize, end: usize, with: impl Fn(Seg) -> Option<Seg>) {
        let mut segs = Vec::new();
        for seg in self.segs.drain(..) {
            segs.extend(seg.slice(0, start));
            segs.extend(seg.slice(start, end).and_then(&with));
            segs.extend(seg.slice(end, usize::MAX));
        }
        self.segs = segs;
    }

    fn forget(&mut self, start: usize, end: usize) {
        let pages = self.seen.range(start..end).map(|(&page, &hpa)| (page, hpa));
        for (page, hpa) in pages.collect::<Vec<_>>() {
            self.seen.remove(&page);
            self.owner.remove(&hpa);
            self.content.remove(&hpa);
        }
        let pages: Vec<_> = self.populated.range(start..end).copied().collect();
        self.populated.retain(|page| !pages.contains(page));
    }

    /// Does it, in the guest if told to.
    fn perform<R: Send + 'static>(
        &self,
        inside: bool,
        act: impl FnOnce(&AxVM<Hal, ScriptedVCpu<Hal, F, B>>) -> R + Send + 'static,
    ) -> R {
        if !inside || !self.booted {
            return act(&self.vm);
        }
        let (result, vm) = (Arc::new(Mutex::new(None)), self.vm.clone());
        let slot = result.clone();
        let step = Step::call(move |_| *slot.lock().unwrap() = Some(act(&vm)));
        Hal::machine().program(1, 0).push(step);
        self.run();
        let done = result.lock().unwrap().take();
        done.expect("the guest got there")
    }

    /// Runs the vCPU until its program is done.
    fn run(&self) {
        for _ in 0..4 {
            match self.vm.run_vcpu(0) {
                Ok(AxVCpuExitReason::Halt) => return,
                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("kicked too often");
    }

    fn host_word(hpa: usize) -> *mut u64 {
        let va = Hal::machine().phys_to_virt(hpa.into());
        std::ptr::with_exposed_provenance_mut(va.as_usize())
    }

    /// Compares one page with the model.
    fn see(&mut self, gpa: usize) {
        let page = gpa & !(PAGE - 1);
        let found = self.vm.memory().translate(page.into()).map(|hpa| hpa.as_usize());
        let seg = self.at(page);
        assert_eq!(self.vm.memory().in_region(gpa.into()), seg.is_some(), "{gpa:#x}");
        let seg = match seg {
            Some(Seg { kind: Kind::Lazy { .. }, .. }) if !self.populated.contains(&page) => None,
            other => other,
        };
        let Some(seg) = seg else { return assert_eq!(found, None, "{page:#x}") };
        let hpa = found.unwrap_or_else(|| panic!("{page:#x} of {seg:x?} is not mapped"));
        match seg.kind {
            Kind::Linear(base) => assert_eq!(hpa, base + (page - seg.start), "{page:#x}"),
            Kind::Taken => assert_eq!(hpa, page),
            Kind::Eager | Kind::Lazy { .. } => match self.seen.get(&page) {
                Some(&known) => assert_eq!(hpa, known, "{page:#x} moved"),
                None => {
                    let other = self.owner.insert(hpa, page);
                    assert_eq!(other, None, "{page:#x} shares its frame");
                    self.seen.insert(page, hpa);
                }
            },
        }
        if !backed(seg.kind, page - seg.start) {
            return;
        }
        let mmu = Mmu {
            machine: Hal::machine(),
            format: F::HW,
            shape: F::shape(self.bits),
            vmid: 0,
            root: self.vm.ept_root(),
            pcpu: 0,
        };
        let (hardware, allowed) = mmu.probe(page.into()).expect("the table has it");
        assert_eq!(hardware.as_usize(), hpa);
        assert_eq!(permissions(allowed), permissions(seg.flags), "{page:#x}");
        if matches!(seg.kind, Kind::Linear(_)) {
            return;
        }
        let word = Self::host_word(hpa);
        // SAFETY: the frame is allocated, and no other thread uses it.
        let value = unsafe { word.read() };
        match self.content.get(&hpa) {
            Some(&known) => assert_eq!(value, known, "{page:#x}"),
            None => {
                assert_eq!(value, 0, "{page:#x} is not zeroed");
                // SAFETY: as above.
                unsafe { word.write(self.next_tag) };
                self.content.insert(hpa, self.next_tag);
                self.next_tag += 1;
            }
        }
    }

    /// Compares the pages around a place.
    fn see_around(&mut self, at: usize) {
        for near in [at.wrapping_sub(PAGE), at, at & !(M2 - 1), at | (M2 - 1), at & !(G1 - 1)] {
            self.see(near);
        }
    }

    fn see_all(&mut self) {
        for seg in self.segs.clone() {
            let pages = (seg.end - seg.start) / PAGE;
            let step = if pages <= 1100 { 1 } else { pages / 97 };
            (0..pages).step_by(step).for_each(|page| self.see(seg.start + page * PAGE));
            self.see(seg.end - PAGE);
            self.see(seg.end);
        }
    }

    /// Compares the frames.
    fn count(&self) {
        assert!(self.vm.memory().is_settled());
        let allocated = Hal::machine().arena().allocated();
        let eager = self.segs.iter().filter(|seg| seg.kind == Kind::Eager);
        let eager: usize = eager.map(|seg| (seg.end - seg.start) / PAGE).sum();
        let used = self.vm.memory().table_frames() + eager + self.populated.len();
        assert!(allocated >= used, "{allocated} frames for {used}");
        // What is left of a chunk holds the whole chunk.
        if !self.huge || eager + self.populated.len() == 0 {
            assert_eq!(allocated, used);
        }
    }

    /// Makes allocations fail as told while it acts, and judges the outcome.
    fn attempt<R: Send + 'static>(
        &mut self,
        expected: Result<(), AxError>,
        fail: Option<Fail>,
        inside: bool,
        act: impl FnOnce(&AxVM<Hal, ScriptedVCpu<Hal, F, B>>) -> AxResult<R> + Send + 'static,
    ) -> Option<R> {
        let arena = Hal::machine().arena();
        match fail {
            Some(Fail { only: true, nth }) => arena.fail_nth_only(u64::from(nth) + 1),
            Some(Fail { only: false, nth }) => arena.fail_after(u64::from(nth) + 1),
            None => {}
        }
        let (before, injected) = (arena.allocated(), arena.injected());
        let result = self.perform(inside, act);
        let failed = fail.is_some() && arena.injected() > 0 || injected != arena.injected();
        arena.fail_never();
        match result {
            Err(AxError::NoMemory) if failed => {
                assert_eq!(arena.allocated(), before, "a failure changes nothing");
                None
            }
            result => {
                assert_eq!(result.as_ref().map(drop), expected.as_ref().map(drop));
                result.ok()
            }
        }
    }

    fn add(
        &mut self,
        (at, size): (usize, usize),
        seg_flags: MappingFlags,
        kind: Kind,
        how: (Option<Fail>, bool),
    ) {
        let range = self.range(at, size);
        if kind == Kind::Eager && range.is_some() && size > 8 * M2 {
            return;
        }
        let expected = match range {
            None => Err(AxError::InvalidInput),
            Some(_) if !expressible::<F>(seg_flags) => Err(AxError::InvalidInput),
            Some((start, end)) if self.segs.iter().any(|s| s.slice(start, end).is_some()) => {
                Err(AxError::AlreadyExists)
            }
            Some(_) => match kind {
                Kind::Linear(hpa) if hpa & (PAGE - 1) != 0 => Err(AxError::InvalidInput),
                Kind::Linear(hpa) if hpa as u128 + size as u128 > 1 << F::PA_BITS => {
                    Err(AxError::InvalidInput)
                }
                _ => Ok(()),
            },
        };
        let done = self.attempt(expected, how.0, how.1, move |vm| match kind {
            Kind::Linear(hpa) => vm.map_region(at.into(), hpa.into(), size, seg_flags),
            _ => vm.memory().map_alloc(at.into(), size, seg_flags, kind == Kind::Eager),
        });
        if done.is_some() {
            self.segs.push(Seg { start: at, end: at + size, flags: seg_flags, kind, host: true });
            self.segs.sort_by_key(|seg| seg.start);
        }
        self.see_around(at);
        self.see_around(at.wrapping_add(size));
    }

    fn change(
        &mut self,
        at: usize,
        size: usize,
        new: Option<MappingFlags>,
        how: (Option<Fail>, bool),
    ) {
        let range = self.range(at, size).filter(|&(start, end)| self.covered(start, end));
        let expected = match range {
            Some(_) if new.is_none_or(expressible::<F>) => Ok(()),
            _ => Err(AxError::InvalidInput),
        };
        let done = self.attempt(expected, how.0, how.1, move |vm| match new {
            None => vm.unmap_region(at.into(), size),
            Some(flags) => vm.memory().protect(at.into(), size, flags),
        });
        if let (Some(()), Some((start, end))) = (done, range) {
            match new {
                None => {
                    self.replace(start, end, |_| None);
                    self.forget(start, end);
                }
                Some(new) => self.replace(start, end, |seg| {
                    let kept = seg.flags - permissions(seg.flags);
                    Some(Seg { flags: kept | permissions(new), ..seg })
                }),
            }
        }
        self.see_around(at);
        self.see_around(at.wrapping_add(size));
    }

    fn fault(&mut self, at: usize, access: MappingFlags, how: (Option<Fail>, bool)) {
        let result =
            self.attempt(Ok(()), how.0, how.1, move |vm| vm.memory().fault(at.into(), access));
        let Some(outcome) = result else { return self.see_around(at) };
        assert_eq!(outcome, self.faulted(at, access));
        self.see_around(at);
    }

    /// What a fault comes to; notes the pages that it maps.
    fn faulted(&mut self, at: usize, access: MappingFlags) -> FaultOutcome {
        let page = at & !(PAGE - 1);
        let Some(seg) = self.at(at) else { return FaultOutcome::Unmapped };
        if !seg.flags.contains(access) {
            return FaultOutcome::Denied;
        }
        let Kind::Lazy { huge } = seg.kind else { return FaultOutcome::Spurious };
        if !self.populated.insert(page) {
            return FaultOutcome::Spurious;
        }
        let block = at & !(M2 - 1);
        if huge
            && self.max_leaf != PageSize::Size4K
            && self.populated.range(block..block + M2).count() == 1
            && self.covered(block, block + M2)
            && self.vm.memory().translate((page ^ PAGE).into()).is_some()
        {
            self.populated.extend((block..block + M2).step_by(PAGE));
        }
        FaultOutcome::Populated
    }

    /// The guest loads, stores or fetches the first word of a page.
    fn guest(&mut self, at: usize, access: MappingFlags, store: u64) {
        let page = at & !(PAGE - 1);
        let seg = self.at(page);
        if !self.booted || seg.is_some_and(|seg| !backed(seg.kind, page - seg.start)) {
            return;
        }
        let step = match access {
            MappingFlags::READ => Step::load(page, AccessWidth::Qword, 5),
            MappingFlags::WRITE => Step::store(page, AccessWidth::Qword, store),
            _ => Step::Fetch { gpa: page },
        };
        Hal::machine().program(1, 0).push(step);
        self.run();
        let outcome = self.faulted(page, access);
        let hpa = self.vm.memory().translate(page.into()).map(|hpa| hpa.as_usize());
        if let (MappingFlags::WRITE, FaultOutcome::Populated | FaultOutcome::Spurious, Some(hpa)) =
            (access, outcome, hpa)
        {
            self.content.insert(hpa, store);
        }
        self.see(page);
        let allowed = matches!(outcome, FaultOutcome::Populated | FaultOutcome::Spurious);
        let reg = self.vm.vcpu_state(0).expect("it is out").regs[5];
        let content = self
            .vm
            .memory()
            .translate(page.into())
            .and_then(|hpa| self.content.get_mut(&hpa.as_usize()));
        match (access, content) {
            (MappingFlags::READ, _) if !allowed => assert_eq!(reg, u64::MAX),
            // It was loaded before `see` wrote its tag.
            (MappingFlags::READ, Some(&mut known)) => assert!(reg == known || reg == 0),
            _ => {}
        }
    }

    fn reset(&mut self, fail: Option<Fail>) {
        if self.booted {
            self.vm.shutdown().expect("shutdown");
            self.vm.wait_terminated().expect("terminated");
        }
        let bounds: Vec<_> = self.segs.iter().flat_map(|seg| [seg.start, seg.end - PAGE]).collect();
        let before = self.vm.memory().table_frames();
        let planned =
            |seg: &&Seg| self.plan.iter().any(|plan| plan.slice(seg.start, seg.end).is_some());
        let in_the_way = self.segs.iter().filter(|seg| seg.host).filter(planned);
        let in_the_way: Vec<_> = in_the_way.copied().collect();
        if !in_the_way.is_empty() {
            let refused = self.attempt(Err(AxError::AlreadyExists), fail, false, |vm| vm.reset());
            assert!(refused.is_none());
            assert_eq!(self.vm.memory().table_frames(), before);
            self.see_all();
            self.count();
            for seg in in_the_way {
                let size = seg.end - seg.start;
                self.vm.unmap_region(seg.start.into(), size).expect("unmap");
                self.replace(seg.start, seg.end, |_| None);
                self.forget(seg.start, seg.end);
            }
        }
        let before = self.vm.memory().table_frames();
        if self.attempt(Ok(()), fail, false, |vm| vm.reset()).is_none() {
            assert_eq!(self.vm.memory().table_frames(), before);
            self.see_all();
            self.count();
            self.vm.reset().expect("reset");
        }
        self.segs = self.plan.clone();
        self.populated.clear();
        self.seen.clear();
        self.owner.clear();
        self.content.clear();
        if self.booted {
            self.vm.boot().expect("boot");
        }
        bounds.into_iter().for_each(|at| self.see(at));
    }

    fn apply(&mut self, op: &Op, fail: Option<Fail>, inside: bool) {
        let how = (fail, inside);
        match *op {
            Op::Linear { at, exact, size, host, flags: bits } => {
                let (at, size) = (self.resolve(at, exact), size.bytes());
                let hpa = match host {
                    Host::Congruent(pages) => HOST + (at & (G1 - 1)) + usize::from(pages) * PAGE,
                    Host::Page(page) => HOST + usize::from(page) * PAGE,
                    Host::Any(hpa) => hpa,
                };
                self.add((at, size), flags(bits), Kind::Linear(hpa), how);
            }
            Op::Alloc { at, exact, size, flags: bits, populate } => {
                let kind = if populate { Kind::Eager } else { Kind::Lazy { huge: false } };
                self.add((self.resolve(at, exact), size.bytes()), flags(bits), kind, how);
            }
            Op::Unmap { at, exact, size } => {
                self.change(self.resolve(at, exact), size.bytes(), None, how);
            }
            Op::Protect { at, exact, size, flags: bits } => {
                self.change(self.resolve(at, exact), size.bytes(), Some(flags(bits)), how);
            }
            Op::Fault { at, access } => {
                let access = permissions(flags(access));
                self.fault(self.resolve(at, true), access, how);
            }
            Op::Load { at } => self.guest(self.resolve(at, true), MappingFlags::READ, 0),
            Op::Store { at, value } => {
                self.guest(self.resolve(at, true), MappingFlags::WRITE, value);
            }
            Op::Fetch { at } => self.guest(self.resolve(at, true), MappingFlags::EXECUTE, 0),
            Op::Clear => {
                self.attempt(Ok(()), fail, inside, |vm| vm.memory().clear()).expect("clear");
                self.segs.clear();
                self.forget(0, usize::MAX);
            }
            Op::Reset => self.reset(fail),
        }
        self.count();
    }
}

/// Whether there is memory behind a page.
fn backed(kind: Kind, offset: usize) -> bool {
    match kind {
        Kind::Linear(base) => (HOST..HOST + HOST_SIZE).contains(&(base + offset)),
        _ => true,
    }
}

fn run<F: HwNpt, const B: bool>(input: &Input, bits: Option<u32>) {
    let machine = Hal::machine();
    machine.program(1, 0).clear();
    if let Some(mut test) = Test::<F, B>::new(input, bits) {
        test.count();
        for (op, fail, inside) in input.ops.iter().take(48) {
            test.apply(op, *fail, *inside);
        }
        test.see_all();
    }
    (machine.take_kicks(), machine.take_wakes(), machine.take_timers());
    assert_eq!(machine.arena().allocated(), 0);
    machine.regions().assert_balanced();
}

fn enable<A: AxArchVCpu>() -> Vec<AxVMPerCpu<A>> {
    enable_pcpus::<A>(1)
}

fn start() {
    static ENABLED: OnceLock<Vec<AxVMPerCpu<axvm_testkit::X86Like<Hal>>>> = OnceLock::new();
    Hal::machine().set_tracing(false);
    Hal::machine().regions().add_device(HOST, HOST_SIZE);
    ENABLED.get_or_init(enable);
}

fuzz_target!(init: start(), |input: Input| {
    match input.format % 8 {
        0 | 1 => run::<Ept, false>(&input, None),
        2 => run::<Stage2, true>(&input, None),
        3 => run::<Stage2, true>(&input, Some(39)),
        4 => run::<Stage2, true>(&input, Some(48)),
        5 | 6 => run::<GStage, false>(&input, None),
        _ => run::<GStage, false>(&input, Some(50)),
    }
});
