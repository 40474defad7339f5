//! Kernel files: what is read from right ones, and what is said of wrong ones.

use axerrno::AxError;
use axvm::boot::{ImageError, ImageFormat, KernelImage, Location, Machine};
use axvm_testkit::gpa_range;

use crate::{
    files::{Load, elf, filler, load, phdr, put, riscv_image},
    kernel,
};

/// That a file is refused for this field at this offset with this value.
#[track_caller]
fn refused(file: &[u8], format: Option<ImageFormat>, field: &str, offset: usize, value: u64) {
    let error = KernelImage::parse(file, Machine::Riscv64, format).expect_err(field);
    assert_eq!((error.field, error.offset, error.value), (field, offset, value), "{error}");
    let text = error.to_string();
    assert!(text.contains(field) && text.contains(&format!("{value:#x}")), "{text}");
    assert_eq!(AxError::from(error), AxError::InvalidInput);
}

/// That a file with this change is refused for the field that was changed.
#[track_caller]
fn refused_with(file: &[u8], at: usize, bytes: &[u8], field: &str) {
    let mut file = file.to_vec();
    put(&mut file, at, bytes);
    let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    refused(&file, None, field, at, value);
}

#[test]
fn a_riscv_image_says_how_much_memory_it_takes_and_where() {
    let file = riscv_image(0x1_0000, 0x20_0000, 0x3_0000);
    let image = kernel(&file);
    assert_eq!(image.format(), ImageFormat::RiscvImage);
    let size = 0x3_0000;
    let location = Location::Movable { size, align: 2 << 20, offset: 0x20_0000 };
    assert_eq!(image.location(), location);
    let placed = image.at(0x8020_0000.into()).unwrap();
    assert_eq!(placed.entry(), 0x8020_0000.into());
    assert_eq!(placed.span(), gpa_range(0x8020_0000, size));
    let segments: Vec<_> = placed.segments().collect();
    assert_eq!(segments.len(), 1);
    assert_eq!((segments[0].range, segments[0].bytes), (placed.span(), &file[..]));
    // Something appended to it has room too.
    let signed = riscv_image(0x4_0000, 0x20_0000, 0x3_0000);
    assert_eq!(kernel(&signed).location().size(), 0x4_0000);
    assert!(image.at((usize::MAX - 0xffff).into()).is_none());
}

#[test]
fn a_riscv_image_that_lies_is_refused() {
    let file = riscv_image(0x1000, 0x20_0000, 0x2000);
    refused_with(&file, 0x10, &[0; 8], "image_size");
    refused_with(&file, 0x10, &[0xff; 8], "image_size");
    refused_with(&file, 0x8, &(1u64 << 63).to_le_bytes(), "text_offset");
    refused_with(&file, 0x18, &1u64.to_le_bytes(), "flags");
    refused_with(&file, 0x20, &0x1_0000u32.to_le_bytes(), "version");
    let asked = Some(ImageFormat::RiscvImage);
    refused(&file[..63], asked, "file length", 0, 63);
    refused(&[0; 64], asked, "magic2", 0x38, 0);
    let error = KernelImage::parse(&file, Machine::X86_64, None).unwrap_err();
    assert_eq!((error.field, error.offset), ("magic2", 0x38));
}

#[test]
fn an_elf_program_goes_to_its_physical_addresses() {
    let loads = [
        Load { vaddr: 0xffff_ffff_8020_0000, paddr: 0x8020_0000, filesz: 0x300, memsz: 0x300 },
        Load { vaddr: 0xffff_ffff_8030_0000, paddr: 0x8030_0000, filesz: 0x10, memsz: 0x5000 },
        Load { vaddr: 0xffff_ffff_8040_0000, paddr: 0x8040_0000, filesz: 0, memsz: 0x1000 },
        load(0, 0, 0),
    ];
    let file = elf(0xffff_ffff_8020_0040, &loads);
    let image = kernel(&file);
    assert_eq!(image.format(), ImageFormat::Elf);
    let span = gpa_range(0x8020_0000, 0x20_1000);
    assert_eq!(image.location(), Location::Fixed(span));
    assert!(image.at(0x8020_1000.into()).is_none(), "it has one address only");
    let placed = image.at(0x8020_0000.into()).unwrap();
    assert_eq!((placed.entry(), placed.span()), (0x8020_0040.into(), span));
    let segments: Vec<_> = placed.segments().map(|s| (s.range, s.bytes.to_vec())).collect();
    let expected = [
        (gpa_range(0x8020_0000, 0x300), vec![filler(0); 0x300]),
        (gpa_range(0x8030_0000, 0x5000), vec![filler(1); 0x10]),
        (gpa_range(0x8040_0000, 0x1000), vec![]),
    ];
    assert_eq!(segments, expected);
    // An entry point may be physical too, and the program ET_DYN.
    let mut file = elf(0x8020_0008, &loads);
    put(&mut file, 16, &3u16.to_le_bytes());
    let placed = kernel(&file).at(0x8020_0000.into()).unwrap();
    assert_eq!(placed.entry(), 0x8020_0008.into());
}

