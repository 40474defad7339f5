//! Copies what was placed into the guest's memory.

use axerrno::{AxResult, ax_err};

use super::Plan;
use crate::{
    hal::AxVMHal,
    mm::{AddrSpace, npt::NptFormat, tlb::NestedTlb},
};

/// Writes kernel, initial RAM disk and device tree to where the plan says, whatever the guest's
/// own permissions; the rest of the kernel's segments becomes zeros.
///
/// # Errors
/// `InvalidInput` when the device tree is longer than its place or has none, or when a place is not
/// RAM of this address space; `NoMemory` for lazy pages. Some of it may be written then.
pub fn load<H: AxVMHal, F: NptFormat, T: NestedTlb>(
    space: &AddrSpace<H, F, T>,
    plan: &Plan<'_>,
    dtb: &[u8],
) -> AxResult {
    let room = plan.dtb().map_or(0, |range| range.size());
    if dtb.len() > room {
        let len = dtb.len();
        return ax_err!(InvalidInput, format_args!("device tree: {len:#x} bytes in {room:#x}"));
    }
    for segment in plan.kernel().segments() {
        let (start, file) = (segment.range.start(), segment.bytes.len());
        space.write_image(start, segment.bytes)?;
        if let Some(rest) = start.checked_add(file) {
            space.zero_image(rest, segment.range.size().saturating_sub(file))?;
        }
    }
    if let Some((range, bytes)) = plan.initrd_bytes() {
        space.write_image(range.start(), bytes)?;
    }
    if let Some(range) = plan.dtb() {
        space.write_image(range.start(), dtb)?;
    }
    Ok(())
}
