//! Harts start, stop, sleep and call each other.

use axvm_guests::{
    arch::{
        csr,
        harts::{self, Meeting},
        insn::{ECALL, attempt},
        machine,
        memory::{FREE, NOTHING},
        sbi::{
            self, ALREADY_AVAILABLE, HSM, INVALID_ADDRESS, INVALID_PARAM, NOT_SUPPORTED, call,
            hart_status,
        },
        time::{self, spin, wait},
        trap::{self, Irq},
        uart,
    },
    ensure, ensure_eq, fail,
    report::{Outcome, Test},
    tests,
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    a_hart_that_does_not_exist_has_no_state,
    a_hart_starts_stops_and_starts_again,
    a_hart_starts_as_specified,
    a_running_hart_is_not_started,
    a_hart_is_not_started_where_there_is_no_code,
    interrupts_reach_the_other_hart_awake_and_asleep,
    a_reserved_suspension_is_refused,
    a_suspended_hart_goes_on_when_it_is_interrupted,
    a_suspended_hart_that_loses_its_state_begins_anew,
];

/// What a call returned, for a comparison.
fn error(result: Result<u64, i64>) -> i64 {
    result.err().unwrap_or(0)
}

fn start_at(hart: u64, entry: u64, arg: u64) -> i64 {
    error(call(HSM, 0, [hart, entry, arg, 0, 0]))
}

fn a_hart_that_does_not_exist_has_no_state() -> Outcome {
    ensure_eq!(hart_status(machine::hart(0)).unwrap_or(99), 0, "its own state");
    // Other firmware may take 32 bits for the number.
    for hart in [999, if sbi::is_axvm() { 1 << 32 } else { 998 }, u64::MAX] {
        let status = error(hart_status(hart));
        ensure!(status == INVALID_PARAM, "the state of hart {hart:#x}: {status}");
        let start = start_at(hart, FREE, 0);
        ensure!(start == INVALID_PARAM, "starting hart {hart:#x}: {start}");
    }
    Ok(())
}

fn a_hart_starts_stops_and_starts_again() -> Outcome {
    harts::two()?;
    harts::stop()?;
    for round in 0..5 {
        ensure_eq!(hart_status(harts::other()).unwrap_or(99), 1, "round {round}: its state");
        harts::start()?;
        ensure_eq!(hart_status(harts::other()).unwrap_or(99), 0, "round {round}: its state");
        harts::stop()?;
    }
    Ok(())
}

/// What a hart finds when it starts: a0, a1, sstatus, satp, then 1.
static FOUND: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

#[unsafe(naked)]
extern "C" fn look() {
    core::arch::naked_asm!(
        "lla t0, {found}",
        "sd a0, 0(t0)",
        "sd a1, 8(t0)",
        "csrr t1, sstatus",
        "sd t1, 16(t0)",
        "csrr t1, satp",
        "sd t1, 24(t0)",
        "csrr t1, sie",
        "sd t1, 32(t0)",
        "fence rw, rw",
        "li t1, 1",
        "sd t1, 40(t0)",
        "li a7, 0x48534d",
        "li a6, 1",
        "ecall",
        "1: j 1b",
        found = sym FOUND,
    )
}

fn a_hart_starts_as_specified() -> Outcome {
    harts::two()?;
    harts::stop()?;
    FOUND.iter().for_each(|found| found.store(0, SeqCst));
    let started = start_at(harts::other(), look as *const () as u64, 0x1234_5678_9abc_def0);
    ensure!(started == 0, "starting: {started}");
    ensure!(wait(|| FOUND[5].load(SeqCst) == 1), "it does not run");
    let [a0, a1, sstatus, satp, ..] = [0, 1, 2, 3].map(|index: usize| FOUND[index].load(SeqCst));
    ensure_eq!(a0, harts::other(), "a0");
    ensure_eq!(a1, 0x1234_5678_9abc_def0, "a1");
    ensure_eq!(sstatus & csr::SIE, 0, "sstatus.SIE");
    ensure_eq!(satp, 0, "satp");
    ensure!(wait(|| hart_status(harts::other()) == Ok(1)), "it does not stop");
    Ok(())
}

fn a_running_hart_is_not_started() -> Outcome {
    let own = start_at(machine::hart(0), FREE, 0);
    ensure!(own == ALREADY_AVAILABLE, "starting itself: {own}");
    harts::two()?;
    if !harts::is_on() {
        harts::start()?;
    }
    let other = start_at(harts::other(), FREE, 0);
    ensure!(other == ALREADY_AVAILABLE, "starting the other: {other}");
    Ok(())
}

fn a_hart_is_not_started_where_there_is_no_code() -> Outcome {
    axvm_only()?;
    harts::two()?;
    harts::stop()?;
    for entry in [NOTHING, 0, uart::BASE, 0x9000_0000_0000, u64::MAX - 1] {
        let answer = start_at(harts::other(), entry, 0);
        ensure!(answer == INVALID_ADDRESS, "at {entry:#x}: {answer}");
        ensure_eq!(hart_status(harts::other()).unwrap_or(99), 1, "at {entry:#x}: its state");
    }
    harts::start()
}

static GO: Meeting = Meeting::new();
const CALLS: u64 = 50;

fn answer_calls() -> Outcome {
    trap::open();
    csr::set!("sie", csr::SSI);
    GO.meet()?;
    for call in 1..=CALLS {
        // Asleep every other time.
        if call % 2 == 0 {
            trap::close();
            if trap::taken(Irq::Software) < call {
                time::nap(10_000);
            }
            trap::open();
        }
        ensure!(wait(|| trap::taken(Irq::Software) >= call), "call {call} does not arrive");
        ANSWERS.store(call, SeqCst);
    }
    Ok(())
}

