//! Instructions, made while the guest runs: one for every register and form.

use core::cell::UnsafeCell;

use super::memory::fence_instructions;
use super::trap::{Frame, cause};
use crate::fail;
use crate::report::Failure;

/// Breakpoint.
pub const EBREAK: u32 = 0x10_0073;
/// Call.
pub const ECALL: u32 = 0x73;
/// Wait for an interrupt.
pub const WFI: u32 = 0x1050_0073;

/// Opcode of integer loads.
pub const LOAD: u32 = 0x03;
/// Opcode of floating-point loads.
pub const LOAD_FP: u32 = 0x07;
/// Opcode of integer stores.
pub const STORE: u32 = 0x23;
/// Opcode of floating-point stores.
pub const STORE_FP: u32 = 0x27;

/// A load of `rd` from `imm(rs1)`, or another instruction of that form.
pub const fn load(opcode: u32, funct3: u32, rd: usize, rs1: usize, imm: i32) -> u32 {
    (imm as u32) << 20 | (rs1 as u32) << 15 | funct3 << 12 | (rd as u32) << 7 | opcode
}

/// A store of `rs2` to `imm(rs1)`.
pub const fn store(opcode: u32, funct3: u32, rs2: usize, rs1: usize, imm: i32) -> u32 {
    let imm = imm as u32;
    imm >> 5 << 25
        | (rs2 as u32) << 20
        | (rs1 as u32) << 15
        | funct3 << 12
        | (imm & 0x1f) << 7
        | opcode
}

/// An atomic: `funct5` with `rs2` at `(rs1)`, the old value in `rd`; of 2^`funct3` bytes.
pub const fn amo(funct5: u32, funct3: u32, rd: usize, rs1: usize, rs2: usize) -> u32 {
    funct5 << 27 | (rs2 as u32) << 20 | (rs1 as u32) << 15 | funct3 << 12 | (rd as u32) << 7 | 0x2f
}

/// CSRRS `rd`, `csr`, x0.
pub const fn csrr(rd: usize, csr: u32) -> u32 {
    csr << 20 | 2 << 12 | (rd as u32) << 7 | 0x73
}

/// CSRRW x0, `csr`, `rs1`.
pub const fn csrw(csr: u32, rs1: usize) -> u32 {
    csr << 20 | (rs1 as u32) << 15 | 1 << 12 | 0x73
}

const fn bits(value: u32, high: u32, low: u32) -> u32 {
    value >> low & ((1 << (high - low + 1)) - 1)
}

/// A compressed load or store of `reg` (x8 to x15) at `imm(base)`; `funct3` tells which. Those
/// whose `funct3` is 2 or 6 access 4 bytes, up to 124; the others 8, up to 248.
pub const fn compressed(funct3: u32, reg: usize, base: usize, imm: u32) -> u32 {
    let low = match funct3 {
        2 | 6 => bits(imm, 2, 2) << 1 | bits(imm, 6, 6),
        _ => bits(imm, 7, 6),
    };
    funct3 << 13 | bits(imm, 5, 3) << 10 | (base as u32 - 8) << 7 | low << 5 | (reg as u32 - 8) << 2
}

/// A compressed load of `rd` from `imm(sp)`: `funct3` as above.
pub const fn load_sp(funct3: u32, rd: usize, imm: u32) -> u32 {
    let low = match funct3 {
        2 => bits(imm, 4, 2) << 2 | bits(imm, 7, 6),
        _ => bits(imm, 4, 3) << 3 | bits(imm, 8, 6),
    };
    funct3 << 13 | bits(imm, 5, 5) << 12 | (rd as u32) << 7 | low << 2 | 2
}

/// A compressed store of `rs2` to `imm(sp)`: `funct3` as above.
pub const fn store_sp(funct3: u32, rs2: usize, imm: u32) -> u32 {
    let middle = match funct3 {
        6 => bits(imm, 5, 2) << 2 | bits(imm, 7, 6),
        _ => bits(imm, 5, 3) << 3 | bits(imm, 8, 6),
    };
    funct3 << 13 | middle << 7 | (rs2 as u32) << 2 | 2
}

/// How many bytes an instruction has.
pub const fn len(insn: u32) -> u64 {
    if insn & 3 == 3 { 4 } else { 2 }
}

/// Room for code; each hart has its own.
const ROOM: usize = 512;

#[repr(C, align(4096))]
struct Code(UnsafeCell<[[u16; ROOM]; super::cpu::HARTS]>);

// SAFETY: each hart writes its own part, with volatile accesses, and nothing refers to it.
unsafe impl Sync for Code {}

static CODE: Code = Code(UnsafeCell::new([[0; ROOM]; super::cpu::HARTS]));

/// Writes instructions and a breakpoint behind them; returns where they begin and end.
pub fn assemble(insns: &[u32]) -> (u64, u64) {
    let index = super::cpu::this().index();
    let start = CODE.0.get() as u64 + (index * ROOM * 2) as u64;
    let mut end = start;
    let put = |at: u64, half: u32| {
        assert!(at < start + ROOM as u64 * 2);
        // SAFETY: in this hart's part.
        unsafe { (at as *mut u16).write_volatile(half as u16) };
    };
    for &insn in insns {
        put(end, insn);
        if len(insn) == 4 {
            put(end + 2, insn >> 16);
        }
        end += len(insn);
    }
    put(end, EBREAK);
    put(end + 2, EBREAK >> 16);
    fence_instructions();
    (start, end)
}

/// Executes instructions until their first exception, with registers of which `change` makes
/// something else than patterns. Returns them, and where the instructions' end is.
pub fn attempt(insns: &[u32], change: impl FnOnce(&mut Frame)) -> (Frame, u64) {
    let (start, end) = assemble(insns);
    let mut frame = Frame::new(start);
    change(&mut frame);
    frame.execute();
    (frame, end)
}

/// Executes instructions to their end, and returns the registers.
///
/// # Errors
/// There was an exception.
pub fn run(insns: &[u32], change: impl FnOnce(&mut Frame)) -> Result<Frame, Failure> {
    let (frame, end) = attempt(insns, change);
    if frame.cause != cause::BREAKPOINT || frame.pc != end {
        fail!(
            "{:#x}: exception {}, value {:#x}, {:#x} before the end",
            insns.first().copied().unwrap_or(0),
            frame.cause,
            frame.value,
            end.wrapping_sub(frame.pc)
        );
    }
    Ok(frame)
}
