//! Traps: interrupts are counted and silenced, exceptions end what [`Frame::execute`] runs.

use super::cpu::{self, Cpu};
use super::{csr, plic, time, uart};

/// The registers of a hart, before and after something is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// x0 to x31; x0 is not used.
    pub x: [u64; 32],
    /// The program counter; afterwards `sepc`.
    pub pc: u64,
    /// `sstatus` as SRET finds it; afterwards as the trap left it.
    pub status: u64,
    /// Afterwards `scause`.
    pub cause: u64,
    /// Afterwards `stval`.
    pub value: u64,
}

impl Frame {
    /// Code in S-mode without interrupts and without floating point. Each register has another
    /// pattern, so that one that changes shows.
    pub const fn new(pc: u64) -> Self {
        let (mut x, mut reg) = ([0; 32], 1);
        while reg < 32 {
            x[reg] = 0x5a17_c3e0_9b2d_f486u64.rotate_left(reg as u32 * 5) ^ reg as u64;
            reg += 1;
        }
        Self { x, pc, status: csr::SPP, cause: u64::MAX, value: 0 }
    }

    /// The same in U-mode.
    pub const fn user(pc: u64) -> Self {
        Self { status: 0, ..Self::new(pc) }
    }

    /// Runs it until its first exception.
    pub fn execute(&mut self) {
        // SAFETY: the hart's own handler brings it back here. What it does in between is the
        // test's affair (see the crate's page).
        unsafe { super::entry::execute(self) };
    }
}

/// Exceptions, by `scause`.
pub mod cause {
    /// Instruction access fault.
    pub const FETCH_ACCESS: u64 = 1;
    /// Illegal instruction.
    pub const ILLEGAL: u64 = 2;
    /// Breakpoint.
    pub const BREAKPOINT: u64 = 3;
    /// Load address misaligned.
    pub const LOAD_MISALIGNED: u64 = 4;
    /// Load access fault.
    pub const LOAD_ACCESS: u64 = 5;
    /// Store or AMO address misaligned.
    pub const STORE_MISALIGNED: u64 = 6;
    /// Store or AMO access fault.
    pub const STORE_ACCESS: u64 = 7;
    /// Environment call from U-mode.
    pub const CALL_U: u64 = 8;
    /// Instruction page fault.
    pub const FETCH_PAGE: u64 = 12;
    /// Load page fault.
    pub const LOAD_PAGE: u64 = 13;
    /// Store or AMO page fault.
    pub const STORE_PAGE: u64 = 15;
}

const INTERRUPT: u64 = 1 << 63;

/// The causes of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irq {
    /// Supervisor software.
    Software = 1,
    /// Supervisor timer.
    Timer = 5,
    /// Supervisor external.
    External = 9,
}

/// Called by the entry with the registers in the hart's frame: 0 to go on there, 1 to return from
/// `execute`.
pub(super) extern "C" fn trap(cpu: &Cpu) -> u64 {
    let cause = cpu.cause();
    if cause & INTERRUPT != 0 {
        interrupt(cpu, cause & !INTERRUPT);
        return 0;
    }
    let frame = cpu.frame();
    if cpu.end(&frame) {
        return 1;
    }
    crate::println!(
        "exception {} at {:#x}, value {:#x}, outside of every test",
        frame.cause,
        frame.pc,
        frame.value
    );
    super::sbi::power_off()
}

fn interrupt(cpu: &Cpu, cause: u64) {
    if cpu.peeks() {
        csr::clear!("sie", 1u64 << (cause & 63));
        cpu.note_peeked();
        return;
    }
    let irq = match cause {
        1 => {
            csr::clear!("sip", csr::SSI);
            Irq::Software
        }
        5 => {
            time::Source::best().set(u64::MAX);
            // One that cannot be taken back must not come again.
            if csr::read!("sip") & csr::STI != 0 {
                csr::clear!("sie", csr::STI);
            }
            Irq::Timer
        }
        9 => {
            let context = plic::context(cpu.index());
            let source = plic::claim(context);
            if source == plic::UART {
                uart::silence();
            }
            plic::complete(context, source);
            if source == 0 {
                // Another hart was faster.
                return;
            }
            cpu.note_source(source);
            Irq::External
        }
        _ => {
            csr::clear!("sie", 1u64 << (cause & 63));
            cpu.note_strange(cause);
            return;
        }
    };
    cpu.count(irq, time::now());
}

/// Takes interrupts from here on.
pub fn open() {
    csr::set!("sstatus", csr::SIE);
}

/// Takes none any more.
pub fn close() {
    csr::clear!("sstatus", csr::SIE);
}

/// Whether an interrupt is pending: it is taken, and neither served nor counted. `sip` would tell
/// too, but some emulators show a guest its software interrupt only.
pub fn is_pending(irq: Irq) -> bool {
    let cpu = cpu::this();
    let enabled = csr::read!("sie");
    let open = csr::read!("sstatus") & csr::SIE;
    close();
    cpu.peek();
    csr::write!("sie", 1u64 << irq as u32);
    self::open();
    // SAFETY: time for the interrupt.
    unsafe { core::arch::asm!("nop", "nop", options(nomem, nostack)) };
    close();
    csr::write!("sie", enabled);
    let pending = cpu.peeked();
    csr::set!("sstatus", open);
    pending
}

/// How often this hart has taken an interrupt since the test began.
pub fn taken(irq: Irq) -> u64 {
    cpu::this().taken(irq)
}
