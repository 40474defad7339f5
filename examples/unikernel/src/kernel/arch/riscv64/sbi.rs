//! The calls to the firmware (SBI 1.0) that a host needs.

use core::arch::asm;

const TIME: usize = 0x5449_4d45;
const IPI: usize = 0x0073_5049;
/// Hart State Management, and its function that stops the calling hart (§9.2).
pub const HSM: usize = 0x0048_534d;
pub const HART_STOP: usize = 1;

/// SBI 1.0 §3: extension in a7, function in a6, arguments from a0; error in a0, value in a1.
///
/// # Safety
/// The call does what the specification says, with memory and harts too.
unsafe fn call(extension: usize, function: usize, args: [usize; 3]) -> Result<usize, isize> {
    let (error, value): (isize, usize);
    // SAFETY: the firmware keeps all registers but a0 and a1; the rest is the caller's.
    unsafe {
        asm!(
            "ecall",
            inlateout("a0") args[0] => error,
            inlateout("a1") args[1] => value,
            in("a2") args[2],
            in("a6") function,
            in("a7") extension,
            options(nostack),
        );
    }
    if error == 0 { Ok(value) } else { Err(error) }
}

/// Has the timer interrupt come when `time` reaches `ticks`, and not before (§6.1).
pub fn set_timer(ticks: u64) {
    // SAFETY: an interrupt, later.
    let _ = unsafe { call(TIME, 0, [ticks as usize, 0, 0]) };
}

/// Makes a software interrupt pending on a hart (§7.1).
pub fn send_ipi(hart: usize) {
    // SAFETY: an interrupt, elsewhere. The mask's bit 0 is the hart of the base.
    let _ = unsafe { call(IPI, 0, [1, hart, 0]) };
}

/// Starts a hart at an address in supervisor mode, with `argument` in a1 (§9.1).
///
/// # Errors
/// The firmware's code.
///
/// # Safety
/// What lies at the address is made to run there.
pub unsafe fn start_hart(hart: usize, entry: usize, argument: usize) -> Result<(), isize> {
    // SAFETY: the caller's.
    unsafe { call(HSM, 0, [hart, entry, argument]) }.map(drop)
}

/// Whether a hart is stopped (§9.3).
pub fn is_stopped(hart: usize) -> bool {
    const STOPPED: usize = 1;
    // SAFETY: a question.
    let state = unsafe { call(HSM, 2, [hart, 0, 0]) };
    state == Ok(STOPPED)
}
