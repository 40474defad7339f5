//! The console: lines of the host, output of the VMs, and what is typed.

use alloc::{collections::VecDeque, sync::Arc};
use core::fmt;

use axvm::device::CharBackend;
use log::{LevelFilter, Log, Metadata, Record};
use spin::{Mutex, Once};
use unikernel::{
    focus::{Focus, Key},
    screen::{Lines, Screen},
};

use super::{uart::Uart, vms};

static CONSOLE: Mutex<Option<Screen<Uart>>> = Mutex::new(None);
static FOCUS: Once<Mutex<Focus>> = Once::new();

/// Begins with the machine's console.
pub fn init(uart: Uart) {
    *CONSOLE.lock() = Some(Screen::new(uart));
}

/// Writes a line.
pub fn line(line: fmt::Arguments<'_>) {
    with(|screen| screen.line(line));
}

/// Writes a line of the host's.
macro_rules! say {
    ($($arg:tt)*) => { $crate::kernel::console::line(format_args!($($arg)*)) };
}
pub(super) use say;

fn with(act: impl FnOnce(&mut Screen<Uart>)) {
    if let Some(screen) = &mut *CONSOLE.lock() {
        act(screen);
    }
}

/// Waits until everything is on its way.
pub fn drain() {
    with(|screen| screen.out().drain());
}

/// Takes the console from whoever has it: this CPU has panicked, perhaps while it had it.
pub fn seize() {
    for _ in 0..1_000_000 {
        if CONSOLE.try_lock().is_some() {
            return;
        }
        core::hint::spin_loop();
    }
    // SAFETY: whoever has it is this CPU, in a function that will not go on, or has been stuck
    // for long. The worst that comes of it is a mixed line before the end.
    unsafe { CONSOLE.force_unlock() };
}

/// The log goes to the console.
pub fn init_log(level: LevelFilter) {
    // It is set once.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        say!("[{}] {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// Shares the keyboard among so many VMs.
pub fn init_focus(vms: usize) {
    FOCUS.call_once(|| Mutex::new(Focus::new(vms)));
}

/// Something was typed: the console's interrupt.
pub fn typed() {
    // The console is free again before the VM is told, which may write to it.
    let next = || CONSOLE.lock().as_mut().and_then(|screen| screen.out().get());
    while let Some(byte) = next() {
        let Some(focus) = FOCUS.get() else { continue };
        let key = focus.lock().key(byte);
        match key {
            Key::Type(vm, byte) => {
                if let Some(vm) = vms::all().get(vm) {
                    vm.typed(byte);
                }
            }
            Key::Switch(vm) => {
                if let Some(vm) = vms::all().get(vm) {
                    say!("the keyboard is {}'s", vm.name());
                }
            }
            Key::Nothing => {}
        }
    }
}

/// The console of one VM: the host's end of its serial port.
pub struct VmConsole {
    vm: usize,
    /// None for a single VM, whose output is shown as it is.
    lines: Option<Mutex<Lines>>,
    input: Mutex<VecDeque<u8>>,
}

/// How many bytes that a VM has not read yet are kept; what is typed beyond is lost.
const INPUT: usize = 1024;

impl VmConsole {
    /// The console of the VM with that index; its lines are marked with its name when there are
    /// `several`.
    pub fn new(vm: usize, name: &str, several: bool) -> Arc<Self> {
        let lines = several.then(|| Mutex::new(Lines::new(vm, name)));
        Arc::new(Self { vm, lines, input: Mutex::new(VecDeque::with_capacity(INPUT)) })
    }

    /// Shows a line that is not complete.
    pub fn flush(&self) {
        if let Some(lines) = &self.lines {
            let mut lines = lines.lock();
            with(|screen| lines.flush(screen));
        }
    }

    /// Keeps a byte for the VM to read.
    pub fn push(&self, byte: u8) {
        let mut input = self.input.lock();
        if input.len() < INPUT {
            input.push_back(byte);
        }
    }
}

impl CharBackend for VmConsole {
    fn write(&self, bytes: &[u8]) {
        match &self.lines {
            None => with(|screen| screen.raw(self.vm, bytes)),
            Some(lines) => {
                let mut lines = lines.lock();
                with(|screen| lines.write(bytes, screen));
            }
        }
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut input = self.input.lock();
        let count = buf.len().min(input.len());
        buf.iter_mut().zip(input.drain(..count)).for_each(|(to, byte)| *to = byte);
        count
    }
}
