//! Decoding loads and stores: from `htinst`, which is a standard instruction with its address
//! taken out (§18.6.3), or from the instruction itself, 16 or 32 bits (Unprivileged 2.6, 27).

#![forbid(unsafe_code)]

use crate::vcpu::AccessWidth;

/// A load or store of integer registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInsn {
    /// The instruction's length in bytes, 2 or 4.
    pub len: u8,
    /// How much it accesses.
    pub width: AccessWidth,
    /// What it does.
    pub op: MemOp,
}

/// What a load or store does with which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemOp {
    /// Loads x`rd`.
    Load {
        /// The register.
        rd: u8,
        /// Whether the value is sign-extended.
        signed: bool,
    },
    /// Stores x`rs2`.
    Store {
        /// The register.
        rs2: u8,
    },
}

/// The major opcodes that can be emulated, with their two lowest bits.
const LOAD: u32 = 0x03;
const STORE: u32 = 0x23;

/// What `htinst` says of an explicit access; none when it is zero, when it belongs to an access
/// that began in another page (then it has an address offset), and for what cannot be emulated:
/// atomics, floating point, vectors.
pub fn from_htinst(htinst: u64) -> Option<MemInsn> {
    let raw = u32::try_from(htinst).ok()?;
    // Bit 0 is set, bit 1 is clear if the instruction was a compressed one. Bits 19:15 hold how
    // far into the access the fault is.
    if raw & 1 == 0 || raw >> 15 & 0x1f != 0 {
        return None;
    }
    let len = if raw & 2 == 0 { 2 } else { 4 };
    standard(raw | 2, len)
}

/// Whether `htinst` stands for an access of the guest's own page-table walk, and then whether that
/// was a write (§18.6.3, table of pseudoinstructions).
pub const fn walk(htinst: u64) -> Option<bool> {
    match htinst {
        0x2000 | 0x3000 => Some(false),
        0x2020 | 0x3020 => Some(true),
        _ => None,
    }
}

/// Decodes an instruction as it stands in memory.
pub fn from_memory(raw: u32) -> Option<MemInsn> {
    if raw & 3 == 3 { standard(raw, 4) } else { compressed(raw as u16) }
}

const fn reg(raw: u32, at: u32) -> u8 {
    (raw >> at & 0x1f) as u8
}

fn standard(raw: u32, len: u8) -> Option<MemInsn> {
    let funct3 = raw >> 12 & 7;
    let width = match funct3 & 3 {
        0 => AccessWidth::Byte,
        1 => AccessWidth::Word,
        2 => AccessWidth::Dword,
        _ => AccessWidth::Qword,
    };
    let op = match raw & 0x7f {
        // There is no unsigned load of 64 bits.
        LOAD if funct3 != 7 => MemOp::Load { rd: reg(raw, 7), signed: funct3 & 4 == 0 },
        STORE if funct3 < 4 => MemOp::Store { rs2: reg(raw, 20) },
        _ => return None,
    };
    Some(MemInsn { len, width, op })
}

/// C.LW, C.LD, C.SW, C.SD and their stack-pointer forms, and those of Zcb: C.LBU, C.LHU, C.LH,
/// C.SB, C.SH.
fn compressed(raw: u16) -> Option<MemInsn> {
    let raw = u32::from(raw);
    // Three bits name x8 to x15.
    let short = |at: u32| 8 + (raw >> at & 7) as u8;
    let load = |rd, signed, width| (MemOp::Load { rd, signed }, width);
    let store = |rs2, width| (MemOp::Store { rs2 }, width);
    let (op, width) = match (raw & 3, raw >> 13) {
        (0, 2) => load(short(2), true, AccessWidth::Dword),
        (0, 3) => load(short(2), true, AccessWidth::Qword),
        (0, 6) => store(short(2), AccessWidth::Dword),
        (0, 7) => store(short(2), AccessWidth::Qword),
        (0, 4) => match raw >> 10 & 7 {
            0 => load(short(2), false, AccessWidth::Byte),
            1 => load(short(2), raw & 0x40 != 0, AccessWidth::Word),
            2 => store(short(2), AccessWidth::Byte),
            3 if raw & 0x40 == 0 => store(short(2), AccessWidth::Word),
            _ => return None,
        },
        // A stack-pointer load of x0 is reserved.
        (2, 2) if reg(raw, 7) != 0 => load(reg(raw, 7), true, AccessWidth::Dword),
        (2, 3) if reg(raw, 7) != 0 => load(reg(raw, 7), true, AccessWidth::Qword),
        (2, 6) => store(reg(raw, 2), AccessWidth::Dword),
        (2, 7) => store(reg(raw, 2), AccessWidth::Qword),
        _ => return None,
    };
    Some(MemInsn { len: 2, width, op })
}

/// Whether an instruction as it stands in memory writes: stores of integers and floating point, and
/// atomics but for LR, whose faults are a store's too.
pub const fn stores(raw: u32) -> bool {
    const STORE_FP: u32 = 0x27;
    const AMO: u32 = 0x2f;
    match (raw & 3, raw & 0x7f) {
        (3, STORE | STORE_FP) => true,
        (3, AMO) => raw >> 27 != 2,
        (3, _) => false,
        // Of Zcb, the upper half of the function's group.
        (0, _) => raw >> 13 & 7 > 4 || raw >> 13 & 7 == 4 && raw >> 10 & 7 > 1,
        (2, _) => raw >> 13 & 7 > 4,
        _ => false,
    }
}

/// The address of an access that [`from_memory`] knows: a base register, and what is added to it.
pub fn address(raw: u32) -> (u8, i64) {
    if raw & 3 != 3 {
        return compressed_address(raw);
    }
    let offset = match raw & 0x7f {
        STORE => (raw as i32 >> 25 << 5) | reg(raw, 7) as i32,
        _ => raw as i32 >> 20,
    };
    (reg(raw, 15), offset.into())
}

fn compressed_address(raw: u32) -> (u8, i64) {
    const SP: u8 = 2;
    let short = 8 + (raw >> 7 & 7) as u8;
    // `count` bits of the instruction from `from`, which are the offset's from `to`.
    let bits = |from: u32, count: u32, to: u32| i64::from((raw >> from & ((1 << count) - 1)) << to);
    match (raw & 3, raw >> 13 & 7) {
        (0, 2 | 6) => (short, bits(10, 3, 3) | bits(6, 1, 2) | bits(5, 1, 6)),
        (0, 3 | 7) => (short, bits(10, 3, 3) | bits(5, 2, 6)),
        // Bytes, where bit 10 is clear, have an offset of two bits; halves one of one.
        (0, _) if raw >> 10 & 1 == 0 => (short, bits(6, 1, 0) | bits(5, 1, 1)),
        (0, _) => (short, bits(5, 1, 1)),
        (_, 2) => (SP, bits(12, 1, 5) | bits(4, 3, 2) | bits(2, 2, 6)),
        (_, 3) => (SP, bits(12, 1, 5) | bits(5, 2, 3) | bits(2, 3, 6)),
        (_, 6) => (SP, bits(9, 4, 2) | bits(7, 2, 6)),
        _ => (SP, bits(10, 3, 3) | bits(7, 3, 6)),
    }
}

/// Whether an instruction, at most 32 bits long, is WFI.
pub const fn is_wfi(raw: u64) -> bool {
    raw == 0x1050_0073
}

#[cfg(test)]
#[path = "insn_tests.rs"]
mod tests;
