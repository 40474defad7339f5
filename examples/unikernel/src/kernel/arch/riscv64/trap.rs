//! The host's own traps. A guest's exits do not come here: the library has vectors of its own
//! while a guest runs.

use unikernel::queue::NEVER;

use super::{csr, plic, set_timer};

const INTERRUPT: usize = 1 << 63;
const SOFTWARE: usize = 1;
const TIMER: usize = 5;
const EXTERNAL: usize = 9;

/// Takes a trap.
pub(super) extern "C" fn trap(cause: usize, pc: usize, value: usize) {
    match (cause & INTERRUPT != 0, cause & !INTERRUPT) {
        // Somebody wants this hart to look at its queue, which it does after each interrupt.
        // SAFETY: this clears the pending bit and nothing else.
        (true, SOFTWARE) => unsafe { csr::write!("c", "sip", 1usize << SOFTWARE) },
        // The same; the interrupt is pending until the timer is set to another time.
        (true, TIMER) => set_timer(NEVER),
        (true, EXTERNAL) => plic::serve(),
        _ => panic!("unexpected trap: scause {cause:#x} sepc {pc:#x} stval {value:#x}"),
    }
}

/// Sends this hart's traps here and unmasks the three kinds of interrupts at their source; what
/// masks them is `sstatus.SIE`.
pub(super) fn init() {
    let entry = super::entry::trap_entry as *const () as usize;
    // SAFETY: the entry is a trap vector (direct mode: bits 0 and 1 are 0) that keeps what it must.
    unsafe {
        csr::write!("w", "stvec", entry);
        csr::write!("w", "sie", 1usize << SOFTWARE | 1 << TIMER | 1 << EXTERNAL);
    }
}