#[test]
fn an_elf_header_that_lies_is_refused() {
    let file = elf(0x8020_0000, &[load(0x8020_0000, 0x100, 0x100)]);
    refused_with(&file, 4, &[1], "EI_CLASS");
    refused_with(&file, 5, &[2], "EI_DATA");
    refused_with(&file, 6, &[0], "EI_VERSION");
    refused_with(&file, 16, &1u16.to_le_bytes(), "e_type");
    refused_with(&file, 18, &62u16.to_le_bytes(), "e_machine");
    refused_with(&file, 20, &0u32.to_le_bytes(), "e_version");
    refused_with(&file, 24, &0x8020_0100u64.to_le_bytes(), "e_entry");
    refused_with(&file, 32, &u64::MAX.to_le_bytes(), "e_phoff");
    refused_with(&file, 32, &(file.len() as u64 - 111).to_le_bytes(), "e_phoff");
    refused_with(&file, 54, &32u16.to_le_bytes(), "e_phentsize");
    refused_with(&file, 56, &0u16.to_le_bytes(), "e_phnum");
    refused_with(&file, 56, &0xffffu16.to_le_bytes(), "e_phnum");
    refused(&file[..63], None, "file length", 0, 63);
    refused(&elf(0, &[]), None, "e_phnum", 56, 1);
    refused(&[0; 64], Some(ImageFormat::Elf), "e_ident", 0, 0);
}

#[test]
fn an_elf_segment_that_lies_is_refused() {
    let two = [load(0x8020_0000, 0x100, 0x100), load(0x8030_0000, 0x80, 0x2000)];
    let file = elf(0x8020_0000, &two);
    let field = |at: usize| phdr(1) + at;
    refused_with(&file, field(0), &3u32.to_le_bytes(), "p_type");
    refused_with(&file, field(8), &u64::MAX.to_le_bytes(), "p_offset");
    refused_with(&file, field(8), &(file.len() as u64 - 0x7f).to_le_bytes(), "p_offset");
    refused_with(&file, field(32), &0x2001u64.to_le_bytes(), "p_filesz");
    let less = [two[0], load(0x8030_0000, 0x80, 0x7f)];
    refused(&elf(0x8020_0000, &less), None, "p_filesz", field(32), 0x80);
}

#[test]
fn elf_segments_neither_overlap_nor_wrap() {
    let entry = 0x8020_0000;
    let file = |second| elf(entry, &[load(entry, 0x100, 0x1000), second]);
    let at = phdr(1) + 24;
    for paddr in [0x8020_0000, 0x8020_0fff, 0x801f_f001] {
        refused(&file(load(paddr, 0x10, 0x1000)), None, "p_paddr", at, paddr);
    }
    for paddr in [0x8020_1000, 0x801f_f000] {
        assert_eq!(kernel(&file(load(paddr, 0x10, 0x1000))).location().size(), 0x2000);
    }
    refused(&file(load(u64::MAX - 0xffe, 0x10, 0x1000)), None, "p_memsz", phdr(1) + 40, 0x1000);
    refused(&file(load(0x1000, 0x10, u64::MAX)), None, "p_memsz", phdr(1) + 40, u64::MAX);
    // Overlaps are looked for among all pairs, so there is a bound.
    let many: Vec<_> = (0..65).map(|n| load(entry + n * 0x1000, 1, 1)).collect();
    assert_eq!(kernel(&elf(entry, &many[..64])).location().size(), 63 * 0x1000 + 1);
    refused(&elf(entry, &many), None, "p_type", phdr(64), 1);
}

#[test]
fn a_file_without_a_magic_number_is_flat() {
    let image = kernel(b"\x13\0\0\0");
    assert_eq!(
        (image.format(), image.location()),
        (ImageFormat::Flat, Location::Unknown { size: 4 })
    );
    let placed = image.at(0x1000.into()).unwrap();
    let segments: Vec<_> = placed.segments().map(|s| (s.range, s.bytes)).collect();
    assert_eq!(segments, [(gpa_range(0x1000, 4), &b"\x13\0\0\0"[..])]);
    assert_eq!(placed.entry(), 0x1000.into());
    refused(&[], None, "file length", 0, 0);
    // Asked for, anything is.
    let elf = elf(0, &[]);
    let image = KernelImage::parse(&elf, Machine::Riscv64, Some(ImageFormat::Flat)).unwrap();
    assert_eq!(image.location().size(), elf.len());
}

#[test]
fn what_no_cpu_executes_is_not_taken_for_flat() {
    let rule = |file: &[u8]| match KernelImage::parse(file, Machine::Riscv64, None) {
        Err(ImageError { rule, format: ImageFormat::Flat, .. }) => rule,
        other => panic!("{other:?}"),
    };
    assert!(rule(b"\x1f\x8b\x08\0more").contains("gzip"));
    assert!(rule(b"\xfd7zXZ\0more").contains("xz"));
    assert!(rule(b"\x28\xb5\x2f\xfdmore").contains("zstd"));
    assert!(rule(b"MZ\0\0zimg\0\0\0\0more").contains("EFI"));
    let mut arm = vec![0; 64];
    put(&mut arm, 0x38, b"ARM\x64");
    assert!(rule(&arm).contains("arm64"));
}
