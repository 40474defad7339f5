//! What the guest finds in a0 and a1 after each call (SBI 2.0 §3 to §12).

use axvm::{
    arch::riscv64::Csr,
    mm::GuestPhysAddr,
    vcpu::{
        AxArchVCpu, Completion, ConsoleCall, CpuPower, CpuUpError, GuestFence, IpiTargets, Service,
        VcpuExit,
    },
};

use crate::support::*;

const TIME: u64 = 0x5449_4d45;
const IPI: u64 = 0x73_5049;
const RFENCE: u64 = 0x5246_4e43;
const HSM: u64 = 0x48_534d;
const SRST: u64 = 0x5352_5354;
const DBCN: u64 = 0x4442_434e;
const NOT_SUPPORTED: u64 = -2i64 as u64;
const INVALID_PARAM: u64 = -3i64 as u64;
const INVALID_ADDRESS: u64 = -5i64 as u64;
const ALREADY_AVAILABLE: u64 = -6i64 as u64;
const SERVED: VcpuExit = VcpuExit::Served(Service::Firmware);
/// Where a call's second argument is, and its value comes back.
const JUNK: u64 = 0x1_0000_0001;

/// After the call: a0, a1; and the program counter must be behind it.
#[track_caller]
fn result(vcpu: &mut Vcpu<NoSstc>) -> (u64, u64) {
    let frame = look(vcpu);
    assert_eq!(frame.pc, ENTRY + 4);
    assert_eq!(frame.gprs[12], JUNK, "a2 is preserved");
    (frame.gprs[A0], frame.gprs[A1])
}

#[track_caller]
fn called(extension: u64, function: u64, a0: u64) -> (Vcpu<NoSstc>, VcpuExit) {
    let mut vcpu = bound::<NoSstc>();
    let exit = ecall(&mut vcpu, extension, function, [a0, JUNK, JUNK]);
    (vcpu, exit)
}

/// Calls that the backend answers alone.
#[test]
fn what_concerns_the_vcpu_alone_is_served_at_once() {
    for (extension, function, a0, want) in [
        (0x10, 0, 0, (0, 2 << 24)),
        (0x10, 1, 0, (0, 0x6178_766d)),
        (0x10, 3, TIME, (0, 1)),
        (0x10, 3, IPI, (0, 1)),
        (0x10, 3, RFENCE, (0, 1)),
        (0x10, 3, HSM, (0, 1)),
        (0x10, 3, SRST, (0, 1)),
        (0x10, 3, DBCN, (0, 1)),
        (0x10, 3, 0x50_4d55, (0, 0)), // PMU
        (0x10, 4, 0, (0, 0)),
        (0x10, 7, 0, (NOT_SUPPORTED, 0)),
        (TIME, 0, 1_000_000, (0, 0)),
        (TIME, 1, 0, (NOT_SUPPORTED, 0)),
        (IPI, 1, 0, (NOT_SUPPORTED, 0)),
        (RFENCE, 3, 0, (NOT_SUPPORTED, 0)),
        (HSM, 4, 0, (NOT_SUPPORTED, 0)),
        (HSM, 3, 1, (INVALID_PARAM, 0)),
        (SRST, 0, 3, (INVALID_PARAM, 0)),
        (DBCN, 0, 5, (INVALID_PARAM, 0)), // an address beyond 64 bits
        (DBCN, 3, 5, (NOT_SUPPORTED, 0)),
        (0xdead, 0, 0, (NOT_SUPPORTED, 0)),
        (u64::MAX, u64::MAX, u64::MAX, (NOT_SUPPORTED, 0)),
        // Legacy calls return in a0 alone.
        (0, 0, 1_000_000, (0, JUNK)),
        (3, 0, 0, (0, JUNK)),
    ] {
        let (mut vcpu, exit) = called(extension, function, a0);
        let call = format!("{extension:#x} {function} {a0:#x}");
        assert_eq!(exit, SERVED, "{call}");
        assert_eq!(result(&mut vcpu), want, "{call}");
        vcpu.unbind().unwrap();
    }
}

/// Calls that the VM answers, and what each answer becomes.
#[test]
fn answers_of_the_vm_come_back_in_the_firmwares_own_codes() {
    use Completion::*;
    for (extension, function, a0, answers) in [
        (IPI, 0, 1, vec![(Written, (0, 0)), (NoSuchCpu, (INVALID_PARAM, 0))]),
        (RFENCE, 0, 1, vec![(Written, (0, 0)), (NoSuchCpu, (INVALID_PARAM, 0))]),
        (RFENCE, 2, 1, vec![(Written, (0, 0)), (NoSuchCpu, (INVALID_PARAM, 0))]),
        (
            HSM,
            0,
            1,
            vec![
                (CpuUp(Ok(())), (0, 0)),
                (CpuUp(Err(CpuUpError::InvalidTarget)), (INVALID_PARAM, 0)),
                (CpuUp(Err(CpuUpError::InvalidAddress)), (INVALID_ADDRESS, 0)),
                (CpuUp(Err(CpuUpError::AlreadyOn)), (ALREADY_AVAILABLE, 0)),
                (CpuUp(Err(CpuUpError::OnPending)), (ALREADY_AVAILABLE, 0)),
            ],
        ),
        (
            HSM,
            2,
            1,
            vec![
                (CpuStatus(Some(CpuPower::On)), (0, 0)),
                (CpuStatus(Some(CpuPower::Off)), (0, 1)),
                (CpuStatus(Some(CpuPower::OnPending)), (0, 2)),
                (CpuStatus(Some(CpuPower::Suspended)), (0, 4)),
                (CpuStatus(None), (INVALID_PARAM, 0)),
            ],
        ),
        (HSM, 3, 0x8000_0000, vec![(CpuUp(Err(CpuUpError::InvalidAddress)), (INVALID_ADDRESS, 0))]),
        // A byte that is written is no count: the value is 0 (§12.3), as is a0 (§5.2).
        (DBCN, 2, 0x41, vec![(Console(Some(1)), (0, 0))]),
        (1, 0, 0x41, vec![(Console(Some(1)), (0, JUNK))]),
        (2, 0, 0, vec![(Console(Some(0x41)), (0x41, JUNK)), (Console(None), (u64::MAX, JUNK))]),
        (0x0900_0001, 3, 0, vec![(Return(0), (0, 0)), (Return(9), (9, 0))]),
    ] {
        for (answer, want) in answers {
            let (mut vcpu, exit) = called(extension, function, a0);
            complete(&mut vcpu, answer);
            assert_eq!(result(&mut vcpu), want, "{exit:?} answered by {answer:?}");
            vcpu.unbind().unwrap();
        }
    }
    for function in [0, 1] {
        let buffer = [16, 0x8000_0000, 0];
        for (done, want) in [(Some(16), (0, 16)), (Some(0), (0, 0)), (None, (INVALID_PARAM, 0))] {
            let mut vcpu = bound::<NoSstc>();
            ecall(&mut vcpu, DBCN, function, buffer);
            complete(&mut vcpu, Console(done));
            let frame = look(&mut vcpu);
            assert_eq!((frame.gprs[A0], frame.gprs[A1]), want);
            vcpu.unbind().unwrap();
        }
    }
}

