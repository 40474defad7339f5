//! Loads and stores that a device answers.

use axvm::{
    arch::riscv64::Csr,
    vcpu::{AccessOp, AxArchVCpu, Completion, GuestFault, MemFault, VcpuExit},
};
use axvm_testkit::MockHart;

use crate::support::*;

const UART: u64 = 0x1000_0008;
const READ: u64 = 0x8877_6655_f4f3_f2f1;

/// Encodings of a load of `rd` by width and signedness, and what it leaves.
const LOADS: [(u64, u64); 7] = [
    (0x0003, 0xffff_ffff_ffff_fff1),
    (0x1003, 0xffff_ffff_ffff_f2f1),
    (0x2003, 0xffff_ffff_f4f3_f2f1),
    (0x3003, READ),
    (0x4003, 0xf1),
    (0x5003, 0xf2f1),
    (0x6003, 0xf4f3_f2f1),
];

/// Upstream: a load to xN wrote another register.
#[test]
fn a_load_writes_its_register_and_no_other_and_is_skipped() {
    for (insn, want) in LOADS {
        for rd in 0..32usize {
            for compressed in [false, true] {
                let mut vcpu = bound::<Sstc>();
                let insn = insn | (rd as u64) << 7;
                let insn = if compressed { insn & !2 } else { insn };
                run(&mut vcpu, move |guest| {
                    (1..32).for_each(|reg| guest.set_reg(reg, 0x5a5a_0000 + reg as u64));
                    guest_page_fault(21, UART, insn)
                });
                complete(&mut vcpu, Completion::Read(READ));
                let frame = look(&mut vcpu);
                for reg in 0..32 {
                    let untouched = if reg == 0 { 0 } else { 0x5a5a_0000 + reg as u64 };
                    let want = if reg == rd && rd != 0 { want } else { untouched };
                    assert_eq!(frame.gprs[reg], want, "x{reg} after {insn:#x}");
                }
                let len = if compressed { 2 } else { 4 };
                assert_eq!(frame.pc, ENTRY + len, "{insn:#x}");
                vcpu.unbind().unwrap();
            }
        }
    }
}

#[test]
fn a_store_gives_rs2_and_changes_no_register() {
    for rs2 in 0..32usize {
        for compressed in [false, true] {
            let mut vcpu = bound::<Sstc>();
            let insn = 0x3023 | (rs2 as u64) << 20;
            let insn = if compressed { insn & !2 } else { insn };
            let exit = run(&mut vcpu, move |guest| {
                (1..32).for_each(|reg| guest.set_reg(reg, !(reg as u64)));
                guest_page_fault(23, UART, insn)
            });
            let before = vcpu.state().gprs;
            let VcpuExit::MemFault(MemFault { insn: Some(access), .. }) = exit else {
                panic!("{exit:?}")
            };
            let want = if rs2 == 0 { 0 } else { !(rs2 as u64) };
            assert_eq!(access.op, AccessOp::Write(want), "x{rs2}");
            complete(&mut vcpu, Completion::Written);
            let frame = look(&mut vcpu);
            assert_eq!(frame.gprs, before);
            assert_eq!(frame.pc, ENTRY + if compressed { 2 } else { 4 });
            vcpu.unbind().unwrap();
        }
    }
}

#[test]
fn an_access_that_is_tried_again_changes_nothing() {
    let mut vcpu = bound::<Sstc>();
    run(&mut vcpu, |_| guest_page_fault(21, UART, 0x2503));
    let before = vcpu.state();
    complete(&mut vcpu, Completion::Retry);
    assert_eq!(vcpu.state(), before);
}

/// The exceptions are the access faults, 1, 5 and 7, at the address that the guest used; also
/// where the fault was met on the guest's own page walk, whichever access that one was.
#[test]
fn a_refused_access_is_the_access_fault_of_what_the_guest_did() {
    for (cause, insn, want) in [
        (20, 0, 1),
        (20, 0x3000, 1),
        (21, 0x2503, 5),
        (21, 0x3000, 5),
        // lr.w and an FP load are loads; the other atomics are stores (§12.1.8).
        (21, 0x1000_252f, 5),
        (21, 0x2507, 5),
        (23, 0x00c0_2023, 7),
        (23, 0x3000, 7),
        (23, 0x3020, 7),
        (23, 0x00c0_252f, 7),
        (23, 0x18c0_252f, 7),
        (23, 0x2027, 7),
    ] {
        let mut vcpu = bound::<Sstc>();
        let trap = guest_page_fault(cause, UART + 3, insn);
        run(&mut vcpu, move |_| trap);
        complete(&mut vcpu, Completion::Fault(GuestFault::Bus));
        let got = [Csr::Vscause, Csr::Vstval, Csr::Vsepc].map(get::<Sstc>);
        assert_eq!(got, [want, trap.value, ENTRY], "cause {cause}, htinst {insn:#x}");
        assert_eq!(look(&mut vcpu).pc, STVEC);
        vcpu.unbind().unwrap();
    }
}

/// stval of an illegal instruction is the instruction or 0 (§12.1.9), not a data address.
#[test]
fn an_access_that_is_undefined_is_an_illegal_instruction() {
    let mut vcpu = bound::<Sstc>();
    run(&mut vcpu, |_| guest_page_fault(21, UART, 0x2503));
    complete(&mut vcpu, Completion::Fault(GuestFault::Undefined));
    assert_eq!([Csr::Vscause, Csr::Vstval, Csr::Vsepc].map(get::<Sstc>), [2, 0, ENTRY]);
    assert_eq!(look(&mut vcpu).pc, STVEC);
}

#[test]
fn decoding_again_gives_what_the_exit_gave() {
    let mut vcpu = bound::<Sstc>();
    assert_eq!(vcpu.decode(), None);
    let VcpuExit::MemFault(fault) = run(&mut vcpu, |_| guest_page_fault(21, UART, 0x2503)) else {
        panic!("no fault")
    };
    assert!(fault.insn.is_some());
    assert_eq!(vcpu.decode(), fault.insn);
    run(&mut vcpu, |_| guest_page_fault(23, UART, 0x00c0_252f));
    assert_eq!(vcpu.decode(), None, "an atomic");
    assert_eq!(Sstc::with(|cpu| cpu.fetches.len()), 0, "htinst said it all");
}
