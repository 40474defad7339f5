//! Several writers on one console: the host's lines, and the VMs' output, line by line when
//! there are several. Nobody writes into another's line.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// Whose line it is that has no end yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nobody,
    Vm(usize),
}

/// The state of the console, and what puts bytes on it.
#[derive(Debug)]
pub struct Screen<W> {
    out: W,
    open: Open,
}

/// What puts bytes on a console.
pub trait Out {
    /// Writes them all.
    fn put(&mut self, bytes: &[u8]);
}

/// Formatted text, as bytes.
struct Text<'a, W>(&'a mut W);

impl<W: Out> fmt::Write for Text<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.put(text.as_bytes());
        Ok(())
    }
}

impl<W: Out> Screen<W> {
    /// An empty console.
    pub const fn new(out: W) -> Self {
        Self { out, open: Open::Nobody }
    }

    /// What puts bytes on it.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes a line of the host's, on a line of its own.
    pub fn line(&mut self, line: fmt::Arguments<'_>) {
        self.close();
        // Putting bytes does not fail.
        let _ = fmt::write(&mut Text(&mut self.out), line);
        self.out.put(b"\r\n");
    }

    /// Writes what the only VM says, as it is.
    pub fn raw(&mut self, vm: usize, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.out.put(bytes);
            self.open = if *last == b'\n' { Open::Nobody } else { Open::Vm(vm) };
        }
    }

    /// Writes a line of one of several VMs, or a part of it.
    fn part(&mut self, vm: usize, prefix: &str, part: &[u8], ended: bool) {
        if self.open != Open::Vm(vm) {
            self.close();
            self.out.put(prefix.as_bytes());
            self.open = Open::Vm(vm);
        }
        self.out.put(part);
        if ended {
            self.close();
        }
    }

    /// Ends the line that has no end.
    fn close(&mut self) {
        if core::mem::replace(&mut self.open, Open::Nobody) != Open::Nobody {
            self.out.put(b"\r\n");
        }
    }
}

/// The most bytes of a line that are held back: a guest cannot make the host's memory grow.
const MAX_LINE: usize = 512;

/// What one of several VMs writes, held back until a line is complete.
#[derive(Debug)]
pub struct Lines {
    vm: usize,
    prefix: String,
    held: Vec<u8>,
}

impl Lines {
    /// Lines of the VM with that index, marked with its name.
    pub fn new(vm: usize, name: &str) -> Self {
        let mut prefix = String::from(name);
        prefix.push_str("| ");
        Self { vm, prefix, held: Vec::with_capacity(MAX_LINE) }
    }

    /// Takes output; complete lines go to the screen.
    pub fn write<W: Out>(&mut self, bytes: &[u8], screen: &mut Screen<W>) {
        for &byte in bytes {
            match byte {
                // Their line ends are ours.
                b'\r' => {}
                b'\n' => {
                    screen.part(self.vm, &self.prefix, &self.held, true);
                    self.held.clear();
                }
                byte => {
                    if self.held.len() == MAX_LINE {
                        self.flush(screen);
                    }
                    self.held.push(byte);
                }
            }
        }
    }

    /// Shows a line that is not complete: a prompt, say. What follows continues it, unless
    /// another has written in between.
    pub fn flush<W: Out>(&mut self, screen: &mut Screen<W>) {
        if !self.held.is_empty() {
            screen.part(self.vm, &self.prefix, &self.held, false);
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Out for Vec<u8> {
        fn put(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    fn shown(screen: &mut Screen<Vec<u8>>) -> String {
        String::from_utf8(core::mem::take(screen.out())).unwrap()
    }

    #[test]
    fn lines_of_several_vms_do_not_mix() {
        let mut screen = Screen::new(Vec::new());
        let (mut a, mut b) = (Lines::new(0, "a"), Lines::new(1, "b"));
        a.write(b"one", &mut screen);
        b.write(b"two\r\nthr", &mut screen);
        a.write(b" more\n\n", &mut screen);
        b.write(b"ee\n", &mut screen);
        assert_eq!(shown(&mut screen), "b| two\r\na| one more\r\na| \r\nb| three\r\n");
    }

    #[test]
    fn a_flushed_prompt_is_continued_unless_another_wrote() {
        let mut screen = Screen::new(Vec::new());
        let (mut a, mut b) = (Lines::new(0, "a"), Lines::new(1, "b"));
        a.write(b"$ ", &mut screen);
        a.flush(&mut screen);
        a.flush(&mut screen);
        a.write(b"ls\n$ ", &mut screen);
        a.flush(&mut screen);
        b.write(b"hello\n", &mut screen);
        a.write(b"cd\n", &mut screen);
        assert_eq!(shown(&mut screen), "a| $ ls\r\na| $ \r\nb| hello\r\na| cd\r\n");
    }

    #[test]
    fn the_hosts_lines_begin_a_line() {
        let mut screen = Screen::new(Vec::new());
        screen.line(format_args!("boot"));
        screen.raw(0, b"login: ");
        screen.raw(0, b"");
        screen.line(format_args!("vm a: powered off"));
        screen.raw(0, b"x\n");
        screen.line(format_args!("end"));
        assert_eq!(shown(&mut screen), "boot\r\nlogin: \r\nvm a: powered off\r\nx\nend\r\n");
    }

    #[test]
    fn an_endless_line_takes_no_more_memory() {
        let mut screen = Screen::new(Vec::new());
        let mut lines = Lines::new(0, "a");
        for _ in 0..10_000 {
            lines.write(b"xxx", &mut screen);
            assert!(lines.held.len() <= MAX_LINE);
        }
        lines.flush(&mut screen);
        assert_eq!(shown(&mut screen), std::format!("a| {}", "x".repeat(30_000)));
    }
}