#[test]
fn what_concerns_others_is_an_exit_that_says_what() {
    let gpa = GuestPhysAddr::from_usize(JUNK as usize);
    let (all, one) = (IpiTargets::All, IpiTargets::Named { base: 5, mask: 1 });
    for (extension, function, args, want) in [
        (IPI, 0, [3, u64::MAX, 0], VcpuExit::SendIpi { targets: all, vector: 1 }),
        (IPI, 0, [1, 5, 0], VcpuExit::SendIpi { targets: one, vector: 1 }),
        (
            RFENCE,
            0,
            [1, 5, 0],
            VcpuExit::RemoteFence { targets: one, fence: GuestFence::Instructions },
        ),
        (
            RFENCE,
            1,
            [1, 5, 0],
            VcpuExit::RemoteFence { targets: one, fence: GuestFence::Translations },
        ),
        (HSM, 0, [1, JUNK, 9], VcpuExit::CpuUp { target_cpu: 1, entry_point: gpa, arg: 9 }),
        (HSM, 1, [0; 3], VcpuExit::CpuDown),
        (HSM, 2, [7, 0, 0], VcpuExit::CpuStatus { target_cpu: 7 }),
        (HSM, 3, [0x8000_0000, JUNK, 9], VcpuExit::CpuSuspend { resume: Some((gpa, 9)) }),
        (SRST, 0, [0, 0, 0], VcpuExit::SystemDown),
        (SRST, 0, [1, 0, 0], VcpuExit::SystemReset),
        (8, 0, [0; 3], VcpuExit::SystemDown),
        (1, 0, [0x141, 0, 0], VcpuExit::Console(ConsoleCall::WriteByte(0x41))),
        (2, 0, [0; 3], VcpuExit::Console(ConsoleCall::ReadByte)),
        // Upstream: its length was an allocation. Here it is a number.
        (
            DBCN,
            0,
            [u64::MAX, JUNK, 0],
            VcpuExit::Console(ConsoleCall::Write { gpa, len: u64::MAX }),
        ),
        (DBCN, 1, [u64::MAX, JUNK, 0], VcpuExit::Console(ConsoleCall::Read { gpa, len: u64::MAX })),
    ] {
        let mut vcpu = bound::<NoSstc>();
        assert_eq!(ecall(&mut vcpu, extension, function, args), want);
        assert_eq!(look(&mut vcpu).pc, ENTRY, "{want:?}: not answered");
        vcpu.unbind().unwrap();
    }
    let mut vcpu = bound::<NoSstc>();
    let exit = ecall(&mut vcpu, 0x0900_0001, 3, [1, 2, 3]);
    let args = [1, 2, 3, 0, 0, 0];
    assert_eq!(exit, VcpuExit::Hypercall { nr: 0x0900_0001 << 32 | 3, args });
}

#[test]
fn a_suspension_that_keeps_its_state_goes_on_behind_the_call() {
    let (mut vcpu, exit) = called(HSM, 3, 0);
    assert_eq!(exit, VcpuExit::CpuSuspend { resume: None });
    assert_eq!(result(&mut vcpu), (0, 0));
}

#[test]
fn clearing_an_ipi_tells_whether_there_was_one() {
    for pending in [0, 1] {
        let mut vcpu = bound::<NoSstc>();
        put::<NoSstc>(Csr::Hvip, VSEI | (pending * VSSI));
        assert_eq!(ecall(&mut vcpu, 3, 0, [9, JUNK, JUNK]), SERVED);
        assert_eq!(result(&mut vcpu), (pending, JUNK));
        assert_eq!(get::<NoSstc>(Csr::Hvip), VSEI);
        vcpu.unbind().unwrap();
    }
}

#[test]
fn the_host_sets_registers_by_their_numbers() {
    let mut vcpu = bound::<NoSstc>();
    for (reg, value) in [(0, 1), (A0, 2), (31, 3), (32, 4), (usize::MAX, 5)] {
        vcpu.set_gpr(reg, value);
    }
    let gprs = look(&mut vcpu).gprs;
    assert_eq!((gprs[0], gprs[A0], gprs[31]), (0, 2, 3));
    vcpu.set_return_value(6);
    assert_eq!(look(&mut vcpu).gprs[A0], 6);
}
