//! The hart itself: the instructions, and nothing else.

use core::{
    arch::{asm, naked_asm},
    mem::offset_of,
};

use super::{
    csr::{Csr, atp},
    hart::{Frame, Hart, Trap},
    hgatp,
    machine::Machine,
    state::FpState,
};
use crate::mm::{
    GpaRange, PAGE_SIZE_4K,
    tlb::{GuestTag, NestedTlb},
};

/// The hart that executes the call.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeHart;

static MACHINE: Machine = Machine::new();

/// One match arm for each register: the number is part of the instruction.
macro_rules! csr_access {
    ($csr:expr, $access:ident, $($operand:tt)*) => {
        match $csr {
            Csr::Sstatus => $access!("sstatus", $($operand)*),
            Csr::Scounteren => $access!("scounteren", $($operand)*),
            Csr::Senvcfg => $access!("senvcfg", $($operand)*),
            Csr::Hstatus => $access!("hstatus", $($operand)*),
            Csr::Hedeleg => $access!("hedeleg", $($operand)*),
            Csr::Hideleg => $access!("hideleg", $($operand)*),
            Csr::Hcounteren => $access!("hcounteren", $($operand)*),
            Csr::Henvcfg => $access!("henvcfg", $($operand)*),
            Csr::Htimedelta => $access!("htimedelta", $($operand)*),
            Csr::Hvip => $access!("hvip", $($operand)*),
            Csr::Hip => $access!("hip", $($operand)*),
            Csr::Hie => $access!("hie", $($operand)*),
            Csr::Hgatp => $access!("hgatp", $($operand)*),
            Csr::Vsstatus => $access!("vsstatus", $($operand)*),
            Csr::Vsie => $access!("vsie", $($operand)*),
            Csr::Vstvec => $access!("vstvec", $($operand)*),
            Csr::Vsscratch => $access!("vsscratch", $($operand)*),
            Csr::Vsepc => $access!("vsepc", $($operand)*),
            Csr::Vscause => $access!("vscause", $($operand)*),
            Csr::Vstval => $access!("vstval", $($operand)*),
            Csr::Vsatp => $access!("vsatp", $($operand)*),
            Csr::Vstimecmp => $access!("0x24d", $($operand)*),
            Csr::Time => $access!("time", $($operand)*),
        }
    };
}

macro_rules! read_csr {
    ($name:literal, $value:ident) => {
        // SAFETY: reading a supervisor register has no effect on memory or other registers.
        unsafe { asm!(concat!("csrr {0}, ", $name), out(reg) $value, options(nostack)) }
    };
}

macro_rules! change_csr {
    ($name:literal, $instruction:literal, $value:ident) => {
        // SAFETY: the backend owns these registers while virtualization is enabled, and writes
        // `sstatus` only in its FS field; they govern the guest, not the host's own code.
        unsafe { asm!(concat!($instruction, " ", $name, ", {0}"), in(reg) $value, options(nostack)) }
    };
}

impl Hart for NativeHart {
    type Tlb = NativeTlb;

