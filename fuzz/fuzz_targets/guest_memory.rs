//! Guest memory against plain bytes: copies, objects, atomics and host segments at arbitrary
//! addresses, over RAM of every kind, devices and holes, while pages are mapped, unmapped and
//! protected and allocations fail. Results and bytes agree; what fails changes at most a prefix.
//!
//! Beside that, ranges of guest-physical addresses against the same sums in 128 bits: no operation
//! panics or wraps, whatever a guest asks for.

#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use axerrno::{AxError, AxResult};
use axvm::{
    config::{AxVMConfig, VmMemMappingType},
    mm::{
        GpaRange, GuestPhysAddr, HostSegment, MappingFlags, PAGE_SIZE_4K, PageSize, npt::NptFormat,
    },
    vm::{AxVM, AxVMRef},
};
use axvm_testkit::{Ept, GStage, HwNpt, MockHal, ScriptedVCpu, Stage2, mock_hal};
use libfuzzer_sys::fuzz_target;

mock_hal!(struct Hal { arena: 64 << 20 });

const PAGE: usize = PAGE_SIZE_4K;
const M2: usize = 2 << 20;
/// Host memory for linear mappings.
const HOST: usize = 0x20_0000_0000;
const HOST_PAGES: usize = 16;
/// Where most regions are.
const BASE: usize = 0x4000_0000;
/// Host memory that is taken at the guest's address.
const TAKEN: usize = 0x5000_0000;
/// What a buffer holds where nothing was read.
const UNTOUCHED: u8 = 0xee;

const READ: MappingFlags = MappingFlags::READ;
const WRITE: MappingFlags = MappingFlags::WRITE;
const READ_WRITE: MappingFlags = READ.union(WRITE);
const DEVICE: MappingFlags = MappingFlags::DEVICE;

#[derive(Debug, Arbitrary)]
enum Input {
    Ranges(Ranges),
    Memory(Memory),
}

#[derive(Debug, Arbitrary)]
struct Ranges {
    first: (usize, usize),
    second: (usize, usize),
    /// Where it lies: anywhere, or close to an end of the first range, where mistakes live.
    addr: usize,
    near: Option<(bool, i8)>,
    align_shift: u8,
}

#[derive(Debug, Arbitrary)]
struct Memory {
    format: u8,
    max_leaf: u8,
    ops: Vec<(Op, Option<Fail>)>,
}

/// Allocations that fail during an access.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Fail {
    only: bool,
    nth: u8,
}

/// An address: near an edge of a region or of the address space, so many pages further, or
/// anywhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum At {
    Edge(u8, i8),
    Page(u8, i8, i8),
    Chunk(u8, i8),
    Any(usize),
}

/// A length, of little more than three pages at most.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Len {
    Bytes(u8),
    Pages(u8, i8),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Read {
        at: At,
        len: Len,
    },
    Write {
        at: At,
        len: Len,
        seed: u8,
    },
    ReadObj {
        at: At,
        align: bool,
        what: u8,
    },
    WriteObj {
        at: At,
        align: bool,
        what: u8,
        seed: u8,
    },
    Load {
        at: At,
        align: bool,
        width: Width,
    },
    Store {
        at: At,
        align: bool,
        width: Width,
        value: u64,
    },
    /// `current` is what is there, unless it is told.
    CompareExchange {
        at: At,
        align: bool,
        width: Width,
        current: Option<u64>,
        new: u64,
    },
    Segments {
        at: At,
        len: Len,
        which: u8,
        write: Option<u8>,
    },
    Alloc {
        at: At,
        size: Pages,
        flags: u8,
        populate: bool,
    },
    Linear {
        at: At,
        size: Pages,
        host: u8,
        flags: u8,
    },
    Unmap {
        at: At,
        size: Pages,
    },
    Protect {
        at: At,
        size: Pages,
        flags: u8,
    },
}

