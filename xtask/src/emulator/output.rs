//! What a machine prints, as it comes.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::Instant;

/// How much is kept of what nobody has asked for.
const KEEP: usize = 1 << 20;

/// The last line of a VM: `vm NAME: HOW, EXITS exits, MS ms`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    pub name: String,
    pub how: String,
    pub exits: u64,
}

impl Ending {
    /// Finds it in a line; a guest may have left one half printed.
    fn parse(line: &str) -> Option<Self> {
        let (_, text) = line.trim_end().rsplit_once("vm ").filter(|(before, _)| {
            before.is_empty() || !before.ends_with(|letter: char| letter.is_alphanumeric())
        })?;
        let (name, rest) = text.split_once(": ")?;
        let (rest, time) = rest.strip_suffix(" ms")?.rsplit_once(", ")?;
        let (how, exits) = rest.strip_suffix(" exits")?.rsplit_once(", ")?;
        time.parse::<u64>().ok()?;
        Some(Self { name: name.to_owned(), how: how.to_owned(), exits: exits.parse().ok()? })
    }
}

/// What was printed.
pub(crate) struct Output {
    start: Instant,
    /// Every line with its time, where it can be kept.
    log: Option<File>,
    /// What no one has taken yet.
    text: Vec<u8>,
    line: Vec<u8>,
    endings: Vec<Ending>,
    /// Nothing more will come.
    pub(super) closed: bool,
}

impl Output {
    pub(super) fn new(log: Option<File>) -> Self {
        let start = Instant::now();
        let (text, line, endings) = (Vec::new(), Vec::new(), Vec::new());
        Self { start, log, text, line, endings, closed: false }
    }

    /// The VMs that have ended.
    pub(super) fn endings(&self) -> &[Ending] {
        &self.endings
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
        if self.text.len() > 2 * KEEP {
            self.text.drain(..self.text.len() - KEEP);
        }
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < KEEP {
                self.line.push(byte);
            }
        }
    }

    pub(super) fn close(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.closed = true;
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let line = line.trim_end_matches('\r');
        self.endings.extend(Ending::parse(line));
        if let Some(log) = &mut self.log {
            let mut text = String::new();
            let _ = writeln!(text, "{:8.3} {line}", self.start.elapsed().as_secs_f64());
            // A log that cannot be written is no reason to stop.
            let _ = log.write_all(text.as_bytes());
        }
        self.line.clear();
    }

    /// Takes what comes before `what`, and `what`, if it was printed.
    pub(super) fn take_until(&mut self, what: &str) -> Option<String> {
        let what = what.as_bytes();
        let at = self.text.windows(what.len().max(1)).position(|window| window == what)?;
        let taken: Vec<u8> = self.text.drain(..at + what.len()).collect();
        Some(String::from_utf8_lossy(&taken[..at]).into_owned())
    }

    /// Takes everything.
    pub(super) fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.text)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_vm_is_read() {
        let ending = |line| Ending::parse(line).map(|end| (end.name, end.how, end.exits));
        let expected = Some(("linux".to_owned(), "powered off".to_owned(), 1234));
        assert_eq!(ending("vm linux: powered off, 1234 exits, 5678 ms"), expected);
        assert_eq!(ending("half a line vm linux: powered off, 1234 exits, 5678 ms\r"), expected);
        let expected = Some(("a".to_owned(), "failed: x, y: z".to_owned(), 0));
        assert_eq!(ending("vm a: failed: x, y: z, 0 exits, 1 ms"), expected);
        for line in [
            "vm linux: powered off",
            "vm linux: powered off, many exits, 5 ms",
            "kvm linux: powered off, 1 exits, 5 ms",
            "vm linux: powered off, 1 exits, ms",
        ] {
            assert_eq!(ending(line), None, "{line}");
        }
    }

    #[test]
    fn text_is_taken_once_and_in_order_however_it_comes() {
        let mut output = Output::new(None);
        output.push(b"one tw");
        assert_eq!(output.take_until("two"), None);
        output.push(b"o three\r\n");
        assert_eq!(output.take_until("two").as_deref(), Some("one "));
        assert_eq!(output.take_until("one"), None);
        assert_eq!(output.take(), " three\r\n");
    }

    #[test]
    fn a_flood_does_not_take_all_memory_and_no_ending_is_lost_in_it() {
        let mut output = Output::new(None);
        for _ in 0..100 {
            output.push(&[b'x'; KEEP / 10]);
        }
        output.push(b"\nvm a: powered off, 1 exits, 2 ms\n");
        output.push(b"vm b: powered off, 1 exits, 2 ms");
        output.close();
        assert!(output.text.len() <= 2 * KEEP);
        let names: Vec<_> = output.endings().iter().map(|end| end.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
