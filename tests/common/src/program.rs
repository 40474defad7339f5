//! What a scripted guest does: [`Step`]s in a [`Program`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axerrno::AxError;
use axvm::{
    mm::{GuestPhysAddr, HostPhysAddr, MappingFlags},
    vcpu::{Access, AccessOp, AccessWidth, DecodedAccess, LoadTarget, VcpuExit},
};

use crate::{Lock, mmu::Mmu};

/// One instruction of a scripted guest, or something that happens to it.
pub enum Step {
    /// The guest exits so. An answer to it writes registers as it would for a real instruction;
    /// `Retry` goes on with the next step.
    Exit(VcpuExit),
    /// A load from memory, by the TLB; what is not mapped or not readable is an exit.
    Load {
        /// The guest-physical address, aligned to the width.
        gpa: usize,
        /// The width.
        width: AccessWidth,
        /// The register.
        target: LoadTarget,
    },
    /// A store to memory, by the TLB; what is not mapped or not writable is an exit.
    Store {
        /// The guest-physical address, aligned to the width.
        gpa: usize,
        /// The width.
        width: AccessWidth,
        /// The value.
        value: u64,
    },
    /// Two loads or stores of one instruction.
    Pair(Box<Step>, Box<Step>),
    /// A load, store or pair that faults without `insn`; `decode` tells later.
    Late(Box<Step>),
    /// A load, store or pair that nobody can decode.
    Undecodable(Box<Step>),
    /// The guest executes an instruction at this address.
    Fetch {
        /// The guest-physical address.
        gpa: usize,
    },
    /// The guest's own page-table walk reads an entry here.
    Walk {
        /// The guest-physical address, aligned to 8.
        gpa: usize,
    },
    /// The guest computes until this physical CPU is kicked or its timer is due.
    SpinUntilKicked,
    /// `run` fails with this.
    Fail(AxError),
    /// Does something while in the guest, such as looking around or kicking from within.
    Call(Box<dyn FnOnce(&mut GuestCtx<'_>) + Send>),
    /// A guest that decides each exit itself. It stays, for ever.
    Guest(Box<dyn FnMut(&mut GuestCtx<'_>) -> VcpuExit + Send>),
}

impl Step {
    /// A load into the whole 64-bit register `reg`, zero-extended.
    pub fn load(gpa: usize, width: AccessWidth, reg: u8) -> Self {
        let target = LoadTarget { reg, reg_width: AccessWidth::Qword, signed_ext: false };
        Self::Load { gpa, width, target }
    }

    /// A store.
    pub fn store(gpa: usize, width: AccessWidth, value: u64) -> Self {
        Self::Store { gpa, width, value }
    }

    /// Two accesses of one instruction.
    pub fn pair(first: Self, second: Self) -> Self {
        Self::Pair(Box::new(first), Box::new(second))
    }

    /// The same access, decoded only when asked.
    pub fn late(self) -> Self {
        Self::Late(Box::new(self))
    }

    /// The same access, decoded never.
    pub fn undecodable(self) -> Self {
        Self::Undecodable(Box::new(self))
    }

    /// Does something while in the guest.
    pub fn call(act: impl FnOnce(&mut GuestCtx<'_>) + Send + 'static) -> Self {
        Self::Call(Box::new(act))
    }

    /// A guest that decides each exit itself.
    pub fn guest(act: impl FnMut(&mut GuestCtx<'_>) -> VcpuExit + Send + 'static) -> Self {
        Self::Guest(Box::new(act))
    }

    /// The accesses, if it is an instruction that makes some.
    pub(crate) fn accesses(&self) -> Option<Instr> {
        let part = |gpa: usize, access, walk, decoded| Part {
            gpa: GuestPhysAddr::from_usize(gpa),
            access,
            walk,
            decoded,
        };
        let parts = match *self {
            Self::Load { gpa, width, target } => {
                let decoded = DecodedAccess { width, op: AccessOp::Read(target) };
                vec![part(gpa, Access::Read, false, Some(decoded))]
            }
            Self::Store { gpa, width, value } => {
                let decoded = DecodedAccess { width, op: AccessOp::Write(value) };
                vec![part(gpa, Access::Write, false, Some(decoded))]
            }
            Self::Fetch { gpa } => vec![part(gpa, Access::Fetch, false, None)],
            Self::Walk { gpa } => vec![part(gpa, Access::Read, true, None)],
            Self::Pair(ref first, ref second) => {
                let mut both = first.accesses()?;
                both.parts.extend(second.accesses()?.parts);
                return Some(both);
            }
            Self::Late(ref step) => {
                return Some(Instr { decode: Decode::Late, ..step.accesses()? });
            }
            Self::Undecodable(ref step) => {
                return Some(Instr { decode: Decode::Never, ..step.accesses()? });
            }
            _ => return None,
        };
        Some(Instr { parts, next: 0, decode: Decode::Known })
    }
}

/// When the decoded access of an instruction is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decode {
    Known,
    Late,
    Never,
}

/// One access of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) gpa: GuestPhysAddr,
    pub(crate) access: Access,
    pub(crate) walk: bool,
    pub(crate) decoded: Option<DecodedAccess>,
}

/// An instruction in execution.
#[derive(Clone, Debug)]
pub(crate) struct Instr {
    pub(crate) parts: Vec<Part>,
    pub(crate) next: usize,
    pub(crate) decode: Decode,
}

/// The steps that a vCPU has before it; with none left it halts. Clones are the same program.
#[derive(Clone, Default)]
pub struct Program(Arc<Mutex<VecDeque<Step>>>);

impl Program {
    /// Adds a step at the end.
    pub fn push(&self, step: Step) -> &Self {
        self.0.locked().push_back(step);
        self
    }

    /// Adds steps at the end.
    pub fn extend(&self, steps: impl IntoIterator<Item = Step>) {
        self.0.locked().extend(steps);
    }

    /// How many steps are left.
    pub fn len(&self) -> usize {
        self.0.locked().len()
    }

    /// Whether no step is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what is left.
    pub fn clear(&self) {
        self.0.locked().clear();
    }

    pub(crate) fn pop(&self) -> Option<Step> {
        self.0.locked().pop_front()
    }

    pub(crate) fn push_back_to_front(&self, step: Step) {
        self.0.locked().push_front(step);
    }
}

/// What a guest may touch from a [`Step::Call`] or [`Step::Guest`].
pub struct GuestCtx<'a> {
    /// The VM.
    pub vm: usize,
    /// The vCPU.
    pub vcpu: usize,
    /// Its registers.
    pub regs: &'a mut [u64; 32],
    /// When its timer wants it to run.
    pub deadline: &'a mut Option<u64>,
    /// Its memory.
    pub mmu: Mmu<'a>,
    /// How often it fenced on behalf of other vCPUs, or as it took over a physical CPU.
    pub fences: Fences,
}

/// How often a vCPU fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fences {
    /// Fetched instructions.
    pub instructions: u64,
    /// Translations by the guest's own tables.
    pub translations: u64,
}

impl GuestCtx<'_> {
    /// Loads by the TLB; None where the guest would fault.
    #[track_caller]
    pub fn load(&self, gpa: usize, width: AccessWidth) -> Option<u64> {
        self.mmu.load(GuestPhysAddr::from_usize(gpa), width, Access::Read)
    }

    /// Stores by the TLB; None where the guest would fault.
    #[track_caller]
    pub fn store(&self, gpa: usize, width: AccessWidth, value: u64) -> Option<()> {
        self.mmu.store(GuestPhysAddr::from_usize(gpa), width, value)
    }

    /// What the table says of an address, past the TLB.
    #[track_caller]
    pub fn probe(&self, gpa: usize) -> Option<(HostPhysAddr, MappingFlags)> {
        self.mmu.probe(GuestPhysAddr::from_usize(gpa))
    }
}