/// Pages, or a chunk of 2 MiB.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Pages {
    Few(u8),
    Chunk,
}

impl Len {
    fn bytes(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.into(),
            Self::Pages(pages, by) => {
                (usize::from(pages % 4) * PAGE).saturating_add_signed(by.into())
            }
        }
    }
}

impl Width {
    fn bytes(self) -> usize {
        1 << self as usize
    }
}

impl Pages {
    fn bytes(self) -> usize {
        match self {
            Self::Few(pages) => usize::from(pages % 8) * PAGE,
            Self::Chunk => M2,
        }
    }
}

fn flags(bits: u8) -> MappingFlags {
    MappingFlags::from_bits_truncate(bits.into())
}

fn permissions(flags: MappingFlags) -> MappingFlags {
    flags & (READ_WRITE | MappingFlags::EXECUTE)
}

/// What the manuals let a leaf say.
fn expressible<F: HwNpt>(flags: MappingFlags) -> bool {
    let readable = flags.contains(READ);
    // Execute-only is not for Arm here.
    let no_read =
        flags.contains(MappingFlags::EXECUTE) && !flags.contains(WRITE) && F::NAME != Stage2::NAME;
    readable || no_read
}

/// Some bytes that differ from each other and from zero.
fn data(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| (at / 256 + at).wrapping_mul(29).wrapping_add(seed.into()) as u8;
    (0..len).map(|at| byte(at) | 1).collect()
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

// ---- the model ----

#[derive(Clone, Copy, Debug)]
struct Seg {
    start: usize,
    end: usize,
    flags: MappingFlags,
    /// The host's memory behind it, unless the memory is the VM's own.
    linear: Option<usize>,
}

impl Seg {
    fn slice(self, start: usize, end: usize) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        let linear = self.linear.map(|hpa| hpa + from.saturating_sub(self.start));
        (from < to).then_some(Self { start: from, end: to, linear, ..self })
    }
}

/// A page of memory: the guest's by its address in the guest, the host's by that in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Page {
    Guest(usize),
    Host(usize),
}

struct Test<F: HwNpt, const B: bool> {
    vm: AxVMRef<Hal, ScriptedVCpu<Hal, F, B>>,
    limit: usize,
    segs: Vec<Seg>,
    /// What was written to; all else is zero.
    pages: HashMap<Page, Box<[u8; PAGE]>>,
    fail: Option<Fail>,
}

impl<F: HwNpt, const B: bool> Test<F, B> {
    fn new(bits: u32, max_leaf: PageSize) -> Self {
        use VmMemMappingType::{MapAlloc, MapIdentical, MapLazy, MapLazyHuge};
        let machine = Hal::machine();
        machine.set_input_bits(bits);
        machine.set_max_leaf(max_leaf);
        let mut config = AxVMConfig::new(1, "fuzz");
        let mut segs = Vec::new();
        for (start, size, flags, map_type) in [
            (BASE, 4 * PAGE, READ_WRITE, MapAlloc),
            (BASE + 4 * PAGE, 2 * PAGE, READ, MapAlloc),
            (BASE + 6 * PAGE, 3 * PAGE, READ_WRITE, MapLazy),
            (BASE + M2, M2 + 2 * PAGE, READ_WRITE, MapLazyHuge),
            (TAKEN, 2 * PAGE, READ_WRITE, MapIdentical),
        ] {
            config = config.with_memory(start, size, flags, map_type);
            segs.push(Seg { start, end: start + size, flags, linear: None });
        }
        let vm = AxVM::<Hal, ScriptedVCpu<Hal, F, B>>::new(config).expect("a VM");
        let limit = vm.memory().range().end().as_usize();
        let mut test = Self { vm, limit, segs, pages: HashMap::new(), fail: None };
        let exec = READ | MappingFlags::EXECUTE;
        test.add(BASE + 10 * PAGE, 2 * PAGE, READ_WRITE | DEVICE, Some(HOST), false);
        test.add(BASE + 12 * PAGE, 3 * PAGE, READ_WRITE, Some(HOST + 2 * PAGE), false);
        test.add(BASE + 15 * PAGE, PAGE, exec, None, true);
        test.add(BASE + 2 * M2 + 2 * PAGE, PAGE, READ_WRITE | DEVICE, None, false);
        test.add(0, PAGE, READ_WRITE, None, true);
        test.add(limit - 2 * PAGE, 2 * PAGE, READ_WRITE, None, false);
        assert_eq!(test.segs.len(), 11);
        test
    }