    fn machine() -> &'static Machine {
        &MACHINE
    }

    fn has_hypervisor(&mut self) -> bool {
        // SAFETY: reads a register, with the trap that this may cause caught.
        unsafe { probe_hstatus() != 0 }
    }

    fn has_vstimecmp(&mut self) -> bool {
        // SAFETY: as above.
        unsafe { probe_vstimecmp() != 0 }
    }

    #[inline(always)]
    fn read(&mut self, csr: Csr) -> u64 {
        let value: u64;
        csr_access!(csr, read_csr, value);
        value
    }

    #[inline(always)]
    fn write(&mut self, csr: Csr, value: u64) {
        csr_access!(csr, change_csr, "csrw", value);
    }

    #[inline(always)]
    fn set(&mut self, csr: Csr, bits: u64) {
        csr_access!(csr, change_csr, "csrs", bits);
    }

    #[inline(always)]
    fn clear(&mut self, csr: Csr, bits: u64) {
        csr_access!(csr, change_csr, "csrc", bits);
    }

    #[inline(always)]
    fn enter(&mut self, frame: &mut Frame) {
        // SAFETY: the frame is ours alone while the guest runs, and the guest is confined to the
        // memory that its page table maps.
        unsafe { enter_guest(frame) }
    }

    fn fetch(&mut self, hstatus: u64, addr: u64) -> Option<u16> {
        // SAFETY: reads guest memory through the guest's tables, with traps caught.
        let value = unsafe { fetch_code(addr, hstatus) };
        u16::try_from(value).ok()
    }

    fn save_fp(&mut self, fp: &mut FpState) {
        // SAFETY: writes the struct, whose layout it knows.
        unsafe { save_fp(fp) }
    }

    fn load_fp(&mut self, fp: &FpState) {
        // SAFETY: reads the struct, whose layout it knows. The registers that it changes are the
        // guest's or are given back before the host uses them: see `Fp`.
        unsafe { load_fp(fp) }
    }

    fn fence_instructions(&mut self) {
        // SAFETY: a fence.
        unsafe { asm!("fence.i", options(nostack)) }
    }

    fn fence_translations(&mut self) {
        // HFENCE.VVMA x0, x0
        // SAFETY: invalidates entries of the guest only.
        unsafe { asm!(".insn r 0x73, 0, 0x11, x0, x0, x0", options(nostack)) }
    }
}

/// The TLB of this hart (§18.3.2). Other harts are reached by their own calls.
pub struct NativeTlb;

/// Ranges of more pages than this are flushed with all of the guest.
const MOST_PAGES: usize = 64;

impl NestedTlb for NativeTlb {
    const BROADCAST: bool = false;

    fn flush_range(tag: GuestTag, range: GpaRange) {
        if range.size() / PAGE_SIZE_4K > MOST_PAGES {
            hfence_gvma_vmid(tag.vmid);
            return;
        }
        let mut page = range.start().as_usize();
        while page < range.end().as_usize() {
            // HFENCE.GVMA: the address is shifted right by 2.
            // SAFETY: invalidates entries of a guest only.
            unsafe {
                asm!(".insn r 0x73, 0, 0x31, x0, {0}, {1}", in(reg) page >> 2, in(reg) tag.vmid,
                    options(nostack));
            }
            page += PAGE_SIZE_4K;
        }
    }

    fn flush_guest(tag: GuestTag) {
        hfence_gvma_vmid(tag.vmid);
        // HFENCE.VVMA is for the VMID in `hgatp`.
        let mode = MACHINE.features().map_or(0, |features| features.gstage_mode);
        let root = tag.root.as_usize() as u64 >> 12 & atp::PPN;
        let mut hart = NativeHart;
        let old = hart.read(Csr::Hgatp);
        hart.write(Csr::Hgatp, hgatp(mode, tag.vmid, root));
        hart.fence_translations();
        hart.write(Csr::Hgatp, old);
    }

    fn flush_all() {
        // HFENCE.GVMA x0, x0. What a new owner of a VMID may find of its predecessor's own tables
        // is flushed by `flush_guest`, before its first entry.
        // SAFETY: invalidates entries of guests only.
        unsafe { asm!(".insn r 0x73, 0, 0x31, x0, x0, x0", options(nostack)) }
    }
}

fn hfence_gvma_vmid(vmid: u16) {
    // SAFETY: invalidates entries of a guest only.
    unsafe { asm!(".insn r 0x73, 0, 0x31, x0, x0, {0}", in(reg) vmid, options(nostack)) }
}

