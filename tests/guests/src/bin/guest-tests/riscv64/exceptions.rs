//! Exceptions of the guest's own doing arrive as on the bare machine, and what a guest does not
//! have is an illegal instruction.

use axvm_guests::{
    arch::{
        csr,
        insn::{EBREAK, ECALL, LOAD, STORE, WFI, amo, attempt, csrr, csrw, load, run, store},
        memory::{AD, FREE, R, RWX, Table, U, V, W, X, entry, fence_translations, poke},
        time,
        trap::{Frame, cause},
    },
    ensure, ensure_eq,
    report::{Outcome, Test},
    tests,
};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    a_breakpoint_arrives,
    a_call_from_user_mode_arrives,
    an_illegal_instruction_arrives,
    page_faults_arrive_with_their_address,
    user_mode_has_its_own_pages,
    registers_of_other_modes_are_illegal,
    instructions_of_other_modes_are_illegal,
    counters_are_illegal_and_time_ticks,
    vectors_are_illegal,
    user_mode_reads_time_when_it_may,
    waiting_in_user_mode_is_illegal,
];

static ROOT: Table = Table::new();
static MIDDLE: Table = Table::new();
static LEAVES: Table = Table::new();

/// Executes one instruction and has it raise this, at itself, with one of these in stval.
fn raises(insn: u32, cause: u64, values: &[u64]) -> Result<Frame, axvm_guests::report::Failure> {
    let (frame, end) = attempt(&[insn], |_| {});
    check(&frame, insn, end, cause, values)?;
    Ok(frame)
}

fn check(frame: &Frame, insn: u32, end: u64, cause: u64, values: &[u64]) -> Outcome {
    ensure_eq!(frame.cause, cause, "{insn:#x}: the exception");
    let len = if insn & 3 == 3 { 4 } else { 2 };
    ensure_eq!(frame.pc, end - len, "{insn:#x}: sepc");
    ensure!(values.contains(&frame.value), "{insn:#x}: stval is {:#x}", frame.value);
    let patterns = Frame::new(0).x;
    for reg in 1..32 {
        ensure_eq!(frame.x[reg], patterns[reg], "{insn:#x}: x{reg}");
    }
    Ok(())
}

/// It is illegal, and tells itself or nothing.
fn illegal(insn: u32) -> Outcome {
    let frame = raises(insn, cause::ILLEGAL, &[0, insn.into()])?;
    ensure!(frame.status & csr::SPP != 0, "{insn:#x}: SPP is not set");
    ensure!(frame.status & (csr::SIE | csr::SPIE) == 0, "{insn:#x}: sstatus {:#x}", frame.status);
    Ok(())
}

fn a_breakpoint_arrives() -> Outcome {
    for insn in [EBREAK, 0x9002] {
        let (frame, end) = attempt(&[insn], |_| {});
        let len = if insn == EBREAK { 4 } else { 2 };
        check(&frame, insn, end, cause::BREAKPOINT, &[0, end - len])?;
    }
    Ok(())
}

fn a_call_from_user_mode_arrives() -> Outcome {
    let (frame, end) = attempt(&[ECALL], |frame| frame.status = csr::SPIE);
    check(&frame, ECALL, end, cause::CALL_U, &[0])?;
    ensure!(frame.status & csr::SPP == 0, "SPP is set");
    ensure!(frame.status & csr::SPIE != 0, "SPIE is not set, though U-mode has interrupts");
    Ok(())
}

fn an_illegal_instruction_arrives() -> Outcome {
    // Of 16 bits all clear, of 32 bits all set, a reserved load, an unknown opcode.
    for insn in [0, u32::MAX, 0x7003, 0x7b] {
        illegal(insn)?;
    }
    // The same in U-mode.
    let (frame, end) = attempt(&[u32::MAX], |frame| frame.status = 0);
    check(&frame, u32::MAX, end, cause::ILLEGAL, &[0, u32::MAX.into()])?;
    ensure!(frame.status & csr::SPP == 0, "SPP is set");
    Ok(())
}

/// The page that this table gives to a virtual address: none at 0, then one that can be read, one
/// that can be written too, one that can be executed only, and one of U-mode.
const BASE: u64 = 0xc000_0000;

fn pages() {
    ROOT.identity();
    ROOT.set(3, entry(MIDDLE.address(), V));
    MIDDLE.set(0, entry(LEAVES.address(), V));
    let bits = [0, V | R | AD, V | R | W | AD, V | X | AD, RWX | U];
    for (index, bits) in bits.into_iter().enumerate() {
        LEAVES.set(index, entry(FREE + 0x1000 * index as u64, bits));
    }
    ROOT.activate();
}

