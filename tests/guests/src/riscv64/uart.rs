//! The 16550 at the machine's console.

/// Where its registers are, a byte each.
pub const BASE: u64 = 0x1000_0000;
/// Received and sent bytes.
pub const DATA: u64 = 0;
/// Interrupt enable.
pub const IER: u64 = 1;
/// Interrupt identification (read), FIFO control (write).
pub const IIR_FCR: u64 = 2;
/// Modem control.
pub const MCR: u64 = 4;
/// Line status.
pub const LSR: u64 = 5;
/// The scratch register, which holds what it is given.
pub const SCR: u64 = 7;

/// In `IER`: a byte was received.
pub const RECEIVED: u8 = 1;
/// In `IER`: a byte can be sent.
pub const SENT: u8 = 2;
/// In `MCR`: what is sent is received.
pub const LOOP: u8 = 0x10;
/// In `LSR`: there is a byte.
pub const READY: u8 = 1;
/// In `LSR`: a byte can be sent.
pub const EMPTY: u8 = 0x20;

/// Reads a register.
pub fn read(register: u64) -> u8 {
    // SAFETY: a device's register.
    unsafe { ((BASE + register) as *const u8).read_volatile() }
}

/// Writes a register.
pub fn write(register: u64, value: u8) {
    // SAFETY: a device's register.
    unsafe { ((BASE + register) as *mut u8).write_volatile(value) };
}

/// Sends a byte.
pub fn send(byte: u8) {
    while read(LSR) & EMPTY == 0 {}
    write(DATA, byte);
}

/// No interrupts, no loop, nothing received.
pub fn quiet() {
    write(IER, 0);
    write(MCR, 0);
    write(IIR_FCR, 7);
    read(IIR_FCR);
}

/// What an interrupt handler does: nothing is due any more but received bytes, whose interrupt is
/// switched off.
pub(super) fn silence() {
    read(IIR_FCR);
    if read(LSR) & READY != 0 {
        write(IER, read(IER) & !RECEIVED);
    }
}
