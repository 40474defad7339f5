//! Whatever a kernel's file says: no panic, and nothing outside the file, the span, or the address
//! space.

use axvm::boot::{ImageFormat, KernelImage, Location, Machine, Plan, Request};
use axvm_testkit::gpa_range;
use proptest::prelude::*;

use crate::files::{elf, load, phdr, put, riscv_image};

/// What holds for any file.
fn check(file: &[u8], format: Option<ImageFormat>) -> Result<(), TestCaseError> {
    for machine in [Machine::Riscv64, Machine::Aarch64, Machine::X86_64] {
        let image = match KernelImage::parse(file, machine, format) {
            Ok(image) => image,
            Err(error) => {
                prop_assert!(!error.to_string().is_empty());
                continue;
            }
        };
        let file_range = file.as_ptr_range();
        let at = match image.location() {
            Location::Fixed(span) => span.start(),
            _ => 0x8020_0000.into(),
        };
        if let Some(kernel) = image.at(at) {
            prop_assert_eq!(kernel.span().start(), at);
            prop_assert!(kernel.span().contains(kernel.entry()));
            let mut seen: Vec<axvm::mm::GpaRange> = Vec::new();
            for part in kernel.segments() {
                let bytes = part.bytes.as_ptr_range();
                prop_assert!(kernel.span().contains_range(part.range));
                prop_assert!(part.bytes.len() <= part.range.size());
                prop_assert!(file_range.start <= bytes.start && bytes.end <= file_range.end);
                prop_assert!(!seen.iter().any(|other| other.overlaps(part.range)));
                seen.push(part.range);
            }
            prop_assert!(!seen.is_empty());
        }
        let ram = [gpa_range(0x8000_0000, 64 << 20)];
        let _ = Plan::new(&Request { dtb_room: 0x1000, ..Request::new(&ram, image) });
    }
    Ok(())
}

fn format() -> impl Strategy<Value = Option<ImageFormat>> {
    prop::option::of(prop::sample::select(vec![
        ImageFormat::Elf,
        ImageFormat::RiscvImage,
        ImageFormat::Flat,
    ]))
}

/// Values that lie near a limit.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x300u64,
        (0..64u32, -2..3i64).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by)),
        (-0x300..1i64).prop_map(|by| by as u64),
        (0x8020_0000..0x8021_0000u64),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(file in prop::collection::vec(any::<u8>(), 0..300), format in format()) {
        check(&file, format)?;
    }

    #[test]
    fn a_riscv_image_with_arbitrary_fields(
        fields in prop::collection::vec((0..8usize, value()), 1..4),
        len in 0..70usize,
        format in format(),
    ) {
        let mut file = riscv_image(0x80, 0x20_0000, 0x1000);
        for (field, value) in fields {
            put(&mut file, field * 8, &value.to_le_bytes());
        }
        check(&file, format)?;
        file.truncate(len);
        check(&file, format)?;
    }

    #[test]
    fn an_elf_program_with_arbitrary_fields(
        header in prop::collection::vec((0..64usize, any::<u8>()), 0..3),
        wide in prop::collection::vec((prop::sample::select(vec![24usize, 32]), value()), 0..2),
        segments in prop::collection::vec((0..4usize, 0..7usize, value()), 0..4),
        cut in prop::option::weighted(0.2, 0..1000usize),
    ) {
        let base = 0x8020_0000;
        let loads = [
            load(base, 0x80, 0x100),
            load(base + 0x1000, 0x10, 0x2000),
            load(base + 0x3000, 0, 0x40),
        ];
        let mut file = elf(base, &loads);
        for (at, byte) in header {
            file[at] = byte;
        }
        for (at, value) in wide {
            put(&mut file, at, &value.to_le_bytes());
        }
        for (index, field, value) in segments {
            put(&mut file, phdr(index) + 8 * field, &value.to_le_bytes());
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        check(&file, None)?;
    }
}
