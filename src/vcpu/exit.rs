//! Why a guest stopped: what a backend tells the VM ([`VcpuExit`]), what the VM answers
//! ([`Completion`]), and what `run_vcpu` tells the host ([`AxVCpuExitReason`]).

#![forbid(unsafe_code)]

use crate::mm::{GuestPhysAddr, MappingFlags};

/// The width of one access: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AccessWidth {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
    /// 64 bits.
    Qword = 8,
}

impl AccessWidth {
    /// The width in bytes.
    pub const fn size(self) -> usize {
        self as usize
    }

    /// A value with as many low bits set as the width has.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
}

impl TryFrom<usize> for AccessWidth {
    type Error = ();

    fn try_from(bytes: usize) -> Result<Self, ()> {
        Ok(match bytes {
            1 => Self::Byte,
            2 => Self::Word,
            4 => Self::Dword,
            8 => Self::Qword,
            _ => return Err(()),
        })
    }
}

/// An x86 I/O port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

/// The number of a system register: an x86 MSR index, an Arm `op0:op1:CRn:CRm:op2` encoding as in
/// ISS of a trapped MSR/MRS, a RISC-V CSR number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysRegAddr(pub usize);

/// How the guest touched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or the store half of an atomic.
    Write,
    /// An instruction fetch.
    Fetch,
}

impl Access {
    /// The permission that the access needs.
    pub const fn permission(self) -> MappingFlags {
        match self {
            Self::Read => MappingFlags::READ,
            Self::Write => MappingFlags::WRITE,
            Self::Fetch => MappingFlags::EXECUTE,
        }
    }
}

/// The register that a load writes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadTarget {
    /// The general-purpose register, numbered as the architecture does.
    pub reg: u8,
    /// How much of the register is written, counted from bit 0.
    pub reg_width: AccessWidth,
    /// Whether the loaded value is sign-extended to `reg_width`, otherwise zero-extended.
    pub signed_ext: bool,
}

impl LoadTarget {
    /// What a load of `width` that read `raw` leaves in a 64-bit register that held `old`: the
    /// value extended to `reg_width`; a register narrower than 32 bits keeps its other bits, a
    /// 32-bit one clears the upper half (Intel SDM vol. 1 3.4.1.1; DDI 0487 B1.2.1: a write to
    /// Wn clears the upper half of Xn).
    pub const fn merge(self, old: u64, raw: u64, width: AccessWidth) -> u64 {
        let raw = raw & width.mask();
        let sign = 1 << (8 * width as u32 - 1);
        let extended = if self.signed_ext && raw & sign != 0 { raw | !width.mask() } else { raw };
        let mask = self.reg_width.mask();
        match self.reg_width {
            AccessWidth::Byte | AccessWidth::Word => (old & !mask) | (extended & mask),
            AccessWidth::Dword | AccessWidth::Qword => extended & mask,
        }
    }
}

/// The direction of an access, with the register to load or the value to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessOp {
    /// A load.
    Read(LoadTarget),
    /// A store of this value; bits above the width are ignored.
    Write(u64),
}

/// One load or store of a decoded instruction. It begins at the reported address: a backend that
/// sees an access cross into a page and fault there reports no decoded access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodedAccess {
    /// Its width.
    pub width: AccessWidth,
    /// Its direction.
    pub op: AccessOp,
}

/// A fault in the nested page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemFault {
    /// The guest-physical address, exact where the hardware reports it, for a fault of the
    /// guest's own page walk that of the page-table entry.
    pub gpa: GuestPhysAddr,
    /// What was attempted.
    pub access: Access,
    /// Whether it was the guest's own page-table walk: then there is no instruction to complete.
    pub walk: bool,
    /// The instruction, where the backend could tell cheaply; none for a walk or a fetch.
    pub insn: Option<DecodedAccess>,
}