fn page_faults_arrive_with_their_address() -> Outcome {
    pages();
    let load = load(LOAD, 3, 10, 9, 0);
    let store = store(STORE, 1, 10, 9, 0);
    let swap = amo(1, 3, 11, 9, 10);
    for (insn, address, cause) in [
        (load, BASE + 8, cause::LOAD_PAGE),
        (store, BASE + 6, cause::STORE_PAGE),
        (swap, BASE + 16, cause::STORE_PAGE),
        (store, BASE + 0x1ffe, cause::STORE_PAGE),
        (swap, BASE + 0x1ff8, cause::STORE_PAGE),
        (load, BASE + 0x3ff8, cause::LOAD_PAGE),
        // Other tables of the root, and what no table reaches.
        (load, 0x20_0000_0000, cause::LOAD_PAGE),
        (load, 0x80_0000_0000, cause::LOAD_PAGE),
        (store, 0xffff_ffbf_ffff_fff8, cause::STORE_PAGE),
        (store, 0xffff_ffff_ffff_fff8, cause::STORE_PAGE),
    ] {
        let (mut frame, end) = attempt(&[insn], |frame| frame.x[9] = address);
        // QEMU 7.2 with one CPU makes a load and a store of an atomic, and the load is first.
        if insn == swap && address == BASE + 16 && frame.cause == cause::LOAD_PAGE {
            frame.cause = cause::STORE_PAGE;
        }
        ensure_eq!(frame.cause, cause, "{insn:#x} at {address:#x}: the exception");
        ensure_eq!(frame.value, address, "{insn:#x} at {address:#x}: stval");
        ensure_eq!(frame.pc, end - 4, "{insn:#x} at {address:#x}: sepc");
    }
    for address in [BASE, BASE + 0x1002, BASE + 0x2ffe, 0x80_0000_0000] {
        let mut frame = Frame::new(address);
        frame.execute();
        ensure_eq!(frame.cause, cause::FETCH_PAGE, "code at {address:#x}: the exception");
        ensure_eq!(frame.value, address, "code at {address:#x}: stval");
        ensure_eq!(frame.pc, address, "code at {address:#x}: sepc");
    }
    // What is allowed is.
    run(&[load, store], |frame| frame.x[9] = BASE + 0x2000)?;
    Ok(())
}

fn user_mode_has_its_own_pages() -> Outcome {
    let code = FREE + 0x4000;
    // load, store, ebreak
    for (at, insn) in
        [load(LOAD, 3, 10, 9, 0), store(STORE, 3, 10, 9, 0), EBREAK].into_iter().enumerate()
    {
        poke(code + 4 * at as u64, insn);
    }
    pages();
    axvm_guests::arch::memory::fence_instructions();
    let user = |address| {
        let mut frame = Frame::user(BASE + 0x4000);
        frame.x[9] = address;
        frame.execute();
        frame
    };
    let frame = user(BASE + 0x4800);
    ensure_eq!(frame.cause, cause::BREAKPOINT, "its own page: the exception");
    for address in [BASE + 0x2000, FREE, 0] {
        let frame = user(address);
        ensure_eq!(frame.cause, cause::LOAD_PAGE, "{address:#x}: the exception");
        ensure_eq!(frame.value, address, "{address:#x}: stval");
        ensure!(frame.status & csr::SPP == 0, "SPP is set");
    }
    // S-mode reads it with SUM only, and never executes it.
    let load = load(LOAD, 3, 10, 9, 0);
    for (sum, cause) in [(0, cause::LOAD_PAGE), (csr::SUM, cause::BREAKPOINT)] {
        let (frame, _) = attempt(&[load], |frame| {
            frame.status |= sum;
            frame.x[9] = BASE + 0x4800;
        });
        ensure_eq!(frame.cause, cause, "S-mode with SUM {sum:#x}: the exception");
    }
    let mut frame = Frame::new(BASE + 0x4000);
    frame.status |= csr::SUM;
    frame.execute();
    ensure_eq!(frame.cause, cause::FETCH_PAGE, "S-mode executes it: the exception");
    fence_translations();
    Ok(())
}

