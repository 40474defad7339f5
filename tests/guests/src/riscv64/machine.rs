//! What the device tree says.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use dtoolkit::{Node, Property, fdt::Fdt};

static HARTS: AtomicUsize = AtomicUsize::new(1);
static FIRST: AtomicU64 = AtomicU64::new(0);
static TIMEBASE: AtomicU64 = AtomicU64::new(10_000_000);
static SSTC: AtomicBool = AtomicBool::new(false);
static TREE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Reads it; `hart` is the first.
///
/// # Safety
/// It is one, and nothing writes it meanwhile.
pub(super) unsafe fn read(hart: u64, dtb: *const u8) {
    FIRST.store(hart, Relaxed);
    // SAFETY: the caller's.
    let Ok(fdt) = (unsafe { Fdt::from_raw(dtb) }) else { return };
    // Its length in bytes is the second big-endian word.
    // SAFETY: it has a header.
    let len = u32::from_be(unsafe { dtb.cast::<u32>().add(1).read_unaligned() });
    TREE[0].store(dtb as u64, Relaxed);
    TREE[1].store(dtb as u64 + u64::from(len), Relaxed);
    let Some(cpus) = fdt.find_node("/cpus") else { return };
    let timebase = cpus.property("timebase-frequency").and_then(|ticks| ticks.value_as().ok());
    TIMEBASE.store(timebase.unwrap_or(10_000_000u32).into(), Relaxed);
    let harts = || cpus.children().filter(|node| node.name_without_address() == "cpu");
    HARTS.store(harts().count(), Relaxed);
    let sstc = harts().all(|hart| {
        let isa = hart.property("riscv,isa").and_then(|isa| isa.value_as::<&str>().ok());
        isa.is_some_and(|isa| isa.split('_').any(|extension| extension == "sstc"))
    });
    SSTC.store(sstc, Relaxed);
}

/// How many harts there are.
pub fn harts() -> usize {
    HARTS.load(Relaxed)
}

/// The id of the first hart, and of the other.
pub fn hart(index: usize) -> u64 {
    let first = FIRST.load(Relaxed);
    // Harts are numbered from 0; the emulator may choose any for the first.
    if index == 0 { first } else { u64::from(first == 0) }
}

/// Ticks of `time` in a second.
pub fn timebase() -> u64 {
    TIMEBASE.load(Relaxed)
}

/// Whether all harts have Sstc.
pub fn sstc() -> bool {
    SSTC.load(Relaxed)
}

/// Where the device tree begins and ends.
pub fn tree() -> core::ops::Range<u64> {
    TREE[0].load(Relaxed)..TREE[1].load(Relaxed)
}
