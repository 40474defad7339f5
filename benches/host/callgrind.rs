//! Callgrind's client requests: they say which instructions count.
//!
//! Run under `valgrind --tool=callgrind --collect-atstart=no`, a [`region`] ends in one dump,
//! named as the region is. Outside valgrind a request does nothing and costs six instructions.
//!
//! The requests are instruction sequences that compute nothing and that valgrind recognises
//! ("The Client Request mechanism", Valgrind manual 3.1; `valgrind/callgrind.h`). Only the
//! x86-64 sequence is here.

use std::cell::Cell;
use std::ffi::CString;

const RUNNING_ON_VALGRIND: u64 = 0x1001;
/// `'C' 'T'` in the upper half: callgrind's own requests.
const CALLGRIND: u64 = (b'C' as u64) << 24 | (b'T' as u64) << 16;
const ZERO_STATS: u64 = CALLGRIND | 1;
const TOGGLE_COLLECT: u64 = CALLGRIND | 2;
const DUMP_STATS_AT: u64 = CALLGRIND | 3;

thread_local! {
    /// Pairs of toggles since the region began.
    static PAUSES: Cell<u64> = const { Cell::new(0) };
}

/// Makes a client request; `default` is the answer outside valgrind.
#[inline(always)]
fn request(default: u64, number: u64, arg: u64) -> u64 {
    let block: [u64; 6] = [number, arg, 0, 0, 0, 0];
    let answer;
    // SAFETY: the rotations sum to 128 bits and the exchange is of a register with itself, so
    // outside valgrind only `rdx` (declared) keeps what it had. Valgrind reads `block`, which
    // outlives the statement, and writes `rdx`.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const block,
            inout("rdx") default => answer,
            options(nostack),
        );
    }
    answer
}

/// Whether the program runs under valgrind.
pub fn is_running() -> bool {
    request(0, RUNNING_ON_VALGRIND, 0) != 0
}

/// Runs `f` and dumps what it cost under `name`. Returns how many times it was
/// [`excluded`], since each costs a few instructions that are to be subtracted.
pub fn region(name: &str, f: impl FnOnce()) -> u64 {
    let name = CString::new(name).expect("a region's name has no zero byte");
    PAUSES.set(0);
    request(0, ZERO_STATS, 0);
    request(0, TOGGLE_COLLECT, 0);
    f();
    request(0, TOGGLE_COLLECT, 0);
    request(0, DUMP_STATS_AT, name.as_ptr() as u64);
    PAUSES.get()
}

/// Runs `f` without counting it. Only within a [`region`], and not nested: it toggles.
#[inline(always)]
pub fn excluded<R>(f: impl FnOnce() -> R) -> R {
    request(0, TOGGLE_COLLECT, 0);
    let result = f();
    PAUSES.set(PAUSES.get() + 1);
    request(0, TOGGLE_COLLECT, 0);
    result
}
