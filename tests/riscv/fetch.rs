//! Where `htinst` is 0 the instruction is read with the guest's rights.

use axvm::{
    arch::riscv64::Csr,
    vcpu::{AccessOp, AxArchVCpu, Completion, DecodedAccess, MemFault, VcpuExit},
};
use axvm_testkit::MockHart;

use crate::support::*;

const UART: u64 = 0x1000_0000;
const SPVP: u64 = 1 << 8;

/// A fault without an instruction, of code that stands at `pc`.
#[track_caller]
fn fault_at(vcpu: &mut Vcpu<Sstc>, pc: u64, user: bool, cause: u64) -> VcpuExit {
    run(vcpu, move |guest| {
        guest.frame.pc = pc;
        guest.set_user(user);
        guest_page_fault(cause, UART, 0)
    })
}

fn insn(exit: VcpuExit) -> Option<DecodedAccess> {
    match exit {
        VcpuExit::MemFault(MemFault { insn, .. }) => insn,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sixteen_bits_are_read_of_a_compressed_instruction_and_twice_of_a_long_one() {
    let mut vcpu = bound::<Sstc>();
    Sstc::with(|cpu| {
        cpu.put_code(ENTRY, &[0x4188]); // c.lw a0, 0(a1)
        cpu.put_code(ENTRY + 2, &[0xa503, 0x0005]); // lw a0, 0(a1)
    });
    for (pc, halves, len) in [(ENTRY, vec![ENTRY], 2), (ENTRY + 2, vec![ENTRY + 2, ENTRY + 4], 4)] {
        let access = insn(fault_at(&mut vcpu, pc, false, 21)).unwrap();
        assert!(matches!(access.op, AccessOp::Read(target) if target.reg == 10));
        let fetched = Sstc::with(|cpu| std::mem::take(&mut cpu.fetches));
        assert_eq!(fetched.iter().map(|fetch| fetch.1).collect::<Vec<_>>(), halves);
        complete(&mut vcpu, Completion::Read(7));
        let frame = look(&mut vcpu);
        assert_eq!((frame.pc, frame.gprs[10]), (pc + len, 7));
    }
}

#[test]
fn the_code_is_read_with_the_privilege_that_the_guest_has() {
    for user in [false, true] {
        let mut vcpu = bound::<Sstc>();
        Sstc::with(|cpu| {
            cpu.fetches.clear();
            cpu.put_code(ENTRY, &[0xa503, 0x0005]);
        });
        fault_at(&mut vcpu, ENTRY, user, 21);
        for (hstatus, _) in Sstc::with(|cpu| cpu.fetches.clone()) {
            assert_eq!(hstatus & SPVP == 0, user);
        }
        vcpu.unbind().unwrap();
    }
}

#[test]
fn code_that_is_gone_is_executed_again() {
    let (page_end, mut vcpu) = (ENTRY + 0xffe, bound::<Sstc>());
    // Neither half; the second one, in the next page, not.
    for halves in [&[][..], &[0xa503]] {
        Sstc::with(|cpu| {
            cpu.code.clear();
            cpu.put_code(page_end, halves);
        });
        let exit = fault_at(&mut vcpu, page_end, false, 21);
        assert_eq!(exit, VcpuExit::Nothing, "{halves:x?}");
        assert_eq!(vcpu.complete(Completion::Read(1)), Err(axerrno::AxErrorKind::BadState.into()));
        assert_eq!(look(&mut vcpu).pc, page_end);
    }
}

#[test]
fn what_cannot_be_emulated_is_not_decoded_from_memory_either() {
    for halves in [
        [0xa52f, 0x00c5], // amoadd.w a0, a2, (a1)
        [0xa52f, 0x1005], // lr.w a0, (a1)
        [0xa027, 0x00a5], // fsw fa0, 0(a1)
        [0xa507, 0x0005], // flw fa0, 0(a1)
        [0x2188, 0x0000], // c.fld fa0, 0(a1)
        [0x0507, 0x0205], // vle8.v v10, (a0)
    ] {
        let mut vcpu = bound::<Sstc>();
        Sstc::with(|cpu| cpu.put_code(ENTRY, &halves));
        assert_eq!(insn(fault_at(&mut vcpu, ENTRY, false, 23)), None, "{halves:x?}");
        vcpu.unbind().unwrap();
    }
}

/// stval is where the second page begins, and the access began before it: what is read there would
/// be the wrong bytes.
#[test]
fn an_access_that_came_from_the_page_before_is_not_decoded() {
    // Each with its base register, and the distance that its offset adds.
    for (halves, base, offset) in [
        (&[0xb503u16, 0x0005][..], 11, 0i64), // ld a0, 0(a1)
        (&[0xb503, 0xffc5], 11, -4),          // ld a0, -4(a1)
        (&[0xb023, 0x00a5], 11, 0),           // sd a0, 0(a1)
        (&[0xb223, 0x00a5], 11, 4),           // sd a0, 4(a1)
        (&[0x4188], 11, 0),                   // c.lw a0, 0(a1)
        (&[0x41c8], 11, 4),                   // c.lw a0, 4(a1)
        (&[0x6588], 11, 8),                   // c.ld a0, 8(a1)
        (&[0xc1c8], 11, 4),                   // c.sw a0, 4(a1)
        (&[0xe588], 11, 8),                   // c.sd a0, 8(a1)
        (&[0x4512], 2, 4),                    // c.lwsp a0, 4(sp)
        (&[0x6522], 2, 8),                    // c.ldsp a0, 8(sp)
        (&[0xc22a], 2, 4),                    // c.swsp a0, 4(sp)
        (&[0xe42a], 2, 8),                    // c.sdsp a0, 8(sp)
        (&[0x85a8], 11, 2),                   // c.lhu a0, 2(a1)
        (&[0x85e8], 11, 2),                   // c.lh a0, 2(a1)
        (&[0x8da8], 11, 2),                   // c.sh a0, 2(a1)
    ] {
        for before in [0u64, 1] {
            let mut vcpu = bound::<Sstc>();
            Sstc::with(|cpu| cpu.put_code(ENTRY, halves));
            let page = 0xffff_ffd0_0000_0000u64;
            let exit = run(&mut vcpu, move |guest| {
                guest.set_reg(base, page.wrapping_sub(before).wrapping_sub_signed(offset));
                guest_page_fault(21, UART, 0)
            });
            let decoded = insn(exit).is_some();
            assert_eq!(decoded, before == 0, "{halves:x?}, {before} bytes before the page");
            vcpu.unbind().unwrap();
        }
    }
    // Bytes cannot straddle: c.lbu a0, 1(a1) and c.sb a0, 3(a1), with a base below the page.
    for (halves, below) in [([0x81c8], 1), ([0x89e8], 3)] {
        let mut vcpu = bound::<Sstc>();
        Sstc::with(|cpu| cpu.put_code(ENTRY, &halves));
        let exit = run(&mut vcpu, move |guest| {
            guest.set_reg(11, 0xffff_ffd0_0000_0000 - below);
            guest_page_fault(21, UART, 0)
        });
        assert!(insn(exit).is_some(), "{halves:x?}");
        vcpu.unbind().unwrap();
    }
}

#[test]
fn a_virtual_instruction_without_its_bits_is_read_too() {
    let mut vcpu = bound::<Sstc>();
    Sstc::with(|cpu| cpu.put_code(ENTRY, &[0x0073, 0x1050]));
    assert_eq!(run(&mut vcpu, |_| exception(22, 0)), VcpuExit::Halt);
    assert_eq!(look(&mut vcpu).pc, ENTRY + 4);
    // It is gone.
    assert_eq!(run(&mut vcpu, |_| exception(22, 0)), VcpuExit::Nothing);
    assert_eq!(look(&mut vcpu).pc, ENTRY + 4);
    // sfence.vma
    Sstc::with(|cpu| cpu.put_code(ENTRY + 4, &[0x0073, 0x1200]));
    run(&mut vcpu, |_| exception(22, 0));
    assert_eq!([Csr::Vscause, Csr::Vstval].map(get::<Sstc>), [2, 0x1200_0073]);
}
