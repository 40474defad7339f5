//! What each cause becomes (Privileged 1.13 §12.1.8, §18.6.1).

use axvm::{
    arch::riscv64::Trap,
    mm::GuestPhysAddr,
    vcpu::{
        Access, AccessOp, AccessWidth, AxArchVCpu, DecodedAccess, LoadTarget, MemFault, Service,
        VcpuExit,
    },
};

use crate::support::*;

const GPA: u64 = 0x1000_0005;

fn fault(access: Access, walk: bool, insn: Option<DecodedAccess>) -> VcpuExit {
    let gpa = if walk { GPA & !3 } else { GPA };
    let gpa = GuestPhysAddr::from_usize(gpa as usize);
    VcpuExit::MemFault(MemFault { gpa, access, walk, insn })
}

fn load(width: AccessWidth, reg: u8, signed_ext: bool) -> Option<DecodedAccess> {
    let target = LoadTarget { reg, reg_width: AccessWidth::Qword, signed_ext };
    Some(DecodedAccess { width, op: AccessOp::Read(target) })
}

fn store(width: AccessWidth, value: u64) -> Option<DecodedAccess> {
    Some(DecodedAccess { width, op: AccessOp::Write(value) })
}

#[test]
fn every_cause_becomes_its_exit() {
    use AccessWidth::*;
    let page = |cause, insn| guest_page_fault(cause, GPA, insn);
    let served = VcpuExit::Served(Service::Exception);
    let mut rows: Vec<(Trap, VcpuExit)> = vec![
        // Loads: lb, lhu, lw, ld a0 as transformed by the hart; compressed: bit 1 clear.
        (page(21, 0x0503), fault(Access::Read, false, load(Byte, 10, true))),
        (page(21, 0x5503), fault(Access::Read, false, load(Word, 10, false))),
        (page(21, 0x2503), fault(Access::Read, false, load(Dword, 10, true))),
        (page(21, 0x3501), fault(Access::Read, false, load(Qword, 10, true))),
        // Stores of a2: sb, sh, sw, sd.
        (page(23, 0x00c0_0023), fault(Access::Write, false, store(Byte, 0x1122_3344))),
        (page(23, 0x00c0_1023), fault(Access::Write, false, store(Word, 0x1122_3344))),
        (page(23, 0x00c0_2021), fault(Access::Write, false, store(Dword, 0x1122_3344))),
        (page(23, 0x00c0_3023), fault(Access::Write, false, store(Qword, 0x1122_3344))),
        // amoadd.w, sc.w, lr.w, fsw, flw, vle8.v: what cannot be emulated has no instruction.
        (page(23, 0x00c0_252f), fault(Access::Write, false, None)),
        (page(23, 0x18c0_252f), fault(Access::Write, false, None)),
        (page(21, 0x1000_252f), fault(Access::Read, false, None)),
        (page(23, 0x00a0_2027), fault(Access::Write, false, None)),
        (page(21, 0x0000_2507), fault(Access::Read, false, None)),
        (page(21, 0x0200_0507), fault(Access::Read, false, None)),
        // The second page of a misaligned load: the access began elsewhere.
        (page(21, 0x2503 | 4 << 15), fault(Access::Read, false, None)),
        // Of a fetch nobody asks for the instruction.
        (page(20, 0), fault(Access::Fetch, false, None)),
        // The guest's own walk, for a load, a store, a fetch; its update of A and D.
        (page(21, 0x3000), fault(Access::Read, true, None)),
        (page(23, 0x3000), fault(Access::Read, true, None)),
        (page(20, 0x3000), fault(Access::Read, true, None)),
        (page(23, 0x3020), fault(Access::Write, true, None)),
        (page(21, 0x2000), fault(Access::Read, true, None)),
        (page(21, 0x2020), fault(Access::Write, true, None)),
        // WFI; SFENCE.VMA and a read of a counter, which the guest does not have.
        (exception(22, 0x1050_0073), VcpuExit::Halt),
        (exception(22, 0x1200_0073), served),
        (exception(22, 0xc000_2573), served),
        (exception(2, 0), served),
        // An interrupt, whatever else the registers hold.
        (interrupt(1), VcpuExit::ExternalInterrupt { vector: 1 }),
        (interrupt(5), VcpuExit::ExternalInterrupt { vector: 5 }),
        (interrupt(9), VcpuExit::ExternalInterrupt { vector: 9 }),
        (interrupt(12), VcpuExit::ExternalInterrupt { vector: 12 }),
    ];
    // What the guest's own handler knows, if the hart does not deliver it by itself.
    rows.extend(
        [0, 1, 3, 4, 5, 6, 7, 8, 12, 13, 15, 18, 19].map(|own| (exception(own, 8), served)),
    );
    // Calls of the host's own, and what only later versions of the architecture know.
    rows.extend(
        [9, 11, 14, 16, 17, 24, 48, 63, 64, 1 << 62]
            .map(|unknown| (exception(unknown, 8), VcpuExit::FailEntry { reason: unknown })),
    );
    for (trap, want) in rows {
        let mut vcpu = bound::<Sstc>();
        let exit = run(&mut vcpu, move |guest| {
            guest.set_reg(12, 0x1122_3344);
            trap
        });
        assert_eq!(exit, want, "{trap:x?}");
        vcpu.unbind().unwrap();
    }
}

