//! Control and status registers, by name.

/// Reads a register.
macro_rules! read {
    ($name:literal) => {{
        let value: usize;
        // SAFETY: reading a supervisor register has no effect.
        unsafe { core::arch::asm!(concat!("csrr {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Writes a register (`w`), or sets (`s`) or clears (`c`) bits of it.
macro_rules! write {
    ($how:literal, $name:literal, $value:expr) => {
        core::arch::asm!(concat!("csr", $how, " ", $name, ", {}"), in(reg) $value, options(nostack))
    };
}

pub(super) use {read, write};