/// Why the guest stopped, as a backend reports it to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VcpuExit {
    /// The nested page table refused an access. Answer: [`Completion::Read`], `Written`, `Retry`
    /// or `Fault`.
    MemFault(MemFault),
    /// An access to an I/O port. Answer: `Read`, `Written` or `Fault`.
    Port {
        /// The first port.
        port: Port,
        /// The access.
        access: DecodedAccess,
    },
    /// A system-register access that the backend does not serve itself. Answer: `Read`,
    /// `Written` or `Fault`.
    SysReg {
        /// The register.
        addr: SysRegAddr,
        /// The access; its width is always 8 bytes.
        op: AccessOp,
    },
    /// A call to the hypervisor. Answer: [`Completion::Return`].
    Hypercall {
        /// The call's number.
        nr: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// A physical interrupt is for the host: on x86 acknowledged, elsewhere pending.
    ExternalInterrupt {
        /// Its vector where the hardware told, otherwise 0.
        vector: u64,
    },
    /// The guest waits for an interrupt. No answer: the instruction is already skipped.
    Halt,
    /// The guest starts another vCPU. Answer: [`Completion::CpuUp`].
    CpuUp {
        /// The guest's name for it (MPIDR affinity, hart id, APIC id).
        target_cpu: u64,
        /// Where it begins.
        entry_point: GuestPhysAddr,
        /// The argument it gets.
        arg: u64,
    },
    /// The guest switches this vCPU off.
    CpuDown,
    /// The guest asks whether a vCPU is switched on. Answer: [`Completion::CpuStatus`].
    CpuStatus {
        /// The guest's name for it.
        target_cpu: u64,
    },
    /// The guest suspends this vCPU until an interrupt. It goes on behind the call, which is
    /// already answered, or, where it loses its state, at `resume` as if started there; then the
    /// answer, if that is no place to begin, is [`Completion::CpuUp`].
    CpuSuspend {
        /// Entry point and argument.
        resume: Option<(GuestPhysAddr, u64)>,
    },
    /// The guest sends an inter-processor interrupt. Answer: `Written` or `NoSuchCpu`.
    SendIpi {
        /// The vCPUs, by index.
        targets: IpiTargets,
        /// The vector.
        vector: u64,
    },
    /// The guest wants other vCPUs to forget what they cached; the call returns when they have.
    /// Answer: `Written` or `NoSuchCpu`.
    RemoteFence {
        /// The vCPUs.
        targets: IpiTargets,
        /// What they forget.
        fence: GuestFence,
    },
    /// The guest uses the firmware's console. Answer: [`Completion::Console`].
    Console(ConsoleCall),
    /// The guest powers the machine off.
    SystemDown,
    /// The guest resets the machine.
    SystemReset,
    /// The hardware refused to enter the guest.
    FailEntry {
        /// The hardware's code.
        reason: u64,
    },
    /// The backend served the exit itself; there is nothing to answer.
    Served(Service),
    /// The backend was told to leave; there is nothing to answer.
    Nothing,
}

/// What a backend served itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A call to the firmware that concerns the vCPU alone: its timer, versions, errors.
    Firmware,
    /// An exception that is the guest's own, or an instruction that it may not use.
    Exception,
    /// The first use of floating-point registers since the vCPU was bound.
    FloatingPoint,
}

/// What a vCPU is to forget on behalf of its guest, where the guest cannot make others forget by
/// instructions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFence {
    /// Fetched instructions (RISC-V `fence.i`).
    Instructions,
    /// Translations by the guest's own page tables (RISC-V `sfence.vma`).
    Translations,
}

/// A call to the firmware's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleCall {
    /// Prints bytes of guest memory.
    Write {
        /// Where they are.
        gpa: GuestPhysAddr,
        /// How many.
        len: u64,
    },
    /// Prints a byte.
    WriteByte(u8),
    /// Reads into guest memory what was typed, without waiting.
    Read {
        /// Where it goes.
        gpa: GuestPhysAddr,
        /// How much there is room for.
        len: u64,
    },
    /// Reads one byte, without waiting.
    ReadByte,
}

/// Whom an inter-processor interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiTargets {
    /// These vCPUs.
    Set(super::CpuMask),
    /// The vCPUs whose guest name is `base + n` for a bit `n` set in `mask` (SBI's hart mask).
    Named {
        /// The name of bit 0.
        base: u64,
        /// The bits.
        mask: u64,
    },
    /// Every vCPU, the sender excepted.
    AllButSelf,
    /// Every vCPU.
    All,
    /// The sender.
    Itself,
}

/// The VM's answer to a [`VcpuExit`]; the backend finishes the instruction with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The load is done; this was read, of which bits above the width do not count. The backend writes the register back by
    /// [`LoadTarget::merge`] and skips the instruction.
    Read(u64),
    /// The store is done: skip the instruction.
    Written,
    /// Execute the instruction again: the page is mapped now.
    Retry,
    /// The access fails; the guest gets an exception.
    Fault(GuestFault),
    /// A hypercall returns this.
    Return(u64),
    /// The outcome of [`VcpuExit::CpuUp`], to be told in the firmware interface's own codes.
    CpuUp(Result<(), CpuUpError>),
    /// What [`VcpuExit::CpuStatus`] asked for; none when no vCPU has that name.
    CpuStatus(Option<CpuPower>),
    /// One of the vCPUs that the guest named does not exist; none of them got anything.
    NoSuchCpu,
    /// The number of bytes that [`VcpuExit::Console`] wrote or read, for `ReadByte` the byte; none
    /// when the memory is not there, or there is no byte.
    Console(Option<u64>),
}

/// Whether a vCPU is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuPower {
    /// It is.
    On,
    /// It is not.
    Off,
    /// It was started and has not run yet.
    OnPending,
    /// It waits for an interrupt, by a call of the firmware's.
    Suspended,
}

/// The kinds of exception that the VM may ask for; the backend knows the architecture's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFault {
    /// The access reached nothing, or may not be made: external abort, access fault, #GP.
    Bus,
    /// The instruction is undefined here: UNDEF, illegal instruction, #UD; for an x86 MSR #GP.
    Undefined,
}

/// Why a vCPU was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuUpError {
    /// No vCPU has that name.
    InvalidTarget,
    /// It is on.
    AlreadyOn,
    /// It was started and has not run yet.
    OnPending,
    /// It cannot begin there.
    InvalidAddress,
}

