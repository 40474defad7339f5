//! Linux' `Image` for RISC-V (Documentation/arch/riscv/boot-image-header.rst, version 0.2).

use zerocopy::{
    FromBytes,
    little_endian::{U32, U64},
};

use super::{ImageError, ImageFormat, LENGTH, Machine, error};

/// Where the magic number is.
pub(super) const MAGIC_AT: usize = 0x38;
/// The magic number ("magic2"; the older one is deprecated).
pub(super) const MAGIC: &[u8] = b"RSC\x05";

/// The kernel begins at a multiple of the size of a page-middle-directory entry (boot.rst, "Kernel
/// location"), but for its text offset.
pub(super) const ALIGN: usize = 2 << 20;

/// Flag: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;

#[derive(FromBytes)]
#[repr(C)]
struct Header {
    _code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    version: U32,
    _res1: U32,
    _res2: U64,
    _magic: U64,
    magic2: [u8; 4],
    _res3: U32,
}

/// The size in memory, and the offset from the start of RAM.
pub(super) fn parse(bytes: &[u8], machine: Machine) -> Result<(usize, usize), ImageError> {
    let wrong =
        |field, at, value, rule| Err(error(ImageFormat::RiscvImage, field, at, value, rule));
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        return wrong(LENGTH, 0, bytes.len() as u64, "is less than the header's 64 bytes");
    };
    if header.magic2 != MAGIC {
        let value = u32::from_le_bytes(header.magic2).into();
        return wrong("magic2", MAGIC_AT, value, "is not RSC\\x05");
    }
    if machine != Machine::Riscv64 {
        let value = u32::from_le_bytes(header.magic2).into();
        return wrong("magic2", MAGIC_AT, value, "is that of another machine than the guest's");
    }
    let version = header.version.get();
    if version >> 16 != 0 {
        return wrong("version", 0x20, version.into(), "has an unknown major number");
    }
    let flags = header.flags.get();
    if flags & BIG_ENDIAN != 0 {
        return wrong("flags", 0x18, flags, "tells of a big-endian kernel");
    }
    let image_size = header.image_size.get();
    if image_size == 0 {
        return wrong("image_size", 0x10, 0, "does not tell the size");
    }
    let text_offset = header.text_offset.get();
    let fits =
        |value: u64| usize::try_from(value).ok().filter(|&value| value <= isize::MAX as usize);
    let Some(size) = fits(image_size) else {
        return wrong("image_size", 0x10, image_size, "is beyond any memory");
    };
    let Some(offset) = fits(text_offset) else {
        return wrong("text_offset", 0x8, text_offset, "is beyond any memory");
    };
    // Something may be appended to the file, such as a signature.
    Ok((size.max(bytes.len()), offset))
}
