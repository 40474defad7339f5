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

/// What is measured: its name, and how many instructions it costs.
type Bench = (&'static str, fn() -> Tenths);

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
        println!(r#"@bench {{"op":"{op}","who":"axvm","value":{}}}"#, value);
    }
}

/// A number of tenths. Floating point is not used here: its first use would be an exit.
struct Tenths(u64);

impl Tenths {
    /// What one of `count` costs.
    fn of(all: u64, without: u64, count: u64) -> Self {
        Self((all.saturating_sub(without) * 10 + count / 2) / count)
    }
}

impl core::fmt::Display for Tenths {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

/// How many instructions `work` executes.
fn instructions(work: impl FnOnce()) -> u64 {
    let start = now();
    work();
    let ticks = now() - start;
    ticks * (1_000_000_000 / machine::timebase())
}

/// How many instructions a round of `work` executes more than one of `empty`.
fn each(mut work: impl FnMut(), mut empty: impl FnMut()) -> Tenths {
    // Once before, as first times cost more.
    work();
    empty();
    let all = instructions(|| (0..ROUNDS).for_each(|_| work()));
    let loops = instructions(|| (0..ROUNDS).for_each(|_| empty()));
    Tenths::of(all, loops, ROUNDS)
}

fn ignore<T>(_: T) {}

/// A loop is not to be compiled away.
fn nothing() {
    core::hint::black_box(());
}

fn call() -> Tenths {
    each(|| ignore(sbi::call(sbi::BASE, 0, [0; 5])), nothing)
}

fn device_read() -> Tenths {
    each(|| ignore(uart::read(uart::SCR)), nothing)
}

fn device_write() -> Tenths {
    each(|| uart::write(uart::SCR, 0x5a), nothing)
}

fn page() -> Tenths {
    let touch = || {
        for page in 0..PAGES {
            memory::poke(FRESH + page * 4096, page);
        }
    };
    let first = instructions(touch);
    let again = instructions(touch);
    Tenths::of(first, again, PAGES)
}

/// Interrupts are taken, and each round ends with one.
fn taken(irq: Irq, enable: u64, mut request: impl FnMut()) -> Tenths {
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

fn handler() -> Tenths {
    taken(Irq::Software, csr::SSI, || csr::set!("sip", csr::SSI))
}

fn timer(source: Source) -> Tenths {
    taken(Irq::Timer, csr::STI, || source.set(0))
}

fn ipi() -> Tenths {
    let own = machine::hart(0);
    taken(Irq::Software, csr::SSI, || ignore(sbi::send_ipi(1, own)))
}

/// The interrupt is pending when the guest waits for it, and is not taken.
fn ipi_waited() -> Tenths {
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
