//! Every form of integer loads and stores.

use axvm_guests::arch::insn::{LOAD, STORE, compressed, load, load_sp, store, store_sp};

/// The stack pointer, which some forms imply.
pub const SP: usize = 2;

/// How registers can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// Any registers and an offset of 12 bits.
    Full,
    /// x8 to x15 and a positive offset.
    Short,
    /// Any register and a positive offset from the stack pointer.
    Stack,
}

/// A form of load or store.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Its name.
    pub name: &'static str,
    /// Bytes that it accesses.
    pub width: u32,
    /// Whether what it loads is sign-extended.
    pub signed: bool,
    funct3: u32,
    encoding: Encoding,
}

const fn form(
    name: &'static str,
    funct3: u32,
    width: u32,
    signed: bool,
    encoding: Encoding,
) -> Form {
    Form { name, width, signed, funct3, encoding }
}

/// Loads.
pub const LOADS: [Form; 11] = [
    form("lb", 0, 1, true, Encoding::Full),
    form("lh", 1, 2, true, Encoding::Full),
    form("lw", 2, 4, true, Encoding::Full),
    form("ld", 3, 8, true, Encoding::Full),
    form("lbu", 4, 1, false, Encoding::Full),
    form("lhu", 5, 2, false, Encoding::Full),
    form("lwu", 6, 4, false, Encoding::Full),
    form("c.lw", 2, 4, true, Encoding::Short),
    form("c.ld", 3, 8, true, Encoding::Short),
    form("c.lwsp", 2, 4, true, Encoding::Stack),
    form("c.ldsp", 3, 8, true, Encoding::Stack),
];

/// Stores.
pub const STORES: [Form; 8] = [
    form("sb", 0, 1, false, Encoding::Full),
    form("sh", 1, 2, false, Encoding::Full),
    form("sw", 2, 4, false, Encoding::Full),
    form("sd", 3, 8, false, Encoding::Full),
    form("c.sw", 6, 4, false, Encoding::Short),
    form("c.sd", 7, 8, false, Encoding::Short),
    form("c.swsp", 6, 4, false, Encoding::Stack),
    form("c.sdsp", 7, 8, false, Encoding::Stack),
];

impl Form {
    /// The offsets to try.
    pub fn offsets(&self) -> &'static [i32] {
        match (self.encoding, self.width) {
            (Encoding::Full, _) => &[0, 2047, -2048, -1],
            (Encoding::Short, 4) => &[0, 4, 64, 124],
            (Encoding::Short, _) => &[0, 8, 64, 248],
            (Encoding::Stack, 4) => &[0, 4, 64, 252],
            (Encoding::Stack, _) => &[0, 8, 64, 504],
        }
    }

    /// Whether the form can name these registers: what it loads or stores, and the base.
    pub fn can_name(&self, reg: usize, base: usize) -> bool {
        match self.encoding {
            Encoding::Full => true,
            Encoding::Short => (8..16).contains(&reg) && (8..16).contains(&base),
            // A load of x0 is reserved.
            Encoding::Stack => base == SP && (reg != 0 || self.funct3 & 4 != 0),
        }
    }

    /// The load of `reg`.
    pub fn load(&self, reg: usize, base: usize, offset: i32) -> u32 {
        match self.encoding {
            Encoding::Full => load(LOAD, self.funct3, reg, base, offset),
            Encoding::Short => compressed(self.funct3, reg, base, offset as u32),
            Encoding::Stack => load_sp(self.funct3, reg, offset as u32),
        }
    }

    /// The store of `reg`.
    pub fn store(&self, reg: usize, base: usize, offset: i32) -> u32 {
        match self.encoding {
            Encoding::Full => store(STORE, self.funct3, reg, base, offset),
            Encoding::Short => compressed(self.funct3, reg, base, offset as u32),
            Encoding::Stack => store_sp(self.funct3, reg, offset as u32),
        }
    }

    /// What a register holds after a load of `value`.
    pub fn extend(&self, value: u64) -> u64 {
        let shift = 64 - 8 * self.width;
        if self.signed {
            ((value << shift) as i64 >> shift) as u64
        } else {
            value << shift >> shift
        }
    }
}
