//! 64-bit little-endian ELF programs (System V gABI, chapters 4 and 5).

use zerocopy::{
    FromBytes,
    little_endian::{U16, U32, U64},
};

use super::{ImageError, ImageFormat, LENGTH, Machine, Segment, error};
use crate::mm::{GpaRange, GuestPhysAddr};

/// The first four bytes of `e_ident`.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// How many segments a program may load.
pub const MAX_SEGMENTS: usize = 64;

#[derive(FromBytes)]
#[repr(C)]
struct Header {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    _shoff: U64,
    _flags: U32,
    _ehsize: U16,
    phentsize: U16,
    phnum: U16,
    _sections: [U16; 3],
}

#[derive(FromBytes)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    _flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    _align: U64,
}

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EV_CURRENT: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PN_XNUM: u16 = 0xffff;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

impl Machine {
    /// `e_machine` of its programs.
    const fn elf(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
            Self::Riscv64 => 243,
        }
    }
}

/// A program whose headers were checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elf<'a> {
    file: File<'a>,
    entry: GuestPhysAddr,
    span: GpaRange,
}

#[derive(Clone, Copy, Debug)]
struct File<'a> {
    bytes: &'a [u8],
    /// The program headers.
    table: &'a [u8],
}

const fn wrong<T>(
    field: &'static str,
    at: usize,
    value: u64,
    rule: &'static str,
) -> Result<T, ImageError> {
    Err(error(ImageFormat::Elf, field, at, value, rule))
}

impl<'a> Elf<'a> {
    pub(super) fn parse(bytes: &'a [u8], machine: Machine) -> Result<Self, ImageError> {
        let Ok((header, _)) = Header::read_from_prefix(bytes) else {
            return wrong(LENGTH, 0, bytes.len() as u64, "is less than the header's 64 bytes");
        };
        check_identity(&header, machine)?;
        let (phoff, phnum) = (header.phoff.get(), header.phnum.get());
        let table = usize::try_from(phoff).ok().and_then(|start| {
            let size = usize::from(phnum).checked_mul(size_of::<ProgramHeader>())?;
            bytes.get(start..start.checked_add(size)?)
        });
        let Some(table) = table else {
            return wrong("e_phoff", 32, phoff, "has program headers beyond the end of the file");
        };
        let file = File { bytes, table };
        let span = file.check_segments(phoff as usize)?;
        Ok(Self { file, entry: file.find_entry(header.entry.get())?, span })
    }

    pub(super) const fn entry(&self) -> GuestPhysAddr {
        self.entry
    }

    pub(super) const fn span(&self) -> GpaRange {
        self.span
    }

    pub(super) fn segments(self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        self.file.segments()
    }
}

impl<'a> File<'a> {
    /// What is loaded, as far as it is right.
    fn segments(self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        program_headers(self.table)
            .filter(is_loaded)
            .filter_map(move |header| header.segment(self.bytes).ok())
    }

    /// Checks all program headers, which are at `at`; the range that holds all that is loaded.
    fn check_segments(&self, at: usize) -> Result<GpaRange, ImageError> {
        let mut span: Option<GpaRange> = None;
        let mut count = 0;
        let offsets = (at..).step_by(size_of::<ProgramHeader>());
        for (header, at) in program_headers(self.table).zip(offsets) {
            if header.kind == PT_INTERP {
                return wrong("p_type", at, PT_INTERP.into(), "wants a dynamic loader");
            }
            if !is_loaded(&header) {
                continue;
            }
            let Segment { range, .. } = header.segment(self.bytes).map_err(|bad| {
                let BadField { field, offset, value, rule } = bad;
                error(ImageFormat::Elf, field, at + offset, value, rule)
            })?;
            if self.segments().take(count).any(|other| other.range.overlaps(range)) {
                return wrong("p_paddr", at + 24, header.paddr.get(), "overlaps another segment");
            }
            count += 1;
            if count > MAX_SEGMENTS {
                return wrong("p_type", at, PT_LOAD.into(), "is the 65th segment to load");
            }
            let (start, end) = match span {
                Some(span) => (span.start().min(range.start()), span.end().max(range.end())),
                None => (range.start(), range.end()),
            };
            span = GpaRange::from_bounds(start, end);
        }
        let phnum = self.table.len() / size_of::<ProgramHeader>();
        span.map_or_else(|| wrong("e_phnum", 56, phnum as u64, "has nothing to load"), Ok)
    }

