//! Exceptions that the guest is given, as if the hart had delivered them (§12.1.1, §18.6.2).

use axvm::{
    arch::riscv64::Csr,
    vcpu::{AxArchVCpu, Service, VcpuExit},
};

use crate::support::*;

const PC: u64 = 0xffff_ffff_8000_1234;
const SUM: u64 = 1 << 18;
const MXR: u64 = 1 << 19;
const SPVP: u64 = 1 << 8;
const WFI: u64 = 0x1050_0073;

#[test]
fn an_exception_enters_the_handler_as_the_hart_would() {
    for user in [false, true] {
        for sie in [0, SIE] {
            for junk in [0, SPIE | SPP] {
                let mut vcpu = bound::<Sstc>();
                let exit = run(&mut vcpu, move |guest| {
                    guest.cpu.put(Csr::Vsstatus, sie | junk | SUM | MXR | FS_INITIAL);
                    guest.set_user(user);
                    guest.frame.pc = PC;
                    (1..32).for_each(|reg| guest.set_reg(reg, reg as u64));
                    exception(15, 0xbad0)
                });
                assert_eq!(exit, VcpuExit::Served(Service::Exception));
                let csrs = [Csr::Vsepc, Csr::Vscause, Csr::Vstval].map(get::<Sstc>);
                assert_eq!(csrs, [PC, 15, 0xbad0]);
                let status = get::<Sstc>(Csr::Vsstatus);
                let case = format!("user {user}, SIE {sie}, before {junk:#x}: {status:#x}");
                assert_eq!(status & SIE, 0, "{case}");
                assert_eq!(status & SPIE != 0, sie != 0, "{case}");
                assert_eq!(status & SPP == 0, user, "{case}");
                assert_eq!(status & (SUM | MXR | FS), SUM | MXR | FS_INITIAL, "{case}");
                let frame = look(&mut vcpu);
                assert_eq!(frame.pc, STVEC);
                assert_ne!(frame.sstatus & SPP, 0, "the handler runs in S-mode");
                assert_ne!(frame.hstatus & SPVP, 0, "and reads memory with its rights");
                assert!((1..32).all(|reg| frame.gprs[reg] == reg as u64));
                vcpu.unbind().unwrap();
            }
        }
    }
}

#[test]
fn a_vectored_handler_gets_exceptions_at_its_base() {
    let mut vcpu = bound::<Sstc>();
    put::<Sstc>(Csr::Vstvec, STVEC | 1);
    run(&mut vcpu, |_| exception(2, 0));
    assert_eq!(look(&mut vcpu).pc, STVEC);
}

#[test]
fn waiting_for_an_interrupt_is_the_kernels_right_alone() {
    let mut vcpu = bound::<Sstc>();
    put::<Sstc>(Csr::Vscause, 0x77);
    assert_eq!(run(&mut vcpu, |_| exception(22, WFI)), VcpuExit::Halt);
    assert_eq!(look(&mut vcpu).pc, ENTRY + 4, "it goes on behind it");
    assert_eq!(get::<Sstc>(Csr::Vscause), 0x77, "no exception");
    let exit = run(&mut vcpu, |guest| {
        guest.set_user(true);
        exception(22, WFI)
    });
    assert_eq!(exit, VcpuExit::Served(Service::Exception));
    let got = [Csr::Vscause, Csr::Vstval, Csr::Vsepc].map(get::<Sstc>);
    assert_eq!(got, [2, WFI, ENTRY + 4]);
}

#[test]
fn what_a_guest_without_the_h_extension_does_not_have_is_illegal() {
    for (insn, user) in [
        (0x6000_2573, false), // csrr a0, hstatus
        (0x2000_2573, false), // csrr a0, vsstatus
        (0xc000_2573, false), // rdcycle a0
        (0xc000_2573, true),
        (0x1202_8073, true),  // sfence.vma t0
        (0x1020_0073, true),  // sret
        (0x6c05_4573, false), // hlv.d a0, (a0)
        (0x2200_0073, false), // hfence.vvma
        (0x00d0_0073, false), // wrs.nto
    ] {
        let mut vcpu = bound::<Sstc>();
        run(&mut vcpu, move |guest| {
            guest.set_user(user);
            exception(22, insn)
        });
        let got = [Csr::Vscause, Csr::Vstval, Csr::Vsepc].map(get::<Sstc>);
        assert_eq!(got, [2, insn, ENTRY], "{insn:#x}");
        vcpu.unbind().unwrap();
    }
}

#[test]
fn an_illegal_instruction_is_the_guests_when_its_floating_point_is_off_or_there() {
    let mut vcpu = bound::<Sstc>();
    assert_eq!(run(&mut vcpu, |_| exception(2, 0x53)), VcpuExit::Served(Service::Exception));
    assert_eq!([Csr::Vscause, Csr::Vstval].map(get::<Sstc>), [2, 0x53]);
    put::<Sstc>(Csr::Vsstatus, FS_INITIAL);
    put::<Sstc>(Csr::Vscause, 0);
    // Once it may be the registers that are not there.
    assert_eq!(run(&mut vcpu, |_| exception(2, 0)), VcpuExit::Served(Service::FloatingPoint));
    assert_eq!(get::<Sstc>(Csr::Vscause), 0);
    assert_eq!(run(&mut vcpu, |_| exception(2, 0)), VcpuExit::Served(Service::Exception));
    assert_eq!(get::<Sstc>(Csr::Vscause), 2);
}

/// Upstream: these ended the host. The guest and its neighbour go on.
#[test]
fn an_unknown_cause_ends_the_guest_and_not_the_host() {
    let mut vcpu = bound::<Sstc>();
    let exit = run(&mut vcpu, |_| exception(30, 0));
    assert_eq!(exit, VcpuExit::FailEntry { reason: 30 });
    vcpu.unbind().unwrap();
    let mut other = created::<Hal, Sstc>();
    bind(&mut other);
    assert_eq!(look(&mut other).pc, ENTRY);
}
