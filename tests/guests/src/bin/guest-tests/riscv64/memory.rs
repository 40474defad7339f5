//! Memory is zero at first, keeps what it is given, and is shared by the harts.

use axvm_guests::{
    arch::{
        harts::{self, Meeting},
        machine,
        memory::{FREE, peek, poke},
    },
    ensure_eq,
    report::{Outcome, Test},
    tests,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub const TESTS: &[Test] = tests![
    fresh_pages_are_zero_and_keep_what_is_written,
    harts_that_touch_fresh_pages_together_lose_nothing,
    a_counter_of_both_harts_is_exact,
    a_counter_by_reservations_is_exact,
];

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Memory that nothing else here touches: for both harts, and for one.
const SHARED: u64 = FREE + 4 * MIB;
const SHARED_PAGES: u64 = 2048;
const OWN: u64 = SHARED + SHARED_PAGES * PAGE;
const OWN_PAGES: u64 = 64 * MIB / PAGE;

/// Pages, but for those of the device tree.
fn pages(start: u64, count: u64) -> impl Iterator<Item = u64> {
    let tree = machine::tree();
    (0..count)
        .map(move |page| start + page * PAGE)
        .filter(move |page| page + PAGE <= tree.start || tree.end <= *page)
}

fn pattern(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fresh_pages_are_zero_and_keep_what_is_written() -> Outcome {
    for page in pages(OWN, OWN_PAGES) {
        // The first touch is a load, a store, a store of the last byte.
        match page / PAGE % 3 {
            0 => ensure_eq!(peek::<u64>(page + 8), 0, "fresh at {:#x}", page + 8),
            1 => poke(page + 16, pattern(page)),
            _ => poke(page + 4095, 0x77u8),
        }
    }
    for page in pages(OWN, OWN_PAGES) {
        let kind = page / PAGE % 3;
        for offset in (0..PAGE).step_by(if page % (64 * PAGE) == 0 { 8 } else { 512 }) {
            let wanted = match (kind, offset) {
                (1, 16) => pattern(page),
                (2, 4088) => 0x77 << 56,
                _ => 0,
            };
            ensure_eq!(peek::<u64>(page + offset), wanted, "at {:#x}", page + offset);
        }
        poke(page, pattern(page) ^ 1);
    }
    for page in pages(OWN, OWN_PAGES) {
        ensure_eq!(peek::<u64>(page), pattern(page) ^ 1, "at {page:#x}");
    }
    Ok(())
}

static GO: Meeting = Meeting::new();
const CHUNK: usize = 256;

/// Each hart has its own words in the pages, and comes to each page at about the same time.
fn touch(hart: u64) -> Outcome {
    for chunk in 0..SHARED_PAGES as usize / CHUNK {
        GO.meet()?;
        for page in pages(SHARED, SHARED_PAGES).skip(chunk * CHUNK).take(CHUNK) {
            let own = page + 8 * hart + 64;
            ensure_eq!(peek::<u64>(own), 0, "fresh at {own:#x}");
            poke(own, pattern(page) ^ hart);
        }
    }
    GO.meet()
}

fn harts_that_touch_fresh_pages_together_lose_nothing() -> Outcome {
    harts::two()?;
    GO.reset();
    harts::spawn(|| touch(1))?;
    let here = touch(0);
    harts::join()?;
    here?;
    for page in pages(SHARED, SHARED_PAGES) {
        for hart in 0..2 {
            let at = page + 8 * hart + 64;
            ensure_eq!(peek::<u64>(at), pattern(page) ^ hart, "of hart {hart} at {at:#x}");
        }
    }
    Ok(())
}

static COUNTER: AtomicU64 = AtomicU64::new(0);
const COUNTS: u64 = 200_000;

fn count() -> Outcome {
    GO.meet()?;
    for _ in 0..COUNTS {
        COUNTER.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// Compares and exchanges, which is load-reserved and store-conditional.
fn count_reserved() -> Outcome {
    GO.meet()?;
    for _ in 0..COUNTS {
        let mut value = COUNTER.load(Relaxed);
        while let Err(now) = COUNTER.compare_exchange_weak(value, value + 1, Relaxed, Relaxed) {
            value = now;
        }
    }
    Ok(())
}

fn both(count: fn() -> Outcome) -> Outcome {
    harts::two()?;
    GO.reset();
    COUNTER.store(0, Relaxed);
    harts::spawn(count)?;
    let here = count();
    harts::join()?;
    here?;
    ensure_eq!(COUNTER.load(Relaxed), 2 * COUNTS, "the counter");
    Ok(())
}

fn a_counter_of_both_harts_is_exact() -> Outcome {
    both(count)
}

fn a_counter_by_reservations_is_exact() -> Outcome {
    both(count_reserved)
}
