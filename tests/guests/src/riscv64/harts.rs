//! The other hart: it sleeps until it is given something to do.

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::entry::secondary_entry;
use super::{cpu, csr, machine, memory, sbi, time};
use crate::fail;
use crate::report::{Failure, Outcome};

const OFF: u32 = 0;
const IDLE: u32 = 1;
const POSTED: u32 = 2;
const DONE: u32 = 3;

static STATE: AtomicU32 = AtomicU32::new(OFF);

struct Job(UnsafeCell<(Option<fn() -> Outcome>, Outcome)>);

// SAFETY: who may touch it goes from hart to hart with `STATE`.
unsafe impl Sync for Job {}

static JOB: Job = Job(UnsafeCell::new((None, Ok(()))));

/// How long the other hart may take for something, in milliseconds.
const LIMIT: u64 = 20_000;

/// The other hart begins.
pub(super) extern "C" fn secondary(hart: u64) -> ! {
    cpu::begin(hart, 1);
    STATE.store(IDLE, Release);
    loop {
        csr::clear!("sstatus", csr::SIE | csr::FS);
        csr::write!("satp", 0u64);
        memory::fence_translations();
        csr::write!("sie", csr::SSI);
        cpu::this().forget();
        loop {
            csr::clear!("sip", csr::SSI);
            if STATE.load(Acquire) == POSTED {
                break;
            }
            memory::wait_for_interrupt();
        }
        // SAFETY: posted to this hart.
        let job = unsafe { &mut *JOB.0.get() };
        if let Some(work) = job.0.take() {
            job.1 = cpu::protect(work);
        }
        STATE.store(DONE, Release);
    }
}

/// The other hart's id.
pub fn other() -> u64 {
    machine::hart(1)
}

/// There is another hart.
///
/// # Errors
/// Otherwise the test is skipped.
pub fn two() -> Outcome {
    if machine::harts() < 2 { Err(Failure::Skipped("one hart")) } else { Ok(()) }
}

/// Gives the other hart something to do; starts it if need be.
///
/// # Errors
/// It does not start, or has not come back from what it was given before.
pub fn spawn(work: fn() -> Outcome) -> Outcome {
    two()?;
    match STATE.load(Acquire) {
        OFF => start()?,
        IDLE => {}
        _ => fail!("the other hart has not come back from an earlier test"),
    }
    // SAFETY: the other hart is idle.
    unsafe { (*JOB.0.get()).0 = Some(work) };
    STATE.store(POSTED, Release);
    match sbi::send_ipi(1, other()) {
        Ok(_) => Ok(()),
        Err(error) => fail!("an IPI to the other hart: error {error}"),
    }
}

/// Waits until the other hart has done what it was given.
///
/// # Errors
/// What it says, or that it takes too long.
pub fn join() -> Outcome {
    if !time::wait_ms(LIMIT, || STATE.load(Acquire) == DONE) {
        fail!("the other hart does not come back");
    }
    // SAFETY: the other hart is done with it.
    let outcome = unsafe { (*JOB.0.get()).1.clone() };
    STATE.store(IDLE, Release);
    match outcome {
        Err(Failure::Seen(what)) => fail!("the other hart: {what}"),
        outcome => outcome,
    }
}

/// Whether the other hart was started and not stopped.
pub fn is_on() -> bool {
    STATE.load(Acquire) != OFF
}

/// Starts the other hart.
///
/// # Errors
/// It does not start.
pub fn start() -> Outcome {
    let entry = secondary_entry as *const () as u64;
    if let Err(error) = sbi::call(sbi::HSM, 0, [other(), entry, cpu::stack(1, false), 0, 0]) {
        fail!("starting hart {}: error {error}", other());
    }
    if !time::wait(|| STATE.load(Acquire) == IDLE) {
        fail!("hart {} was started and does not run", other());
    }
    Ok(())
}

/// Has the other hart stop, if it runs, and waits until it has.
///
/// # Errors
/// It does not.
pub fn stop() -> Outcome {
    if !is_on() {
        return Ok(());
    }
    spawn(|| {
        STATE.store(OFF, Release);
        match sbi::call(sbi::HSM, 1, [0; 5]) {
            Ok(_) => fail!("hart_stop returned"),
            Err(error) => fail!("hart_stop: error {error}"),
        }
    })?;
    if !time::wait(|| sbi::hart_status(other()) == Ok(1)) {
        fail!("a hart that stops has status {:?}", sbi::hart_status(other()));
    }
    Ok(())
}

/// Both harts meet here: how many have come since the start.
pub struct Meeting(AtomicU32);

impl Meeting {
    /// Nobody has come.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Waits until both have come as often as this hart.
    ///
    /// # Errors
    /// The other does not come.
    pub fn meet(&self) -> Outcome {
        let round = self.0.fetch_add(1, AcqRel) / 2;
        if !time::wait_ms(LIMIT, || self.0.load(Acquire) / 2 > round) {
            fail!("the other hart does not come to the meeting {round}");
        }
        Ok(())
    }

    /// For another test.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

impl Default for Meeting {
    fn default() -> Self {
        Self::new()
    }
}
