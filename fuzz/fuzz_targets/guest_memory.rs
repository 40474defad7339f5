//! Ranges of guest-physical addresses against the same sums in 128 bits: no operation panics or
//! wraps, whatever a guest asks for.

#![no_main]

use arbitrary::Arbitrary;
use axvm::mm::{GpaRange, GuestPhysAddr, PAGE_SIZE_4K};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input {
    first: (usize, usize),
    second: (usize, usize),
    /// Where it lies: anywhere, or close to an end of the first range, where mistakes live.
    addr: usize,
    near: Option<(bool, i8)>,
    align_shift: u8,
}

fuzz_target!(|input: Input| {
    let (Some(first), Some(second)) = (range(input.first), range(input.second)) else { return };
    let addr = match input.near {
        None => input.addr,
        Some((true, by)) => first.start().as_usize().wrapping_add_signed(by.into()),
        Some((false, by)) => first.end().as_usize().wrapping_add_signed(by.into()),
    };
    check_contains(first, GuestPhysAddr::from_usize(addr));
    check_pair(first, second);
    check_pages(first, 1 << (u32::from(input.align_shift) % usize::BITS));
});

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
        assert!(end > usize::MAX - (PAGE_SIZE_4K - 1));
        return;
    };
    assert!(cover.contains_range(range) && cover.is_aligned(PAGE_SIZE_4K));
    let slack = cover.size() - range.size();
    assert!(slack < 2 * PAGE_SIZE_4K);
    assert_eq!(cover.start(), range.start().page_base());
}