/// Runs the guest until it traps into HS-mode.
///
/// # Safety
/// Interrupts are masked, and virtualization is enabled on this hart.
#[unsafe(naked)]
unsafe extern "C" fn enter_guest(frame: *mut Frame) {
    naked_asm!(
        // What the host wants back: on the stack, and what the ABI lets us keep in the frame.
        "addi sp, sp, -32",
        "sd ra, {host} + 0(a0)",
        "sd sp, {host} + 8(a0)",
        "sd gp, {host} + 16(a0)",
        "sd tp, {host} + 24(a0)",
        "sd s0, {host} + 32(a0)",
        "sd s1, {host} + 40(a0)",
        "sd s2, {host} + 48(a0)",
        "sd s3, {host} + 56(a0)",
        "sd s4, {host} + 64(a0)",
        "sd s5, {host} + 72(a0)",
        "sd s6, {host} + 80(a0)",
        "sd s7, {host} + 88(a0)",
        "sd s8, {host} + 96(a0)",
        "sd s9, {host} + 104(a0)",
        "sd s10, {host} + 112(a0)",
        "sd s11, {host} + 120(a0)",
        "lla t0, 1f",
        "csrrw t0, stvec, t0",
        "csrrw t1, sscratch, a0",
        "ld t2, {hstatus}(a0)",
        "csrrw t2, hstatus, t2",
        "ld t3, {sstatus}(a0)",
        "csrrw t3, sstatus, t3",
        "ld t4, {pc}(a0)",
        "csrw sepc, t4",
        "sd t0, 0(sp)",
        "sd t1, 8(sp)",
        "sd t2, 16(sp)",
        "sd t3, 24(sp)",
        // The guest's registers; x10, which points here, last.
        "ld x1, 8(a0)",
        "ld x2, 16(a0)",
        "ld x3, 24(a0)",
        "ld x4, 32(a0)",
        "ld x5, 40(a0)",
        "ld x6, 48(a0)",
        "ld x7, 56(a0)",
        "ld x8, 64(a0)",
        "ld x9, 72(a0)",
        "ld x11, 88(a0)",
        "ld x12, 96(a0)",
        "ld x13, 104(a0)",
        "ld x14, 112(a0)",
        "ld x15, 120(a0)",
        "ld x16, 128(a0)",
        "ld x17, 136(a0)",
        "ld x18, 144(a0)",
        "ld x19, 152(a0)",
        "ld x20, 160(a0)",
        "ld x21, 168(a0)",
        "ld x22, 176(a0)",
        "ld x23, 184(a0)",
        "ld x24, 192(a0)",
        "ld x25, 200(a0)",
        "ld x26, 208(a0)",
        "ld x27, 216(a0)",
        "ld x28, 224(a0)",
        "ld x29, 232(a0)",
        "ld x30, 240(a0)",
        "ld x31, 248(a0)",
        "ld x10, 80(a0)",
        "sret",
        // The trap vector while the guest runs.
        ".balign 4",
        "1:",
        "csrrw a0, sscratch, a0",
        "sd x1, 8(a0)",
        "sd x2, 16(a0)",
        "sd x3, 24(a0)",
        "sd x4, 32(a0)",
        "sd x5, 40(a0)",
        "sd x6, 48(a0)",
        "sd x7, 56(a0)",
        "sd x8, 64(a0)",
        "sd x9, 72(a0)",
        "sd x11, 88(a0)",
        "sd x12, 96(a0)",
        "sd x13, 104(a0)",
        "sd x14, 112(a0)",
        "sd x15, 120(a0)",
        "sd x16, 128(a0)",
        "sd x17, 136(a0)",
        "sd x18, 144(a0)",
        "sd x19, 152(a0)",
        "sd x20, 160(a0)",
        "sd x21, 168(a0)",
        "sd x22, 176(a0)",
        "sd x23, 184(a0)",
        "sd x24, 192(a0)",
        "sd x25, 200(a0)",
        "sd x26, 208(a0)",
        "sd x27, 216(a0)",
        "sd x28, 224(a0)",
        "sd x29, 232(a0)",
        "sd x30, 240(a0)",
        "sd x31, 248(a0)",
        // The host's.
        "ld sp, {host} + 8(a0)",
        "ld t0, 0(sp)",
        "ld t1, 8(sp)",
        "ld t2, 16(sp)",
        "ld t3, 24(sp)",
        "csrw stvec, t0",
        "csrrw t1, sscratch, t1",
        "sd t1, 80(a0)",
        "csrrw t2, hstatus, t2",
        "sd t2, {hstatus}(a0)",
        "csrrw t3, sstatus, t3",
        "sd t3, {sstatus}(a0)",
        "csrr t4, sepc",
        "sd t4, {pc}(a0)",
        "csrr t0, scause",
        "sd t0, {cause}(a0)",
        // Of an interrupt, the top bit, that is all.
        "bltz t0, 2f",
        "csrr t1, stval",
        "sd t1, {value}(a0)",
        "csrr t2, htval",
        "sd t2, {gpa}(a0)",
        "csrr t3, htinst",
        "sd t3, {insn}(a0)",
        "2:",
        "ld ra, {host} + 0(a0)",
        "ld gp, {host} + 16(a0)",
        "ld tp, {host} + 24(a0)",
        "ld s0, {host} + 32(a0)",
        "ld s1, {host} + 40(a0)",
        "ld s2, {host} + 48(a0)",
        "ld s3, {host} + 56(a0)",
        "ld s4, {host} + 64(a0)",
        "ld s5, {host} + 72(a0)",
        "ld s6, {host} + 80(a0)",
        "ld s7, {host} + 88(a0)",
        "ld s8, {host} + 96(a0)",
        "ld s9, {host} + 104(a0)",
        "ld s10, {host} + 112(a0)",
        "ld s11, {host} + 120(a0)",
        "addi sp, sp, 32",
        "ret",
        host = const offset_of!(Frame, host),
        pc = const offset_of!(Frame, pc),
        sstatus = const offset_of!(Frame, sstatus),
        hstatus = const offset_of!(Frame, hstatus),
        cause = const offset_of!(Frame, trap) + offset_of!(Trap, cause),
        value = const offset_of!(Frame, trap) + offset_of!(Trap, value),
        gpa = const offset_of!(Frame, trap) + offset_of!(Trap, gpa),
        insn = const offset_of!(Frame, trap) + offset_of!(Trap, insn),
    )
}

