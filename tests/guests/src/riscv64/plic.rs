//! The interrupt controller.

/// Where its registers are, 32 bits each.
pub const BASE: u64 = 0xc00_0000;
/// The serial port's source.
pub const UART: u32 = 10;

/// The S-mode context of a hart: of the first, or of the other.
pub fn context(index: usize) -> u64 {
    2 * super::machine::hart(index) + 1
}

/// Where a source's priority is.
pub const fn priority(source: u32) -> u64 {
    BASE + 4 * source as u64
}

/// Where the pending bits of sources 32 `word` and after are.
pub const fn pending(word: u64) -> u64 {
    BASE + 0x1000 + 4 * word
}

/// Where a context's enable bits for sources 32 `word` and after are.
pub const fn enable(context: u64, word: u64) -> u64 {
    BASE + 0x2000 + 0x80 * context + 4 * word
}

/// Where a context's threshold is.
pub const fn threshold(context: u64) -> u64 {
    BASE + 0x20_0000 + 0x1000 * context
}

/// Reads a register.
pub fn read(address: u64) -> u32 {
    // SAFETY: a device's register.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(address: u64, value: u32) {
    // SAFETY: a device's register.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Takes the most urgent request; 0 when there is none.
pub fn claim(context: u64) -> u32 {
    read(threshold(context) + 4)
}

/// It is served.
pub fn complete(context: u64, source: u32) {
    write(threshold(context) + 4, source);
}

/// Has the serial port's interrupt arrive at a hart.
pub fn route(hart: usize) {
    write(priority(UART), 1);
    write(threshold(context(hart)), 0);
    write(enable(context(hart), 0), 1 << UART);
}

/// Nothing is enabled, and nothing in service.
pub fn quiet() {
    for hart in 0..super::machine::harts().min(super::cpu::HARTS) {
        // What a test has left claimed is completed; it must be enabled for that.
        write(enable(context(hart), 0), 1 << UART);
        claim(context(hart));
        complete(context(hart), UART);
        write(enable(context(hart), 0), 0);
        write(threshold(context(hart)), 0);
    }
    write(priority(UART), 0);
}