static ANSWERS: AtomicU64 = AtomicU64::new(0);

fn interrupts_reach_the_other_hart_awake_and_asleep() -> Outcome {
    harts::two()?;
    GO.reset();
    ANSWERS.store(0, SeqCst);
    harts::spawn(answer_calls)?;
    GO.meet()?;
    for call in 1..=CALLS {
        let (mask, base) =
            if call % 4 < 2 { (1, harts::other()) } else { (1 << harts::other(), 0) };
        ensure!(sbi::send_ipi(mask, base) == Ok(0), "sending call {call}");
        ensure!(wait(|| ANSWERS.load(SeqCst) >= call), "call {call} is not answered");
    }
    harts::join()
}

fn a_reserved_suspension_is_refused() -> Outcome {
    // Types are 32 bits.
    for (kind, wanted) in
        [(1, INVALID_PARAM), (0x0fff_ffff, INVALID_PARAM), (0x8000_0001, INVALID_PARAM)]
    {
        let answer = error(call(HSM, 3, [kind, 0, 0, 0, 0]));
        ensure!(answer == wanted, "type {kind:#x}: {answer}");
    }
    let platform = error(call(HSM, 3, [0x1000_0000, 0, 0, 0, 0]));
    ensure!([NOT_SUPPORTED, INVALID_PARAM].contains(&platform), "a platform's type: {platform}");
    axvm_only()?;
    for entry in [NOTHING, uart::BASE] {
        let answer = error(call(HSM, 3, [0x8000_0000, entry, 0, 0, 0]));
        ensure!(answer == INVALID_ADDRESS, "going on at {entry:#x}: {answer}");
    }
    Ok(())
}

/// 0 before, 1 when suspended, 2 when it has gone on.
static PHASE: AtomicU64 = AtomicU64::new(0);

/// Has the other hart do `work`, which suspends it, and wakes it.
fn suspended(work: fn() -> Outcome) -> Outcome {
    harts::two()?;
    PHASE.store(0, SeqCst);
    harts::spawn(work)?;
    ensure!(wait(|| PHASE.load(SeqCst) == 1), "it does not begin");
    ensure!(wait(|| hart_status(harts::other()) == Ok(4)), "{:?}", hart_status(harts::other()));
    spin(5);
    ensure_eq!(PHASE.load(SeqCst), 1, "it goes on by itself");
    ensure!(sbi::send_ipi(1, harts::other()) == Ok(0), "waking it");
    ensure!(wait(|| PHASE.load(SeqCst) == 2), "it does not go on");
    ensure_eq!(hart_status(harts::other()).unwrap_or(99), 0, "its state afterwards");
    harts::join()
}

fn a_suspended_hart_goes_on_when_it_is_interrupted() -> Outcome {
    suspended(|| {
        csr::clear!("sip", csr::SSI);
        csr::set!("sie", csr::SSI);
        PHASE.store(1, SeqCst);
        let (frame, end) = attempt(&[ECALL], |frame| {
            frame.x[10] = 0;
            frame.x[16] = 3;
            frame.x[17] = HSM;
        });
        PHASE.store(2, SeqCst);
        let patterns = axvm_guests::arch::trap::Frame::new(0).x;
        ensure_eq!(frame.pc, end, "exception {}: sepc", frame.cause);
        ensure_eq!(frame.x[10], 0, "a0");
        for reg in (1..10).chain(12..16).chain(18..32) {
            ensure_eq!(frame.x[reg], patterns[reg], "x{reg}");
        }
        ensure!(csr::read!("sip") & csr::SSI != 0, "nothing is pending");
        Ok(())
    })
}

#[unsafe(naked)]
extern "C" fn resumed() {
    core::arch::naked_asm!(
        "lla t0, {found}",
        "sd a0, 0(t0)",
        "sd a1, 8(t0)",
        "csrr t1, sstatus",
        "sd t1, 16(t0)",
        "csrr t1, satp",
        "sd t1, 24(t0)",
        // Back to the hart's own, and an exception ends the attempt.
        "mv t0, a1",
        "ld t1, 0(t0)",
        "csrw sscratch, t1",
        "ld t1, 8(t0)",
        "csrw stvec, t1",
        "ebreak",
        found = sym FOUND,
    )
}

static KEPT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn a_suspended_hart_that_loses_its_state_begins_anew() -> Outcome {
    suspended(|| {
        csr::clear!("sip", csr::SSI);
        csr::set!("sie", csr::SSI);
        KEPT[0].store(csr::read!("sscratch"), SeqCst);
        KEPT[1].store(csr::read!("stvec"), SeqCst);
        let kept = KEPT.as_ptr() as u64;
        PHASE.store(1, SeqCst);
        let (frame, end) = attempt(&[ECALL], |frame| {
            frame.x[10] = 0x8000_0000;
            frame.x[11] = resumed as *const () as u64;
            frame.x[12] = kept;
            frame.x[16] = 3;
            frame.x[17] = HSM;
        });
        PHASE.store(2, SeqCst);
        if frame.pc == end {
            fail!("the call returned: {}", frame.x[10] as i64);
        }
        let [a0, a1, sstatus, satp] = [0, 1, 2, 3].map(|index: usize| FOUND[index].load(SeqCst));
        ensure_eq!(a0, harts::other(), "a0");
        ensure_eq!(a1, kept, "a1");
        ensure_eq!(sstatus & csr::SIE, 0, "sstatus.SIE");
        ensure_eq!(satp, 0, "satp");
        Ok(())
    })
}