/// Upstream: an instruction guest-page fault and a virtual-instruction exception were panics.
#[test]
fn whatever_the_trap_registers_hold_nothing_panics() {
    use proptest::prelude::*;
    let any_cause = prop_oneof![0u64..64, any::<u64>(), (0u64..64).prop_map(|n| 1 << 63 | n)];
    let any_code = prop::collection::vec(any::<u16>(), 0..3);
    proptest!(|(cause in any_cause, value: u64, gpa: u64, insn: u64, code in any_code, pc: u64)| {
        let mut vcpu = bound::<NoSstc>();
        <NoSstc as axvm_testkit::MockHart>::with(|cpu| {
            cpu.code.clear();
            for (n, half) in code.iter().enumerate() {
                cpu.code.insert(pc.wrapping_add(2 * n as u64), *half);
            }
        });
        run(&mut vcpu, move |guest| {
            guest.frame.pc = pc;
            Trap { cause, value, gpa, insn }
        });
        let _ = vcpu.decode();
        vcpu.unbind().unwrap();
    });
}

#[test]
fn the_first_entry_is_as_firmware_leaves_a_hart() {
    let mut vcpu = bound::<Sstc>();
    let frame = look(&mut vcpu);
    let mut want = [0; 32];
    (want[A0], want[A1]) = (HART, DTB as u64);
    assert_eq!((frame.gprs, frame.pc), (want, ENTRY));
    assert_ne!(frame.sstatus & SPP, 0, "it begins in S-mode");
    assert_eq!(get::<Sstc>(axvm::arch::riscv64::Csr::Vsatp), 0, "without translation");
    assert_eq!(get::<Sstc>(axvm::arch::riscv64::Csr::Vsie), 0);
    assert_eq!(get::<Sstc>(axvm::arch::riscv64::Csr::Vsstatus) & (SIE | FS), 0);
}

#[test]
fn hgatp_names_the_mode_the_vmid_and_the_root() {
    let mut vcpu = bound::<Sstc>();
    vcpu.set_vmid(0x2abc);
    let want = 9 << 60 | 0x2abc << 44 | ROOT as u64 >> 12;
    assert_eq!(get::<Sstc>(axvm::arch::riscv64::Csr::Hgatp), want);
}

#[test]
fn an_entry_point_is_even_and_a_root_is_aligned_to_its_16_kib() {
    use axerrno::AxErrorKind::InvalidInput;
    use axvm::mm::HostPhysAddr;
    let mut vcpu = created::<Hal, Sstc>();
    let odd = GuestPhysAddr::from_usize(0x8000_0001);
    assert_eq!(vcpu.set_entry(odd), Err(InvalidInput.into()));
    for off in [0x1000, 0x2000, 0x3000] {
        let root = HostPhysAddr::from_usize(ROOT + off);
        assert_eq!(vcpu.set_ept_root(root), Err(InvalidInput.into()));
    }
    enable::<Hal, Sstc>();
    bind(&mut vcpu);
    assert_eq!(vcpu.power_on(odd, 0), Err(InvalidInput.into()));
    assert_eq!(look(&mut vcpu).pc, ENTRY, "nothing has changed");
}