    fn resolve(&self, at: At) -> usize {
        let edge = |which: u8| {
            let which = usize::from(which) % (2 * self.segs.len() + 2);
            match self.segs.get(which / 2) {
                Some(seg) if which % 2 == 0 => seg.start,
                Some(seg) => seg.end,
                None if which % 2 == 0 => self.limit,
                None => 0,
            }
        };
        match at {
            At::Edge(which, by) => edge(which).wrapping_add_signed(by.into()),
            At::Page(which, pages, by) => edge(which)
                .wrapping_add_signed(isize::from(pages) * PAGE as isize + isize::from(by)),
            At::Chunk(chunk, by) => {
                (BASE + usize::from(chunk % 4) * M2).wrapping_add_signed(by.into())
            }
            At::Any(at) => at,
        }
    }

    fn aligned(&self, at: At, align: bool, size: usize) -> usize {
        let at = self.resolve(at);
        if align && size > 0 { at - at % size } else { at }
    }

    fn page(&self, gpa: usize, access: MappingFlags) -> Option<Page> {
        let seg = self.segs.iter().find(|seg| (seg.start..seg.end).contains(&gpa))?;
        let page = gpa - gpa % PAGE;
        (seg.flags.contains(access) && !seg.flags.contains(DEVICE)).then(|| match seg.linear {
            Some(hpa) => Page::Host(hpa + (page - seg.start)),
            None => Page::Guest(page),
        })
    }

