//! The console, as text.

use core::fmt::{self, Write};

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                crate::arch::uart::send(b'\r');
            }
            crate::arch::uart::send(byte);
        }
        Ok(())
    }
}

/// Prints on the console; see `println`.
pub fn print(words: fmt::Arguments<'_>) {
    // The console takes everything.
    let _ = Console.write_fmt(words);
}
