//! How a test says what it found.
//!
//! Each prints one line: `ok NAME`, `ok NAME # skipped: WHY`, or `not ok NAME: WHY`; the last line
//! is `guest-tests: N passed, M failed`.

use core::fmt::{self, Write};

/// A test, by the promise that it keeps.
pub type Test = (&'static str, fn() -> Outcome);

/// What a test found.
pub type Outcome = Result<(), Failure>;

/// Why a test was not passed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It was not what was promised.
    Seen(Text),
    /// It cannot be tested on this machine.
    Skipped(&'static str),
}

/// A short text; what does not fit is cut off.
#[derive(Clone)]
pub struct Text {
    bytes: [u8; Self::SIZE],
    len: u8,
}

impl Text {
    const SIZE: usize = 118;

    /// From what `format_args!` makes.
    pub fn new(words: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; Self::SIZE], len: 0 };
        // Cut off if too long.
        let _ = text.write_fmt(words);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let mut bytes = [0; 4];
            let bytes = char.encode_utf8(&mut bytes).as_bytes();
            let (start, end) = (self.len.into(), usize::from(self.len) + bytes.len());
            let room = self.bytes.get_mut(start..end).ok_or(fmt::Error)?;
            room.copy_from_slice(bytes);
            self.len = end as u8;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.get(..self.len.into()).unwrap_or_default();
        f.write_str(core::str::from_utf8(bytes).unwrap_or("?"))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many tests were passed, and how many not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    passed: u32,
    failed: u32,
}

impl Summary {
    /// Counts a test, and returns its line.
    pub fn count<'a>(&mut self, name: &'a str, outcome: &'a Outcome) -> Line<'a> {
        match outcome {
            Err(Failure::Seen(_)) => self.failed += 1,
            _ => self.passed += 1,
        }
        Line { name, outcome }
    }
}

/// What is printed of a test.
#[derive(Debug)]
pub struct Line<'a> {
    name: &'a str,
    outcome: &'a Outcome,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.outcome {
            Ok(()) => write!(f, "ok {name}"),
            Err(Failure::Skipped(why)) => write!(f, "ok {name} # skipped: {why}"),
            Err(Failure::Seen(what)) => write!(f, "not ok {name}: {what}"),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest-tests: {} passed, {} failed", self.passed, self.failed)
    }
}

/// The tests of these names, which are functions in scope.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name)),*]
    };
}

/// Ends the test with what was seen.
#[macro_export]
macro_rules! fail {
    ($($words:tt)*) => {
        return Err($crate::report::Failure::Seen($crate::report::Text::new(format_args!($($words)*))))
    };
}

/// Ends the test, with what was seen, unless the condition is true.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            $crate::fail!($($words)*)
        }
    };
}

/// Ends the test unless both numbers are the same.
#[macro_export]
macro_rules! ensure_eq {
    ($seen:expr, $wanted:expr, $($words:tt)*) => {{
        let (seen, wanted) = ($seen, $wanted);
        if seen != wanted {
            $crate::fail!("{}: {:#x} instead of {:#x}", format_args!($($words)*), seen, wanted)
        }
    }};
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{format, string::ToString};

    use super::*;

    fn equal(seen: u32) -> Outcome {
        ensure_eq!(seen, 2, "number {}", 1);
        ensure!(seen != 3, "unreachable");
        Ok(())
    }

    #[test]
    fn lines_and_summary_say_what_was_passed() {
        let mut summary = Summary::default();
        assert_eq!(summary.count("a", &equal(2)).to_string(), "ok a");
        let failed = summary.count("b", &equal(1)).to_string();
        assert_eq!(failed, "not ok b: number 1: 0x1 instead of 0x2");
        let skipped = Err(Failure::Skipped("one hart"));
        assert_eq!(summary.count("c", &skipped).to_string(), "ok c # skipped: one hart");
        assert_eq!(summary.to_string(), "guest-tests: 2 passed, 1 failed");
    }

    #[test]
    fn a_text_that_does_not_fit_is_cut_between_characters() {
        let text = Text::new(format_args!("{}", "ü".repeat(200)));
        assert_eq!(format!("{text}"), "ü".repeat(59));
    }
}
