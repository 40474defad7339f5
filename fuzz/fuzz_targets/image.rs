//! Kernel files: RISC-V Images and ELF programs with arbitrary fields, and arbitrary bytes, parsed
//! as every format for every machine and placed. Nothing panics; segments lie in the file, in the
//! span and in RAM, and overlap neither each other nor what else is placed.

#![no_main]

use arbitrary::Arbitrary;
use axvm::{
    boot::{ImageFormat, KernelImage, Location, Machine, PlacedKernel, Plan, Request},
    mm::GpaRange,
};
use libfuzzer_sys::fuzz_target;

const RAM: usize = 0x8000_0000;
const RAM_SIZE: usize = 64 << 20;

#[derive(Debug, Arbitrary)]
struct Input {
    file: File,
    machine: u8,
    format: u8,
    at: Option<u32>,
    initrd: Option<(u16, Option<u32>)>,
    dtb: (u16, Option<u32>),
}

#[derive(Debug, Arbitrary)]
enum File {
    Bytes(Vec<u8>),
    Riscv { text_offset: Size, image_size: Size, flags: u8, version: u32, len: u8 },
    Elf { entry: Size, phoff: u8, loads: Vec<Load>, patch: Option<(u16, u8)>, tail: u8 },
}

#[derive(Debug, Arbitrary)]
struct Load {
    kind: u8,
    offset: Size,
    vaddr: Size,
    paddr: Size,
    filesz: Size,
    memsz: Size,
}

/// A number: small, near the start of RAM, or any.
#[derive(Debug, Arbitrary)]
enum Size {
    Small(u8),
    Ram(u16),
    Any(u64),
}

impl Size {
    fn bytes(&self) -> [u8; 8] {
        match *self {
            Self::Small(n) => n.into(),
            Self::Ram(n) => RAM as u64 + u64::from(n),
            Self::Any(n) => n,
        }
        .to_le_bytes()
    }
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let mut file = Vec::new();
        match self {
            Self::Bytes(bytes) => file.extend(bytes),
            Self::Riscv { text_offset, image_size, flags, version, len } => {
                file.extend([0; 8]);
                file.extend(text_offset.bytes());
                file.extend(image_size.bytes());
                file.extend(u64::from(*flags).to_le_bytes());
                file.extend(version.to_le_bytes());
                file.resize(0x38, 0);
                file.extend(b"RSC\x05");
                file.resize(0x3c + usize::from(*len), 0);
            }
            Self::Elf { entry, phoff, loads, patch, tail } => {
                file.extend(b"\x7fELF\x02\x01\x01");
                file.resize(16, 0);
                file.extend([2, 0, 243, 0, 1, 0, 0, 0]);
                file.extend(entry.bytes());
                // Mostly right behind the header.
                let phoff = if *phoff < 0xf0 { 64 } else { u64::from(*phoff) };
                file.extend(phoff.to_le_bytes());
                file.resize(54, 0);
                file.extend([56, 0]);
                file.extend((loads.len() as u16).to_le_bytes());
                file.resize(64, 0);
                for load in loads {
                    file.extend([load.kind % 4, 0, 0, 0, 7, 0, 0, 0]);
                    let Load { offset, vaddr, paddr, filesz, memsz, .. } = load;
                    for field in [offset, vaddr, paddr, filesz, memsz, &Size::Small(0)] {
                        file.extend(field.bytes());
                    }
                }
                file.resize(file.len() + usize::from(*tail), 0xaa);
                if let Some((at, value)) = *patch
                    && let Some(byte) = file.get_mut(usize::from(at))
                {
                    *byte = value;
                }
            }
        }
        file
    }
}

fn check(file: &[u8], kernel: &PlacedKernel<'_>) {
    let whole = file.as_ptr_range();
    let mut seen: Vec<GpaRange> = Vec::new();
    for part in kernel.segments() {
        let bytes = part.bytes.as_ptr_range();
        assert!(whole.start <= bytes.start && bytes.end <= whole.end);
        assert!(part.bytes.len() <= part.range.size());
        assert!(kernel.span().contains_range(part.range));
        assert!(!seen.iter().any(|other| other.overlaps(part.range)));
        seen.push(part.range);
    }
    assert!(!seen.is_empty() && kernel.span().contains(kernel.entry()));
}

fuzz_target!(|input: Input| {
    let file = input.file.bytes();
    let machine =
        [Machine::Riscv64, Machine::Aarch64, Machine::X86_64][usize::from(input.machine) % 3];
    let format = match input.format % 8 {
        0 => Some(ImageFormat::Elf),
        1 => Some(ImageFormat::RiscvImage),
        2 => Some(ImageFormat::Flat),
        _ => None,
    };
    let image = match KernelImage::parse(&file, machine, format) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let at = match image.location() {
        Location::Fixed(span) => span.start(),
        _ => usize::MAX.wrapping_sub(input.at.unwrap_or(0) as usize).into(),
    };
    if let Some(kernel) = image.at(at) {
        check(&file, &kernel);
    }
    let address = |at: Option<u32>| at.map(|at| (RAM + at as usize % RAM_SIZE).into());
    let initrd = input.initrd.map(|(size, at)| (vec![0; size.into()], at));
    let ram = [GpaRange::new(RAM.into(), RAM_SIZE).unwrap()];
    let plan = Plan::new(&Request {
        kernel_at: address(input.at),
        initrd: initrd.as_ref().map(|(bytes, _)| &bytes[..]),
        initrd_at: initrd.as_ref().and_then(|(_, at)| address(*at)),
        dtb_room: input.dtb.0.into(),
        dtb_at: address(input.dtb.1),
        ..Request::new(&ram, image)
    });
    match plan {
        Ok(plan) => {
            check(&file, plan.kernel());
            assert!(plan.kernel().segments().all(|part| ram[0].contains_range(part.range)));
            let places: Vec<_> = [Some(plan.kernel().span()), plan.initrd(), plan.dtb()]
                .into_iter()
                .flatten()
                .collect();
            for (index, place) in places.iter().enumerate() {
                assert!(!places[..index].iter().any(|other| other.overlaps(*place)));
                assert!(index == 0 || ram[0].contains_range(*place));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
