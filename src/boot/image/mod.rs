//! Formats of guest kernels. A file is an allegation: any value in it may lie, and is checked here,
//! once, before anything is placed.

mod elf;
mod error;
mod riscv;

pub use elf::MAX_SEGMENTS;
pub use error::ImageError;

use self::elf::Elf;
use crate::mm::{GpaRange, GuestPhysAddr};

/// The machine that a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
}

/// A format of kernel files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// A 64-bit little-endian ELF program (System V gABI, chapters 4 and 5): its segments go to
    /// their physical addresses. Nothing is relocated.
    Elf,
    /// Linux' `Image` for RISC-V (Documentation/arch/riscv/boot-image-header.rst).
    RiscvImage,
    /// Bytes as they are to lie in memory, entered at the first.
    Flat,
}

/// Where an image wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Exactly here: the smallest range that holds everything.
    Fixed(GpaRange),
    /// At any address of that remainder.
    Movable {
        /// Its length in memory in bytes, not 0; the part behind the file's is for the kernel's own
        /// use.
        size: usize,
        /// The address is `offset` more than a multiple of this, a power of two.
        align: usize,
        /// Also how far from the start of RAM it wants to be, at least.
        offset: usize,
    },
    /// Where it was made for, which the file does not tell.
    Unknown {
        /// Its length in bytes, not 0.
        size: usize,
    },
}

impl Location {
    /// The length in memory in bytes, not 0.
    pub const fn size(self) -> usize {
        match self {
            Self::Fixed(span) => span.size(),
            Self::Movable { size, .. } | Self::Unknown { size } => size,
        }
    }
}

/// A part of the kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it goes: not empty, and as long as `bytes` at least.
    pub range: GpaRange,
    /// What it begins with; zeros follow.
    pub bytes: &'a [u8],
}

/// A kernel whose file was checked.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage<'a>(Shape<'a>);

#[derive(Clone, Copy, Debug)]
enum Shape<'a> {
    Elf(Elf<'a>),
    Riscv { bytes: &'a [u8], size: usize, offset: usize },
    Flat(&'a [u8]),
}

impl<'a> KernelImage<'a> {
    /// Checks a kernel's file, in the format asked for, or the one that its first bytes show. What
    /// shows none is flat.
    ///
    /// # Errors
    /// Which value of the file is wrong, and where. Without a format asked for, also a compressed
    /// file or an Image for another machine.
    pub fn parse(
        bytes: &'a [u8],
        machine: Machine,
        format: Option<ImageFormat>,
    ) -> Result<Self, ImageError> {
        let format = match format {
            Some(format) => format,
            None => detect(bytes, machine)?,
        };
        match format {
            ImageFormat::Elf => Elf::parse(bytes, machine).map(Shape::Elf),
            ImageFormat::RiscvImage => riscv::parse(bytes, machine)
                .map(|(size, offset)| Shape::Riscv { bytes, size, offset }),
            ImageFormat::Flat if bytes.is_empty() => Err(error(format, LENGTH, 0, 0, "is empty")),
            ImageFormat::Flat => Ok(Shape::Flat(bytes)),
        }
        .map(Self)
    }

    /// Its format.
    pub const fn format(&self) -> ImageFormat {
        match self.0 {
            Shape::Elf(_) => ImageFormat::Elf,
            Shape::Riscv { .. } => ImageFormat::RiscvImage,
            Shape::Flat(_) => ImageFormat::Flat,
        }
    }

    /// Where it wants to be.
    pub const fn location(&self) -> Location {
        match self.0 {
            Shape::Elf(elf) => Location::Fixed(elf.span()),
            Shape::Riscv { size, offset, .. } => {
                Location::Movable { size, align: riscv::ALIGN, offset }
            }
            Shape::Flat(bytes) => Location::Unknown { size: bytes.len() },
        }
    }

    /// The kernel at `base`, its first address. None when it cannot be there: an ELF program is at
    /// its own address only, and no address may overflow. (Alignment is
    /// [`Plan::new`](super::Plan::new)'s to check.)
    pub fn at(self, base: GuestPhysAddr) -> Option<PlacedKernel<'a>> {
        let (span, entry) = match (self.0, self.location()) {
            (Shape::Elf(elf), Location::Fixed(span)) => {
                (Some(span).filter(|span| span.start() == base), elf.entry())
            }
            (_, Location::Movable { size, .. } | Location::Unknown { size }) => {
                (GpaRange::new(base, size), base)
            }
            _ => (None, base),
        };
        span.map(|span| PlacedKernel { image: self, span, entry })
    }
}

/// A kernel at an address.
#[derive(Clone, Copy, Debug)]
pub struct PlacedKernel<'a> {
    image: KernelImage<'a>,
    span: GpaRange,
    entry: GuestPhysAddr,
}

impl<'a> PlacedKernel<'a> {
    /// Its entry point.
    pub const fn entry(&self) -> GuestPhysAddr {
        self.entry
    }

    /// The smallest range that holds all that it occupies, memory that it zeroes itself included.
    pub const fn span(&self) -> GpaRange {
        self.span
    }

    /// Its parts; they do not overlap.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let (elf, bytes) = match self.image.0 {
            Shape::Elf(elf) => (Some(elf), None),
            Shape::Riscv { bytes, .. } | Shape::Flat(bytes) => (None, Some(bytes)),
        };
        let range = self.span;
        let whole = bytes.map(|bytes| Segment { range, bytes });
        elf.into_iter().flat_map(|elf| elf.segments()).chain(whole)
    }
}

/// What a file begins with that is not for a CPU to execute.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "is compressed by gzip: decompress it first"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "is compressed by xz: decompress it first"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "is compressed by zstd: decompress it first"),
    (b"MZ\0\0zimg", "is an EFI program with a compressed kernel: take the Image in it"),
];

/// The magic number of Linux' `Image` for Arm, where RISC-V's is.
const ARM64_MAGIC: &[u8] = b"ARM\x64";

fn detect(bytes: &[u8], machine: Machine) -> Result<ImageFormat, ImageError> {
    let magic = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|b| b.starts_with(magic));
    let flat = ImageFormat::Flat;
    if magic(0, &elf::MAGIC) {
        return Ok(ImageFormat::Elf);
    }
    if magic(riscv::MAGIC_AT, riscv::MAGIC) {
        return Ok(ImageFormat::RiscvImage);
    }
    if magic(riscv::MAGIC_AT, ARM64_MAGIC) && machine != Machine::Aarch64 {
        let value = u64::from(u32::from_le_bytes(*b"ARM\x64"));
        return Err(error(flat, "magic", riscv::MAGIC_AT, value, "is that of an Image for arm64"));
    }
    for (start, rule) in COMPRESSED {
        if magic(0, start) {
            let value = start.iter().take(8).rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
            return Err(error(flat, "magic", 0, value, rule));
        }
    }
    Ok(flat)
}

/// The name of a file's length in errors.
const LENGTH: &str = "file length";

const fn error(
    format: ImageFormat,
    field: &'static str,
    offset: usize,
    value: u64,
    rule: &'static str,
) -> ImageError {
    ImageError { format, field, offset, value, rule }
}
