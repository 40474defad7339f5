//! After a remote fence has returned, no hart uses what was there before.

use axvm_guests::{
    arch::{
        harts::{self, Meeting},
        memory::{FREE, RWX, Table, V, entry, fence, fence_instructions, peek, poke},
        sbi::{RFENCE, call},
        time::{ms, now, wait},
    },
    ensure, ensure_eq,
    report::{Outcome, Test},
    tests,
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

pub const TESTS: &[Test] = tests![
    a_stale_translation_is_gone_when_the_fence_returns,
    a_stale_translation_is_gone_by_a_fence_of_everything,
    a_stale_translation_is_gone_by_a_fence_of_its_address_space,
    patched_code_is_executed_when_the_fence_returns,
    a_fence_of_a_sleeping_hart_returns,
];

static ROOT: Table = Table::new();
static MIDDLE: Table = Table::new();
static LEAVES: Table = Table::new();
static GO: Meeting = Meeting::new();

/// Where the page is mapped that changes.
const PAGE: u64 = 0xc000_0000;
/// The two pages of memory that take turns there.
const FRAMES: [u64; 2] = [FREE + 0x1_0000, FREE + 0x1_1000];

/// The round whose fence has returned.
static FENCED: AtomicU64 = AtomicU64::new(0);
/// The last round, once it is over.
static LAST: AtomicU64 = AtomicU64::new(0);
/// The round in which the other hart must not look; when it does not, it says so by `HELD`.
static HOLD: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);
/// How often the other hart has looked.
static LOOKS: AtomicU64 = AtomicU64::new(0);

const ROUNDS: u64 = 200;
/// Of which the other hart sees each: a look in between, in milliseconds at most.
const PATIENCE: u64 = 200;

/// Looks again and again, by `look`: what it sees is of the last fenced round or later.
fn watch(look: fn() -> u64) -> Outcome {
    GO.meet()?;
    loop {
        loop {
            match HOLD.load(Acquire) {
                0 => break,
                round => HELD.store(round, Release),
            }
        }
        let done = LAST.load(Acquire);
        let fenced = FENCED.load(Acquire);
        let seen = look();
        ensure!(seen >= fenced, "sees round {seen} after the fence of round {fenced}");
        ensure!(seen <= ROUNDS, "sees {seen:#x}");
        LOOKS.fetch_add(1, Release);
        if done != 0 {
            ensure_eq!(seen, ROUNDS, "the last round");
            return Ok(());
        }
    }
}

/// Changes something once a round, by `change`, and fences by a call with these arguments.
fn change(
    watcher: fn() -> Outcome,
    change: fn(round: u64),
    function: u64,
    args: [u64; 3],
) -> Outcome {
    harts::two()?;
    GO.reset();
    [&FENCED, &LAST, &LOOKS, &HOLD, &HELD].iter().for_each(|counter| counter.store(0, Relaxed));
    change(0);
    harts::spawn(watcher)?;
    GO.meet()?;
    let [start, size, asid] = args;
    let mut result = Ok(());
    for round in 1..=ROUNDS {
        change(round);
        fence();
        let answer = call(RFENCE, function, [1 << harts::other(), 0, start, size, asid]);
        FENCED.store(round, Release);
        HOLD.store(0, Release);
        if answer != Ok(0) {
            result = Err(answer);
            break;
        }
        // So that it has looked since, where it runs at the same time.
        let (looks, end) = (LOOKS.load(Acquire), now() + ms(PATIENCE));
        while round % 8 == 0 && LOOKS.load(Acquire) == looks && now() < end {}
    }
    LAST.store(1, Release);
    harts::join()?;
    ensure!(result.is_ok(), "the call: {result:?}");
    ensure!(LOOKS.load(Relaxed) > 10, "the other hart has looked {} times", LOOKS.load(Relaxed));
    Ok(())
}

fn remap(round: u64) {
    let frame = FRAMES[(round % 2) as usize];
    poke(frame, round);
    fence();
    LEAVES.set(0, entry(frame, RWX));
}

fn look_at_page() -> Outcome {
    ROOT.activate();
    watch(|| peek(PAGE))
}

fn map(function: u64, args: [u64; 3]) -> Outcome {
    ROOT.identity();
    ROOT.set(3, entry(MIDDLE.address(), V));
    MIDDLE.set(0, entry(LEAVES.address(), V));
    change(look_at_page, remap, function, args)
}

fn a_stale_translation_is_gone_when_the_fence_returns() -> Outcome {
    map(1, [PAGE, 0x1000, 0])
}

fn a_stale_translation_is_gone_by_a_fence_of_everything() -> Outcome {
    map(1, [0, u64::MAX, 0])?;
    map(1, [0, 0, 0])
}

fn a_stale_translation_is_gone_by_a_fence_of_its_address_space() -> Outcome {
    map(2, [PAGE, 0x1000, 0])
}

const CODE: u64 = FREE + 0x1_2000;

/// `addi a0, x0, round; ret`. Nobody executes it meanwhile: emulators that translate code make a
/// fence of nothing, and may keep what they translate while it is written.
fn patch(round: u64) {
    HOLD.store(round, Release);
    let held = round == 0 || wait(|| HELD.load(Acquire) == round);
    poke(CODE + 4, 0x8067u32);
    // What is no round shows that the other hart was not held.
    poke(CODE, if held { (round as u32) << 20 | 0x513 } else { 0x7ff0_0513 });
}

fn execute_code() -> Outcome {
    fence_instructions();
    watch(|| {
        // SAFETY: `patch` has put a function there.
        let function: extern "C" fn() -> u64 = unsafe { core::mem::transmute(CODE) };
        function()
    })
}

fn patched_code_is_executed_when_the_fence_returns() -> Outcome {
    const { assert!(ROUNDS < 2048, "what an immediate holds") };
    change(execute_code, patch, 0, [0; 3])
}

fn a_fence_of_a_sleeping_hart_returns() -> Outcome {
    harts::two()?;
    if !harts::is_on() {
        harts::start()?;
    }
    // It sleeps until it is given something to do. All harts, and this one among them.
    for function in 0..3 {
        for (mask, base) in [(1 << harts::other(), 0), (3, 0), (0, u64::MAX), (1, 0), (0, 0)] {
            let answer = call(RFENCE, function, [mask, base, 0, u64::MAX, 0]);
            ensure!(
                answer == Ok(0),
                "function {function}, mask {mask}, base {base:#x}: {answer:?}"
            );
        }
    }
    harts::spawn(|| Ok(()))?;
    harts::join()
}