    /// The pieces of a range up to the first byte that does not allow the access: each one's
    /// page, offset in the page, and length.
    fn pieces(
        &self,
        gpa: usize,
        len: usize,
        access: MappingFlags,
    ) -> impl Iterator<Item = (Page, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = gpa.checked_add(done).filter(|_| done < len)?;
            let page = self.page(at, access)?;
            let part = (PAGE - at % PAGE).min(len - done);
            done += part;
            Some((page, at % PAGE, part))
        })
    }

    fn reach(&self, gpa: usize, len: usize, access: MappingFlags) -> usize {
        self.pieces(gpa, len, access).map(|(.., part)| part).sum()
    }

    fn peek(&self, gpa: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        for (page, offset, part) in self.pieces(gpa, len, MappingFlags::empty()) {
            match self.pages.get(&page) {
                Some(page) => bytes.extend(&page[offset..offset + part]),
                None => bytes.resize(bytes.len() + part, 0),
            }
        }
        bytes
    }

    fn poke(&mut self, gpa: usize, bytes: &[u8]) {
        let pieces: Vec<_> = self.pieces(gpa, bytes.len(), MappingFlags::empty()).collect();
        let mut done = 0;
        for (page, offset, part) in pieces {
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[offset..offset + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
    }

    /// What the memory holds, by the way of an image loader.
    fn contents(&self, gpa: usize, len: usize) -> Vec<u8> {
        let segments = self.vm.memory().host_segments(gpa.into(), len).expect("RAM");
        segments.into_iter().map(Self::bytes_of).collect::<Vec<_>>().concat()
    }

    fn bytes_of(segment: HostSegment) -> Vec<u8> {
        let host = std::ptr::with_exposed_provenance::<u8>(segment.addr.as_usize());
        // SAFETY: mapped memory of the guest, which no other thread uses.
        unsafe { std::slice::from_raw_parts(host, segment.len) }.to_vec()
    }

    /// Does it, with failures as told, and compares the result; none for an error.
    fn attempt<R>(
        &self,
        valid: bool,
        act: impl FnOnce(&AxVM<Hal, ScriptedVCpu<Hal, F, B>>) -> AxResult<R>,
    ) -> Option<R> {
        let arena = Hal::machine().arena();
        match self.fail {
            Some(Fail { only: true, nth }) => arena.fail_nth_only(u64::from(nth % 8) + 1),
            Some(Fail { only: false, nth }) => arena.fail_after(u64::from(nth % 8) + 1),
            None => {}
        }
        let result = act(&self.vm);
        let failed = self.fail.is_some() && arena.injected() > 0;
        arena.fail_never();
        match result {
            Err(AxError::NoMemory) if failed => None,
            Err(error) => {
                assert_eq!(error, AxError::InvalidInput);
                assert!(!valid, "refused");
                None
            }
            Ok(value) => {
                assert!(valid, "accepted");
                Some(value)
            }
        }
    }

    /// A read that fails may write a prefix of the buffer, as far as there is memory.
    fn check_read(&self, gpa: usize, buf: &[u8], reach: usize, done: bool) {
        let expected = self.peek(gpa, reach);
        let len = if done { buf.len() } else { 0 };
        assert!(len <= reach);
        assert_eq!(buf[..len], expected[..len], "{gpa:#x}");
        if !done {
            let read = buf.iter().rposition(|&byte| byte != UNTOUCHED).map_or(0, |at| at + 1);
            assert!(read <= reach, "{gpa:#x}");
            assert_eq!(buf[..read], expected[..read], "{gpa:#x}");
        }
    }

    /// A write that fails may write a prefix, as far as there is memory.
    fn check_write(&mut self, gpa: usize, bytes: &[u8], reach: usize, done: bool) {
        if done {
            return self.poke(gpa, bytes);
        }
        let (before, now) = (self.peek(gpa, reach), self.contents(gpa, reach));
        let mut cut = reach;
        loop {
            self.poke(gpa, &bytes[..cut]);
            if self.peek(gpa, reach) == now {
                return;
            }
            self.poke(gpa, &before);
            assert!(cut > 0, "{gpa:#x}: not a prefix");
            // Memory is taken in whole pages.
            cut = cut.saturating_sub(((gpa + cut - 1) % PAGE) + 1);
        }
    }

    fn read(&self, gpa: usize, len: usize) {
        let reach = self.reach(gpa, len, READ);
        let mut buf = vec![UNTOUCHED; len];
        let done = self.attempt(reach == len, |vm| vm.memory().read(gpa.into(), &mut buf));
        self.check_read(gpa, &buf, reach, done.is_some());
    }

    fn write(&mut self, gpa: usize, bytes: &[u8]) {
        let reach = self.reach(gpa, bytes.len(), WRITE);
        let done =
            self.attempt(reach == bytes.len(), |vm| vm.memory().write(gpa.into(), bytes)).is_some();
        self.check_write(gpa, bytes, reach, done);
    }

    fn read_obj<const N: usize>(&self, at: At, align: bool, of_vm: bool) {
        let gpa = self.aligned(at, align, N);
        let valid = self.reach(gpa, N, READ) == N;
        let value = self.attempt(valid, |vm| match of_vm {
            true => vm.read_from_guest_of::<[u8; N]>(gpa.into()),
            false => vm.memory().read_obj::<[u8; N]>(gpa.into()),
        });
        if let Some(value) = value {
            assert_eq!(value[..], self.peek(gpa, N), "{gpa:#x}");
        }
    }

    fn write_obj<const N: usize>(&mut self, at: At, align: bool, of_vm: bool, seed: u8) {
        let gpa = self.aligned(at, align, N);
        let reach = self.reach(gpa, N, WRITE);
        let value: [u8; N] = data(seed, N).try_into().expect("so many");
        let done = self.attempt(reach == N, |vm| match of_vm {
            true => vm.write_to_guest_of(gpa.into(), &value),
            false => vm.memory().write_obj(gpa.into(), &value),
        });
        self.check_write(gpa, &value, reach, done.is_some());
    }

    /// Whether an atomic access is possible; if so, what is there.
    fn atomic(&self, gpa: usize, width: Width, access: MappingFlags) -> Option<u64> {
        let valid = gpa.is_multiple_of(width.bytes()) && self.page(gpa, access).is_some();
        valid.then(|| word(&self.peek(gpa, width.bytes())))
    }

    fn load(&self, gpa: usize, width: Width) {
        let expected = self.atomic(gpa, width, READ);
        let at = gpa.into();
        let value = self.attempt(expected.is_some(), |vm| match width {
            Width::Byte => vm.memory().load::<u8>(at).map(u64::from),
            Width::Word => vm.memory().load::<u16>(at).map(u64::from),
            Width::Dword => vm.memory().load::<u32>(at).map(u64::from),
            Width::Qword => vm.memory().load::<u64>(at),
        });
        assert!(value.is_none() || value == expected, "{gpa:#x}");
    }

    fn store(&mut self, gpa: usize, width: Width, value: u64) {
        let valid = self.atomic(gpa, width, WRITE).is_some();
        let at = gpa.into();
        let done = self.attempt(valid, |vm| match width {
            Width::Byte => vm.memory().store(at, value as u8),
            Width::Word => vm.memory().store(at, value as u16),
            Width::Dword => vm.memory().store(at, value as u32),
            Width::Qword => vm.memory().store(at, value),
        });
        if done.is_some() {
            self.poke(gpa, &value.to_le_bytes()[..width.bytes()]);
        }
    }

    fn compare_exchange(&mut self, gpa: usize, width: Width, current: Option<u64>, new: u64) {
        macro_rules! exchange {
            ($vm:ident, $int:ty, $current:ident) => {
                $vm.memory()
                    .compare_exchange::<$int>(gpa.into(), $current as $int, new as $int)
                    .map(|done| done.map(u64::from).map_err(u64::from))
            };
        }
        let old = self.atomic(gpa, width, READ_WRITE);
        let current = current.or(old).unwrap_or(0) & (u64::MAX >> (64 - 8 * width.bytes()));
        let done = self.attempt(old.is_some(), |vm| match width {
            Width::Byte => exchange!(vm, u8, current),
            Width::Word => exchange!(vm, u16, current),
            Width::Dword => exchange!(vm, u32, current),
            Width::Qword => exchange!(vm, u64, current),
        });
        if let (Some(done), Some(old)) = (done, old) {
            assert_eq!(done, if old == current { Ok(old) } else { Err(old) }, "{gpa:#x}");
            if done.is_ok() {
                self.poke(gpa, &new.to_le_bytes()[..width.bytes()]);
            }
        }
    }

    fn segments(&mut self, gpa: usize, len: usize, which: u8, write: Option<u8>) {
        let reach = self.reach(gpa, len, MappingFlags::empty());
        let (at, none) = (GuestPhysAddr::from_usize(gpa), Vec::new());
        let found = match which % 3 {
            0 => self.attempt(reach == len, |vm| vm.memory().host_segments(at, len)),
            1 => self.attempt(reach == len, |vm| vm.get_image_load_region(at, len)),
            // It does not tell why there is none.
            _ => {
                let fail = self.fail.take();
                let found = self.vm.memory().translated_byte_buffer(at, len);
                assert_eq!(found.is_some(), reach == len);
                self.fail = fail;
                found
            }
        };
        let Some(found) = found else { return };
        let mut done = 0;
        let mut last_end = None;
        for segment in &found {
            let host = segment.addr.as_usize();
            assert!(segment.len > 0 && last_end != Some(host), "{found:x?}");
            // Each page of it is where the guest's is.
            for offset in (0..segment.len).step_by(PAGE).chain([segment.len - 1]) {
                let hpa = self.vm.memory().translate((gpa + done + offset).into());
                let hpa = hpa.expect("it was populated");
                assert_eq!(Hal::machine().phys_to_virt(hpa).as_usize(), host + offset);
            }
            let bytes = Self::bytes_of(*segment);
            assert_eq!(bytes, self.peek(gpa + done, segment.len), "{gpa:#x}+{done:#x}");
            done += segment.len;
            last_end = Some(host + segment.len);
        }
        assert_eq!(done, len);
        assert!(len > 0 || found == none);
        let Some(seed) = write else { return };
        let bytes = data(seed, len);
        let mut from = &bytes[..];
        for segment in found {
            let (part, rest) = from.split_at(segment.len);
            let host = std::ptr::with_exposed_provenance_mut::<u8>(segment.addr.as_usize());
            // SAFETY: mapped memory of the guest, which no other thread uses.
            unsafe { host.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            from = rest;
        }
        self.poke(gpa, &bytes);
    }

    fn add(
        &mut self,
        at: usize,
        size: usize,
        flags: MappingFlags,
        linear: Option<usize>,
        populate: bool,
    ) {
        let result = match linear {
            Some(hpa) => self.vm.map_region(at.into(), hpa.into(), size, flags),
            None => self.vm.memory().map_alloc(at.into(), size, flags, populate),
        };
        let Some(end) = self.end(at, size).filter(|_| expressible::<F>(flags)) else {
            return assert_eq!(result, Err(AxError::InvalidInput));
        };
        if self.segs.iter().any(|seg| seg.slice(at, end).is_some()) {
            return assert_eq!(result, Err(AxError::AlreadyExists));
        }
        assert_eq!(result, Ok(()));
        self.segs.push(Seg { start: at, end, flags, linear });
    }

    /// The end of a range of whole pages in the address space.
    fn end(&self, at: usize, size: usize) -> Option<usize> {
        let end = at.checked_add(size)?;
        (size > 0 && (at | size) % PAGE == 0 && end <= self.limit).then_some(end)
    }

    fn change(&mut self, at: usize, size: usize, new: Option<MappingFlags>) {
        let result = match new {
            None => self.vm.unmap_region(at.into(), size),
            Some(flags) => self.vm.memory().protect(at.into(), size, flags),
        };
        let covered = |end: usize| {
            let parts = self.segs.iter().filter_map(|seg| seg.slice(at, end));
            parts.map(|part| part.end - part.start).sum::<usize>() == size
        };
        let valid = new.is_none_or(expressible::<F>);
        let Some(end) = self.end(at, size).filter(|&end| valid && covered(end)) else {
            return assert_eq!(result, Err(AxError::InvalidInput));
        };
        assert_eq!(result, Ok(()));
        let mut segs = Vec::new();
        for seg in self.segs.drain(..) {
            segs.extend(seg.slice(0, at));
            segs.extend(seg.slice(at, end).and_then(|part| {
                let kept = part.flags - permissions(part.flags);
                new.map(|new| Seg { flags: kept | permissions(new), ..part })
            }));
            segs.extend(seg.slice(end, usize::MAX));
        }
        self.segs = segs;
        if new.is_none() {
            let gone = |page: &Page| matches!(page, Page::Guest(gpa) if (at..end).contains(gpa));
            self.pages.retain(|page, _| !gone(page));
        }
    }

    fn apply(&mut self, op: &Op, fail: Option<Fail>) {
        self.fail = fail;
        // The address of a page; one of eight is left as it is.
        let paged = |test: &Self, at: At| {
            let at = test.resolve(at);
            if at % 8 == 7 { at } else { at - at % PAGE }
        };
        match *op {
            Op::Read { at, len } => self.read(self.resolve(at), len.bytes()),
            Op::Write { at, len, seed } => {
                self.write(self.resolve(at), &data(seed, len.bytes()));
            }
            Op::ReadObj { at, align, what } => {
                let of_vm = what >= 128;
                match what % 8 {
                    0 => self.read_obj::<0>(at, align, of_vm),
                    1 => self.read_obj::<1>(at, align, of_vm),
                    2 => self.read_obj::<2>(at, align, of_vm),
                    3 => self.read_obj::<4>(at, align, of_vm),
                    4 => self.read_obj::<8>(at, align, of_vm),
                    5 => self.read_obj::<13>(at, align, of_vm),
                    6 => self.read_obj::<16>(at, align, of_vm),
                    _ => self.read_obj::<{ PAGE + 5 }>(at, align, of_vm),
                }
            }
            Op::WriteObj { at, align, what, seed } => {
                let of_vm = what >= 128;
                match what % 8 {
                    0 => self.write_obj::<0>(at, align, of_vm, seed),
                    1 => self.write_obj::<1>(at, align, of_vm, seed),
                    2 => self.write_obj::<2>(at, align, of_vm, seed),
                    3 => self.write_obj::<4>(at, align, of_vm, seed),
                    4 => self.write_obj::<8>(at, align, of_vm, seed),
                    5 => self.write_obj::<13>(at, align, of_vm, seed),
                    6 => self.write_obj::<16>(at, align, of_vm, seed),
                    _ => self.write_obj::<{ PAGE + 5 }>(at, align, of_vm, seed),
                }
            }
            Op::Load { at, align, width } => {
                self.load(self.aligned(at, align, width.bytes()), width);
            }
            Op::Store { at, align, width, value } => {
                self.store(self.aligned(at, align, width.bytes()), width, value);
            }
            Op::CompareExchange { at, align, width, current, new } => {
                let gpa = self.aligned(at, align, width.bytes());
                self.compare_exchange(gpa, width, current, new);
            }
            Op::Segments { at, len, which, write } => {
                self.segments(self.resolve(at), len.bytes(), which, write);
            }
            Op::Alloc { at, size, flags: bits, populate } => {
                self.add(paged(self, at), size.bytes(), flags(bits), None, populate);
            }
            Op::Linear { at, size, host, flags: bits } => {
                let size = size.bytes().min(8 * PAGE);
                let hpa = HOST + usize::from(host) % (HOST_PAGES - 8) * PAGE;
                self.add(paged(self, at), size, flags(bits), Some(hpa), false);
            }
            Op::Unmap { at, size } => self.change(paged(self, at), size.bytes(), None),
            Op::Protect { at, size, flags: bits } => {
                self.change(paged(self, at), size.bytes(), Some(flags(bits)));
            }
        }
    }

    /// Compares all that was written and the host's memory, which it clears.
    fn finish(&self) {
        for seg in self.segs.iter().filter(|seg| !seg.flags.contains(DEVICE)) {
            let few = (seg.end - seg.start) / PAGE <= 16;
            for gpa in (seg.start..seg.end).step_by(PAGE) {
                if few || self.pages.contains_key(&Page::Guest(gpa)) {
                    assert!(self.contents(gpa, PAGE) == self.peek(gpa, PAGE), "{gpa:#x}");
                }
            }
        }
        for hpa in (HOST..HOST + HOST_PAGES * PAGE).step_by(PAGE) {
            let host = Hal::machine().phys_to_virt(hpa.into()).as_usize();
            let host = std::ptr::with_exposed_provenance_mut::<[u8; PAGE]>(host);
            // SAFETY: host memory of this process's machine, which no other thread uses.
            let page = unsafe { &mut *host };
            match self.pages.get(&Page::Host(hpa)) {
                Some(written) => assert!(page == &**written, "host {hpa:#x}"),
                None => assert!(page == &[0; PAGE], "host {hpa:#x}"),
            }
            page.fill(0);
        }
    }
}

fn run<F: HwNpt, const B: bool>(input: &Memory, bits: u32) {
    let machine = Hal::machine();
    let max_leaf =
        [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][usize::from(input.max_leaf % 3)];
    let mut test = Test::<F, B>::new(bits, max_leaf);
    for (op, fail) in input.ops.iter().take(64) {
        test.apply(op, *fail);
    }
    test.finish();
    drop(test);
    (machine.take_kicks(), machine.take_wakes(), machine.take_timers());
    assert_eq!(machine.arena().allocated(), 0);
    machine.regions().assert_balanced();
}

fn start() {
    Hal::machine().set_tracing(false);
    Hal::machine().regions().add_device(HOST, HOST_PAGES * PAGE);
}

fuzz_target!(init: start(), |input: Input| {
    match &input {
        Input::Ranges(ranges) => check_ranges(ranges),
        Input::Memory(memory) => match memory.format % 5 {
            0 => run::<Ept, false>(memory, 0),
            1 => run::<Stage2, true>(memory, 0),
            2 => run::<Stage2, true>(memory, 48),
            3 => run::<GStage, false>(memory, 0),
            _ => run::<GStage, false>(memory, 50),
        },
    }
});

// ---- ranges ----

fn check_ranges(input: &Ranges) {
    let (Some(first), Some(second)) = (range(input.first), range(input.second)) else { return };
    let addr = match input.near {
        None => input.addr,
        Some((true, by)) => first.start().as_usize().wrapping_add_signed(by.into()),
        Some((false, by)) => first.end().as_usize().wrapping_add_signed(by.into()),
    };
    check_contains(first, GuestPhysAddr::from_usize(addr));
    check_pair(first, second);
    check_pages(first, 1 << (u32::from(input.align_shift) % usize::BITS));
}

/// Makes the range, if there is one, by both constructors.
fn range((start, size): (usize, usize)) -> Option<GpaRange> {
    let start = GuestPhysAddr::from_usize(start);
    let range = GpaRange::new(start, size);
    let end = start.as_usize() as u128 + size as u128;
    assert_eq!(range.is_some(), size > 0 && end <= usize::MAX as u128);
    let range = range?;
    assert_eq!(range.size(), size);
    assert_eq!(range.end().as_usize() as u128, end);
    assert_eq!(GpaRange::from_bounds(range.start(), range.end()), Some(range));
    assert_eq!(GpaRange::from_bounds(range.end(), range.start()), None);
    Some(range)
}

fn check_contains(range: GpaRange, addr: GuestPhysAddr) {
    let offset = addr.as_usize() as i128 - range.start().as_usize() as i128;
    let inside = 0 <= offset && offset < range.size() as i128;
    assert_eq!(range.contains(addr), inside);
    assert_eq!(addr.page_base().as_usize() + addr.page_offset(), addr.as_usize());
    if inside {
        assert_eq!(range.start().checked_add(offset as usize), Some(addr));
    }
}

fn check_pair(first: GpaRange, second: GpaRange) {
    let shared = first.intersection(second);
    assert_eq!(shared, second.intersection(first));
    assert_eq!(shared.is_some(), first.overlaps(second));
    assert_eq!(first.overlaps(second), second.overlaps(first));
    assert_eq!(first.contains_range(second), shared == Some(second));
    if let Some(shared) = shared {
        assert!(first.contains_range(shared) && second.contains_range(shared));
    }
}

fn check_pages(range: GpaRange, align: usize) {
    let (start, end) = (range.start().as_usize(), range.end().as_usize());
    assert_eq!(range.is_aligned(align), start % align == 0 && end % align == 0);
    let Some(cover) = range.page_cover() else {
        assert!(end > usize::MAX - (PAGE - 1));
        return;
    };
    assert!(cover.contains_range(range) && cover.is_aligned(PAGE));
    let slack = cover.size() - range.size();
    assert!(slack < 2 * PAGE);
    assert_eq!(cover.start(), range.start().page_base());
}