/// Why [`run_vcpu`](crate::vm::AxVM::run_vcpu) returned.
///
/// Of these a host sees `ExternalInterrupt`, `Halt`, `CpuUp`, `CpuDown`, `SystemDown`,
/// `SystemReset`, `FailEntry`, a `Hypercall` that nobody served, and accesses where it asked for
/// them in the configuration; every other kind the VM serves itself.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum AxVCpuExitReason {
    /// A hypercall that nobody in the VM served. Answer it with
    /// [`AxVM::complete`](crate::vm::AxVM::complete) before the next run.
    Hypercall {
        /// Its number.
        nr: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// A load from a range that the host asked for; to be completed with the value.
    MmioRead {
        /// The address.
        addr: GuestPhysAddr,
        /// The width of the access.
        width: AccessWidth,
        /// The register it loads.
        reg: usize,
        /// How much of the register is written.
        reg_width: AccessWidth,
        /// Whether the value is sign-extended.
        signed_ext: bool,
    },
    /// A store to a range that the host asked for; to be completed.
    MmioWrite {
        /// The address.
        addr: GuestPhysAddr,
        /// The width of the access.
        width: AccessWidth,
        /// The value.
        data: u64,
    },
    /// A read of a system register that the host asked for; to be completed with the value.
    SysRegRead {
        /// The register.
        addr: SysRegAddr,
        /// The general-purpose register it loads.
        reg: usize,
    },
    /// A write of a system register that the host asked for; to be completed.
    SysRegWrite {
        /// The register.
        addr: SysRegAddr,
        /// The value.
        value: u64,
    },
    /// A read of a port that the host asked for; to be completed with the value.
    IoRead {
        /// The port.
        port: Port,
        /// The width of the access.
        width: AccessWidth,
    },
    /// A write of a port that the host asked for; to be completed.
    IoWrite {
        /// The port.
        port: Port,
        /// The width of the access.
        width: AccessWidth,
        /// The value.
        data: u64,
    },
    /// A physical interrupt for the host.
    ExternalInterrupt {
        /// Its vector where the hardware acknowledged it, otherwise 0.
        vector: u64,
    },
    /// A fault that the VM could not classify. Not returned at present.
    NestedPageFault {
        /// The address.
        addr: GuestPhysAddr,
        /// What was attempted.
        access_flags: MappingFlags,
    },
    /// The guest started a vCPU: call `run_vcpu(target_cpu)` from now on.
    CpuUp {
        /// The vCPU's index.
        target_cpu: u64,
        /// Where it begins.
        entry_point: GuestPhysAddr,
        /// The argument it gets.
        arg: u64,
    },
    /// The vCPU switched itself off: do not run it until a `CpuUp` names it.
    CpuDown,
    /// An inter-processor interrupt. Not returned: the VM delivers it.
    SendIPI {
        /// The target.
        target_cpu: u64,
        /// More of the target's name.
        target_cpu_aux: u64,
        /// To every vCPU but the sender.
        send_to_all: bool,
        /// To the sender.
        send_to_self: bool,
        /// The vector.
        vector: u64,
    },
    /// Nothing is pending: run the vCPU again when it is kicked, or at
    /// [`next_deadline`](crate::vm::AxVM::next_deadline).
    Halt,
    /// The VM goes down: the guest powered it off, it was shut down, or another vCPU failed.
    SystemDown,
    /// The guest asked for a reset: when every vCPU is out, call
    /// [`reset`](crate::vm::AxVM::reset) and `boot`.
    SystemReset,
    /// The hardware refused to enter the guest.
    FailEntry {
        /// The hardware's code.
        hardware_entry_failure_reason: u64,
    },
    /// Nothing. Not returned: the VM goes on by itself.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn target(reg_width: AccessWidth, signed_ext: bool) -> LoadTarget {
        LoadTarget { reg: 0, reg_width, signed_ext }
    }

    #[test]
    fn a_load_extends_to_the_register_width_and_no_further() {
        use AccessWidth::*;
        let old = 0x1122_3344_5566_7788;
        for (width, reg_width, signed, raw, want) in [
            (Byte, Qword, false, 0xffu64, 0xff),
            (Byte, Qword, true, 0x80, 0xffff_ffff_ffff_ff80),
            (Byte, Dword, true, 0x80, 0xffff_ff80),
            (Word, Dword, true, 0x8000, 0xffff_8000),
            (Word, Qword, true, 0x7fff, 0x7fff),
            (Dword, Qword, true, 0x8000_0000, 0xffff_ffff_8000_0000),
            (Dword, Dword, false, 0xdead_beef_8000_0000, 0x8000_0000),
            (Qword, Qword, true, u64::MAX, u64::MAX),
            (Byte, Byte, false, 0xab, 0x1122_3344_5566_77ab),
            (Word, Word, false, 0xabcd, 0x1122_3344_5566_abcd),
            (Byte, Word, true, 0x80, 0x1122_3344_5566_ff80),
        ] {
            assert_eq!(target(reg_width, signed).merge(old, raw, width), want, "{width:?}");
        }
    }
}
