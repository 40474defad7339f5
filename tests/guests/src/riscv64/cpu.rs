//! What each hart has of its own, and running tests in such a way that nothing takes the guest down.

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::csr;
use super::entry::{finished, trap_entry};
use super::trap::{Frame, Irq, cause};
use crate::fail;
use crate::report::{Outcome, Text};

/// How many harts have stacks: the first, and one more.
pub const HARTS: usize = 2;
/// Bytes of a stack.
pub const STACK: usize = 64 << 10;

/// A stack for code and one for traps each, of every hart.
#[repr(C, align(4096))]
pub(super) struct Stacks(UnsafeCell<[[[u8; STACK]; 2]; HARTS]>);

// SAFETY: each hart uses its own, as a stack.
unsafe impl Sync for Stacks {}

pub(super) static STACKS: Stacks = Stacks(UnsafeCell::new([[[0; STACK]; 2]; HARTS]));

/// A hart's own.
#[repr(C)]
pub struct Cpu {
    /// The registers when the last trap came.
    pub(super) frame: UnsafeCell<Frame>,
    /// Where the innermost `execute` has kept what it returns to; 0 outside.
    pub(super) resume: AtomicU64,
    pub(super) trap_stack: AtomicU64,
    index: AtomicU64,
    taken: [AtomicU64; 3],
    last: [AtomicU64; 3],
    source: AtomicU64,
    strange: AtomicU64,
    /// 1 while interrupts are only looked at, 2 when there was one.
    peek: AtomicU64,
    panic: UnsafeCell<Option<Text>>,
}

// SAFETY: the cells are written and read by the hart that they belong to only; a trap does not
// interrupt another, and what it interrupts does not touch the frame.
unsafe impl Sync for Cpu {}

static CPUS: [Cpu; HARTS] = [const {
    Cpu {
        frame: UnsafeCell::new(Frame::new(0)),
        resume: AtomicU64::new(0),
        trap_stack: AtomicU64::new(0),
        index: AtomicU64::new(0),
        taken: [const { AtomicU64::new(0) }; 3],
        last: [const { AtomicU64::new(0) }; 3],
        source: AtomicU64::new(0),
        strange: AtomicU64::new(0),
        peek: AtomicU64::new(0),
        panic: UnsafeCell::new(None),
    }
}; HARTS];

/// The top of a hart's stack, by the hart's index.
pub(super) fn stack(index: usize, trap: bool) -> u64 {
    STACKS.0.get() as u64 + (STACK * (2 * index + 1 + usize::from(trap))) as u64
}

/// The hart begins: its traps go where they should.
pub(super) fn begin(_hart: u64, index: usize) {
    let cpu = &CPUS[index];
    cpu.resume.store(0, Relaxed);
    cpu.trap_stack.store(stack(index, true), Relaxed);
    cpu.index.store(index as u64, Relaxed);
    csr::write!("sscratch", core::ptr::from_ref(cpu));
    csr::write!("stvec", trap_entry as *const () as u64);
}

/// The hart that executes this.
pub fn this() -> &'static Cpu {
    let cpu = csr::read!("sscratch") as *const Cpu;
    // SAFETY: `begin` has put one of the static ones there.
    unsafe { &*cpu }
}

impl Cpu {
    /// 0 for the first hart, 1 for the other.
    pub fn index(&self) -> usize {
        self.index.load(Relaxed) as usize
    }

    /// How often it has taken an interrupt since the test began.
    pub fn taken(&self, irq: Irq) -> u64 {
        self.taken[slot(irq)].load(Relaxed)
    }

    /// What `time` was when it took that interrupt last.
    pub fn last(&self, irq: Irq) -> u64 {
        self.last[slot(irq)].load(Relaxed)
    }

    /// The source of the last external interrupt.
    pub fn source(&self) -> u32 {
        self.source.load(Relaxed) as u32
    }

    pub(super) fn count(&self, irq: Irq, now: u64) {
        self.last[slot(irq)].store(now, Relaxed);
        self.taken[slot(irq)].fetch_add(1, Relaxed);
    }

    pub(super) fn note_source(&self, source: u32) {
        self.source.store(source.into(), Relaxed);
    }

    pub(super) fn note_strange(&self, cause: u64) {
        self.strange.store(cause | 1 << 32, Relaxed);
    }

    pub(super) fn peek(&self) {
        self.peek.store(1, Relaxed);
    }

    pub(super) fn peeks(&self) -> bool {
        self.peek.load(Relaxed) != 0
    }

    pub(super) fn note_peeked(&self) {
        self.peek.store(2, Relaxed);
    }

    pub(super) fn peeked(&self) -> bool {
        self.peek.swap(0, Relaxed) == 2
    }

    /// Begins to count anew.
    pub(super) fn forget(&self) {
        self.taken.iter().chain(&self.last).for_each(|count| count.store(0, Relaxed));
        self.source.store(0, Relaxed);
        self.strange.store(0, Relaxed);
    }

    /// The last trap's.
    pub(super) fn cause(&self) -> u64 {
        // SAFETY: see `Sync`.
        unsafe { (*self.frame.get()).cause }
    }

    pub(super) fn frame(&self) -> Frame {
        // SAFETY: see `Sync`.
        unsafe { *self.frame.get() }
    }

    /// Tells the innermost `execute` of its exception; whether there is one.
    pub(super) fn end(&self, frame: &Frame) -> bool {
        let kept = self.resume.load(Relaxed) as *const *mut Frame;
        if kept.is_null() {
            return false;
        }
        // SAFETY: the entry has put the frame's address there, and its caller waits.
        unsafe { **kept.add(2) = *frame };
        true
    }
}

const fn slot(irq: Irq) -> usize {
    match irq {
        Irq::Software => 0,
        Irq::Timer => 1,
        Irq::External => 2,
    }
}

/// A test, and what came of it.
struct Run {
    test: fn() -> Outcome,
    outcome: Option<Outcome>,
}

/// Runs a test; an exception that it did not expect, or a panic, is a failure.
pub fn protect(test: fn() -> Outcome) -> Outcome {
    extern "C" fn begin(run: &mut Run) {
        run.outcome = Some((run.test)());
    }
    let mut run = Run { test, outcome: None };
    let mut frame = Frame::new(begin as *const () as u64);
    frame.x[1] = finished as *const () as u64;
    frame.x[2] = 0;
    frame.x[10] = &raw mut run as u64;
    frame.execute();
    let strange = this().strange.swap(0, Relaxed);
    // SAFETY: see `Sync`.
    let panic = unsafe { (*this().panic.get()).take() };
    match (run.outcome, panic) {
        (Some(Ok(())), _) if strange != 0 => fail!("interrupt {}", strange & 63),
        (Some(outcome), _) if frame.cause == cause::BREAKPOINT => outcome,
        (_, Some(panic)) => fail!("{panic}"),
        _ => {
            fail!("exception {} at {:#x}, value {:#x}", frame.cause, frame.pc, frame.value)
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = Text::new(format_args!("panic: {}", info.message()));
    if let Some(place) = info.location() {
        let _ = write!(text, " at {place}");
    }
    // SAFETY: see `Sync`.
    unsafe { *this().panic.get() = Some(text) };
    loop {
        // SAFETY: the exception ends the test.
        unsafe { core::arch::asm!("ebreak") };
    }
}
