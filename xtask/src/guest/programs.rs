//! Guests of ours, on the bare machine: what they are called, and what they say.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment};

/// The package in the workspace.
pub(crate) const PACKAGE: &str = "axvm-guests";
/// Tests what a guest may rely on, and says so line by line.
pub(crate) const TESTS: &str = "guest-tests";
/// Measures what exits cost.
pub(crate) const BENCH: &str = "guest-bench";

/// How the line of the tests begins that sums up: `guest-tests: N passed, M failed`.
pub(crate) const SUMMARY: &str = "guest-tests: ";

/// Reads what the tests printed, and returns how many there were, all passed.
pub(crate) fn passed(output: &str, summary: &str) -> Result<u32> {
    let failed: Vec<_> =
        output.lines().map(str::trim_end).filter(|line| line.starts_with("not ok ")).collect();
    let counts = summary.strip_prefix(SUMMARY).and_then(|counts| {
        let (passed, failed) = counts.strip_suffix(" failed")?.split_once(" passed, ")?;
        Some((passed.parse::<u32>().ok()?, failed.parse::<u32>().ok()?))
    });
    let listed = output.lines().filter(|line| line.starts_with("ok ")).count();
    match counts {
        None => bail!("no summary: {summary}"),
        Some((0, 0)) => bail!("the guest ran no test"),
        Some((passed, 0)) if failed.is_empty() && usize::try_from(passed) == Ok(listed) => {
            Ok(passed)
        }
        Some(_) => bail!("{summary}, {listed} listed as ok\n  {}", failed.join("\n  ")),
    }
}

/// Writes the flat image of an ELF file: its segments as they lie in memory. It is loaded at
/// `base` and entered at its first byte.
pub(crate) fn flatten(elf: &Path, base: u64, flat: &Path) -> Result<()> {
    let name = || elf.display().to_string();
    let bytes = fs::read(elf).with_context(name)?;
    super::replace(flat, &flat_image(&bytes, base).with_context(name)?)
}

fn flat_image(elf: &[u8], base: u64) -> Result<Vec<u8>> {
    let file = object::File::parse(elf)?;
    if file.entry() != base {
        bail!("enters at {:#x}, where a flat image would at {base:#x}", file.entry());
    }
    let mut image = Vec::new();
    for segment in file.segments() {
        let data = segment.data()?;
        let offset = segment.address().checked_sub(base).context("a segment below the base")?;
        let offset = usize::try_from(offset)?;
        let end = offset.checked_add(data.len()).context("a segment beyond all addresses")?;
        if data.is_empty() {
            continue;
        }
        if end > image.len() {
            image.resize(end, 0);
        }
        if let Some(place) = image.get_mut(offset..end) {
            place.copy_from_slice(data);
        }
    }
    if image.is_empty() {
        bail!("nothing to load");
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_summary_that_fits_the_lines_counts_as_passed() {
        let two = "ok a\r\nnoise\nok b\r\n";
        assert_eq!(passed(two, "guest-tests: 2 passed, 0 failed").ok(), Some(2));
        for (output, summary) in [
            (two, "guest-tests: 3 passed, 0 failed"),
            (two, "guest-tests: 2 passed, 1 failed"),
            (two, "guest-tests: all well"),
            (two, "2 passed, 0 failed"),
            ("", "guest-tests: 0 passed, 0 failed"),
            ("ok a\nnot ok b: it hung\n", "guest-tests: 1 passed, 0 failed"),
        ] {
            assert!(passed(output, summary).is_err(), "{summary}");
        }
    }

    /// A 64-bit RISC-V executable of two segments, the second with more memory than data.
    fn elf(entry: u64, segments: [(u64, &[u8]); 2]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([2u16, 243].map(u16::to_le_bytes).concat());
        elf.extend(1u32.to_le_bytes());
        elf.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
        elf.extend(0u32.to_le_bytes());
        elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        let mut offset = 64 + 2 * 56;
        for (address, data) in segments {
            elf.extend([1u32, 7].map(u32::to_le_bytes).concat());
            let size = data.len() as u64;
            let fields = [offset, address, address, size, size + 16, 4];
            elf.extend(fields.map(u64::to_le_bytes).concat());
            offset += size;
        }
        segments.iter().for_each(|(_, data)| elf.extend_from_slice(data));
        elf
    }

    #[test]
    fn a_flat_image_has_every_segment_at_its_place() -> Result<()> {
        let elf = elf(0x1000, [(0x1004, b"data"), (0x1000, b"co")]);
        assert_eq!(flat_image(&elf, 0x1000)?, b"co\0\0data");
        Ok(())
    }

    #[test]
    fn what_cannot_be_flat_is_an_error() {
        assert!(flat_image(&elf(0x1004, [(0x1004, b"data"), (0x1000, b"co")]), 0x1000).is_err());
        assert!(flat_image(&elf(0x1000, [(0x1000, b"data"), (0xff0, b"co")]), 0x1000).is_err());
        assert!(flat_image(&elf(0x1000, [(0x1000, b""), (0x1004, b"")]), 0x1000).is_err());
        assert!(flat_image(b"no ELF file", 0x1000).is_err());
    }
}
