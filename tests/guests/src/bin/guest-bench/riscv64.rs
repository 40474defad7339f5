//! The exits of a RISC-V guest, in instructions: of the emulated machine's clock, where an
//! instruction takes a nanosecond.
//!
//! Each figure is of many rounds, less those of the same loop without what it measures. `time` has
//! ticks of 100 instructions: over [`ROUNDS`] rounds they do not count.

use axvm_guests::{
    arch::{
        csr, machine, memory, sbi,
        time::{Source, now},
        trap::{self, Irq},
        uart,
    },
    println,
};

axvm_guests::entry!(main);

/// How often what is measured is done.
const ROUNDS: u64 = 20_000;
/// Pages of memory that were not touched before.
const PAGES: u64 = 8_192;
/// Where they begin.
const FRESH: u64 = memory::FREE + (4 << 20);

/// What is measured: its name, and how many instructions once costs.
type Bench = (&'static str, fn() -> f64);

/// Those of interrupts that are taken include the guest's handler; what that costs is the first.
const BENCHES: &[Bench] = &[
    ("interrupt taken, no exit", handler),
    ("sbi call served in the core", call),
    ("mmio read of a device", device_read),
    ("mmio write of a device", device_write),
    ("page populated", page),
    ("timer set and taken, by sbi", || timer(Source::Sbi)),
    ("ipi to itself, taken", ipi),
    ("ipi to itself, waited for", ipi_waited),
];

/// Where the hart has Sstc.
const SSTC: &[Bench] = &[("timer set and taken, by stimecmp", || timer(Source::Stimecmp))];

fn main() {
    let sstc = if machine::sstc() { SSTC } else { &[] };
    let benches = || BENCHES.iter().chain(sstc);
    for (op, _) in benches() {
        println!(r#"@bench {{"op":"{op}","unit":"instr","limit":null}}"#);
    }
    for (op, measure) in benches() {
        axvm_guests::arch::quiet();
        let value = measure();
        println!(r#"@bench {{"op":"{op}","who":"axvm","value":{}}}"#, Tenths(value));
    }
}

/// A figure with one digit behind the point.
struct Tenths(f64);

impl core::fmt::Display for Tenths {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let tenths = (self.0 * 10.0 + 0.5) as u64;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}

/// How many instructions `work` executes.
fn instructions(work: impl FnOnce()) -> f64 {
    let start = now();
    work();
    let ticks = now() - start;
    ticks as f64 * (1e9 / machine::timebase() as f64)
}

/// How many instructions a round of `work` executes more than one of `empty`.
fn each(mut work: impl FnMut(), mut empty: impl FnMut()) -> f64 {
    // Once before, as first times cost more.
    work();
    empty();
    let all = instructions(|| (0..ROUNDS).for_each(|_| work()));
    let loops = instructions(|| (0..ROUNDS).for_each(|_| empty()));
    (all - loops).max(0.0) / ROUNDS as f64
}

/// A loop is not to be compiled away.
fn nothing() {
    core::hint::black_box(());
}

fn call() -> f64 {
    each(|| drop(sbi::call(sbi::BASE, 0, [0; 5])), nothing)
}

fn device_read() -> f64 {
    each(|| drop(uart::read(uart::SCR)), nothing)
}

fn device_write() -> f64 {
    each(|| uart::write(uart::SCR, 0x5a), nothing)
}

fn page() -> f64 {
    let touch = || {
        for page in 0..PAGES {
            memory::poke(FRESH + page * 4096, page);
        }
    };
    let first = instructions(touch);
    let again = instructions(touch);
    (first - again).max(0.0) / PAGES as f64
}

/// Interrupts are taken, and each round ends with one.
fn taken(irq: Irq, enable: u64, mut request: impl FnMut()) -> f64 {
    csr::set!("sie", enable);
    trap::open();
    let mut wanted = trap::taken(irq);
    each(
        || {
            wanted += 1;
            request();
            while trap::taken(irq) < wanted {}
        },
        nothing,
    )
}

fn handler() -> f64 {
    taken(Irq::Software, csr::SSI, || csr::set!("sip", csr::SSI))
}

fn timer(source: Source) -> f64 {
    taken(Irq::Timer, csr::STI, || source.set(0))
}

fn ipi() -> f64 {
    let own = machine::hart(0);
    taken(Irq::Software, csr::SSI, || drop(sbi::send_ipi(1, own)))
}

/// The interrupt is pending when the guest waits for it, and is not taken.
fn ipi_waited() -> f64 {
    let own = machine::hart(0);
    csr::set!("sie", csr::SSI);
    each(
        || {
            let _ = sbi::send_ipi(1, own);
            memory::wait_for_interrupt();
            csr::clear!("sip", csr::SSI);
        },
        nothing,
    )
}