/// HLVX.HU at `addr`; more than 16 bits when it traps.
///
/// # Safety
/// Interrupts are masked.
#[unsafe(naked)]
unsafe extern "C" fn fetch_code(addr: u64, hstatus: u64) -> u64 {
    naked_asm!(
        "csrr t1, sstatus",
        "csrrw a1, hstatus, a1",
        "lla t0, 1f",
        "csrrw t0, stvec, t0",
        "li a2, -1",
        ".insn r 0x73, 4, 0x32, a2, a0, x3",
        // Here too after a trap, with a2 as it was.
        ".balign 4",
        "1:",
        "csrw stvec, t0",
        "csrw hstatus, a1",
        "csrw sstatus, t1",
        "mv a0, a2",
        "ret",
    )
}

/// A function that returns 1 when a register can be read, otherwise 0.
macro_rules! probe_csr {
    ($name:ident, $csr:literal) => {
        /// # Safety
        /// None.
        #[unsafe(naked)]
        unsafe extern "C" fn $name() -> u64 {
            naked_asm!(
                // No interrupt may come while the vector is ours.
                "csrrci t1, sstatus, 2",
                "lla t0, 1f",
                "csrrw t0, stvec, t0",
                "li a0, 0",
                concat!("csrr t2, ", $csr),
                "li a0, 1",
                ".balign 4",
                "1:",
                "csrw stvec, t0",
                "csrw sstatus, t1",
                "ret",
            )
        }
    };
}

probe_csr!(probe_hstatus, "hstatus");
probe_csr!(probe_vstimecmp, "0x24d");

macro_rules! fp_registers {
    ($instruction:literal) => {
        concat!(
            fp_registers!(@ $instruction 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
            fp_registers!(@ $instruction 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
        )
    };
    (@ $instruction:literal $($n:literal)*) => {
        concat!($($instruction, " f", $n, ", ", $n, " * 8(a0)\n",)*)
    };
}

/// # Safety
/// `sstatus.FS` is not Off.
#[unsafe(naked)]
unsafe extern "C" fn save_fp(fp: *mut FpState) {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        fp_registers!("fsd"),
        "frcsr t0",
        "sd t0, 256(a0)",
        ".option pop",
        "ret",
    )
}

/// # Safety
/// `sstatus.FS` is not Off.
#[unsafe(naked)]
unsafe extern "C" fn load_fp(fp: *const FpState) {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        fp_registers!("fld"),
        "ld t0, 256(a0)",
        "fscsr t0",
        ".option pop",
        "ret",
    )
}