    /// The physical address of the entry point. `e_entry` is a virtual one, in files for
    /// some machines (x86) the physical one.
    fn find_entry(&self, entry: u64) -> Result<GuestPhysAddr, ImageError> {
        let within = |base: fn(&ProgramHeader) -> u64| {
            program_headers(self.table).filter(is_loaded).find_map(|header| {
                let offset = entry.checked_sub(base(&header))?;
                let inside = offset < header.filesz.get();
                inside.then(|| header.paddr.get().checked_add(offset)).flatten()
            })
        };
        let found = within(|header| header.vaddr.get()).or_else(|| within(|h| h.paddr.get()));
        match found.and_then(|gpa| usize::try_from(gpa).ok()) {
            Some(gpa) => Ok(gpa.into()),
            None => wrong("e_entry", 24, entry, "is not in what is loaded"),
        }
    }
}

fn check_identity(header: &Header, machine: Machine) -> Result<(), ImageError> {
    let [m0, m1, m2, m3, class, data, version, ..] = header.ident;
    if [m0, m1, m2, m3] != MAGIC {
        let value = u32::from_le_bytes([m0, m1, m2, m3]).into();
        return wrong("e_ident", 0, value, "is not \\x7fELF");
    }
    if class != ELFCLASS64 {
        return wrong("EI_CLASS", 4, class.into(), "is not that of a 64-bit program");
    }
    if data != ELFDATA2LSB {
        return wrong("EI_DATA", 5, data.into(), "is not little-endian");
    }
    if version != EV_CURRENT {
        return wrong("EI_VERSION", 6, version.into(), "is unknown");
    }
    if header.kind != ET_EXEC && header.kind != ET_DYN {
        let kind = header.kind.get().into();
        return wrong("e_type", 16, kind, "is neither ET_EXEC nor ET_DYN");
    }
    if header.machine != machine.elf() {
        let value = header.machine.get().into();
        return wrong("e_machine", 18, value, "is another machine than the guest's");
    }
    if header.version != u32::from(EV_CURRENT) {
        return wrong("e_version", 20, header.version.get().into(), "is unknown");
    }
    let phentsize = header.phentsize.get();
    if usize::from(phentsize) != size_of::<ProgramHeader>() {
        return wrong("e_phentsize", 54, phentsize.into(), "is not 56");
    }
    match header.phnum.get() {
        0 => wrong("e_phnum", 56, 0, "has nothing to load"),
        PN_XNUM => wrong("e_phnum", 56, PN_XNUM.into(), "is more than a kernel has"),
        _ => Ok(()),
    }
}

fn program_headers(table: &[u8]) -> impl Iterator<Item = ProgramHeader> {
    table
        .chunks_exact(size_of::<ProgramHeader>())
        .filter_map(|bytes| ProgramHeader::read_from_bytes(bytes).ok())
}

/// Whether it is to be loaded, and is not empty.
fn is_loaded(header: &ProgramHeader) -> bool {
    header.kind == PT_LOAD && (header.memsz != 0 || header.filesz != 0)
}

/// A wrong field of a program header; the offset is in the header.
struct BadField {
    field: &'static str,
    offset: usize,
    value: u64,
    rule: &'static str,
}

impl ProgramHeader {
    fn segment<'a>(&self, file: &'a [u8]) -> Result<Segment<'a>, BadField> {
        let (filesz, memsz) = (self.filesz.get(), self.memsz.get());
        if filesz > memsz {
            let rule = "is more than p_memsz";
            return Err(BadField { field: "p_filesz", offset: 32, value: filesz, rule });
        }
        let bytes = usize::try_from(self.offset.get()).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(filesz).ok()?)?;
            file.get(start..end)
        });
        let Some(bytes) = bytes else {
            let rule = "ends with p_filesz beyond the end of the file";
            return Err(BadField { field: "p_offset", offset: 8, value: self.offset.get(), rule });
        };
        let range = usize::try_from(self.paddr.get())
            .ok()
            .and_then(|start| GpaRange::new(start.into(), usize::try_from(memsz).ok()?));
        let rule = "wraps around the address space";
        let wraps = BadField { field: "p_memsz", offset: 40, value: memsz, rule };
        Ok(Segment { range: range.ok_or(wraps)?, bytes })
    }
}