fn registers_of_other_modes_are_illegal() -> Outcome {
    // mstatus, medeleg, mscratch, mhartid, and numbers that nobody has.
    for csr in [0x300, 0x302, 0x340, 0xf14, 0x5ff, 0xfff] {
        illegal(csrr(10, csr))?;
        illegal(csrw(csr, 10))?;
    }
    axvm_only()?;
    // hstatus, hedeleg, hideleg, hie, hcounteren, hgeie, htval, hip, hvip, htinst, hgeip, henvcfg,
    // hgatp, htimedelta; vsstatus, vsie, vstvec, vsscratch, vsepc, vscause, vstval, vsip,
    // vstimecmp, vsatp
    for csr in [
        0x600, 0x602, 0x603, 0x604, 0x606, 0x607, 0x643, 0x644, 0x645, 0x64a, 0xe12, 0x60a, 0x680,
        0x605, 0x200, 0x204, 0x205, 0x240, 0x241, 0x242, 0x243, 0x244, 0x24d, 0x280,
    ] {
        illegal(csrr(10, csr))?;
        illegal(csrw(csr, 10))?;
    }
    // From U-mode: sstatus, satp, sie.
    for csr in [0x100, 0x180, 0x104] {
        let (frame, end) = attempt(&[csrr(10, csr)], |frame| frame.status = 0);
        let insn = csrr(10, csr);
        check(&frame, insn, end, cause::ILLEGAL, &[0, insn.into()])?;
    }
    Ok(())
}

fn instructions_of_other_modes_are_illegal() -> Outcome {
    // MRET
    illegal(0x3020_0073)?;
    // SRET and SFENCE.VMA in U-mode
    for insn in [0x1020_0073, 0x1200_0073] {
        let (frame, end) = attempt(&[insn], |frame| frame.status = 0);
        check(&frame, insn, end, cause::ILLEGAL, &[0, insn.into()])?;
    }
    axvm_only()?;
    // HFENCE.VVMA, HFENCE.GVMA
    for insn in [0x2200_0073, 0x6200_0073] {
        illegal(insn)?;
    }
    // HLV.W x10, (x9), HLVX.HU x10, (x9), HSV.W x10, (x9); of these QEMU 7.2 tells the host, and
    // that the guest, an earlier instruction in stval.
    for insn in [0x6804_c573, 0x6434_c573, 0x6aa4_c073] {
        let (frame, end) = attempt(&[insn], |_| {});
        check(&frame, insn, end, cause::ILLEGAL, &[frame.value])?;
    }
    Ok(())
}

fn counters_are_illegal_and_time_ticks() -> Outcome {
    let frame = run(&[csrr(10, 0xc01), csrr(11, 0xc01)], |_| {})?;
    ensure!(frame.x[10] <= frame.x[11], "time went back");
    let before = time::now();
    ensure!(time::wait(|| time::now() != before), "time does not tick");
    axvm_only()?;
    // cycle, instret, hpmcounter3, hpmcounter31
    for csr in [0xc00, 0xc02, 0xc03, 0xc1f] {
        illegal(csrr(10, csr))?;
    }
    Ok(())
}

fn vectors_are_illegal() -> Outcome {
    axvm_only()?;
    // vsetvli x10, x11, e8, m1; vle8.v v0, (x9); vstart, vcsr, vl, vtype
    for insn in [0x0005_f557, 0x0204_8007] {
        illegal(insn)?;
        // Whatever the guest writes to sstatus.VS.
        let (frame, end) = attempt(&[insn], |frame| frame.status |= 3 << 9);
        check(&frame, insn, end, cause::ILLEGAL, &[0, insn.into()])?;
    }
    for csr in [0x008, 0x00f, 0xc20, 0xc21] {
        illegal(csrr(10, csr))?;
    }
    Ok(())
}

fn user_mode_reads_time_when_it_may() -> Outcome {
    // Other firmware may emulate it.
    axvm_only()?;
    let insn = csrr(10, 0xc01);
    let old = csr::read!("scounteren");
    let user = |frame: &mut Frame| frame.status = 0;
    csr::write!("scounteren", 0u64);
    let (frame, end) = attempt(&[insn], user);
    csr::write!("scounteren", 2u64);
    let allowed = run(&[insn], user);
    csr::write!("scounteren", old);
    check(&frame, insn, end, cause::ILLEGAL, &[0, insn.into()])?;
    ensure!(allowed?.x[10] <= time::now(), "it reads another time");
    Ok(())
}

fn waiting_in_user_mode_is_illegal() -> Outcome {
    axvm_only()?;
    let (frame, end) = attempt(&[WFI], |frame| frame.status = 0);
    check(&frame, WFI, end, cause::ILLEGAL, &[0, WFI.into()])
}
