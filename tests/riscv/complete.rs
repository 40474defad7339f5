//! Answers that fit an exit, and those that do not.

use axerrno::AxErrorKind::{BadState, InvalidInput};
use axvm::{
    mm::GuestPhysAddr,
    vcpu::{AxArchVCpu, Completion, CpuPower, CpuUpError, GuestFault, VcpuExit},
};

use crate::support::*;

/// One of each kind.
const ANSWERS: [Completion; 11] = [
    Completion::Read(1),
    Completion::Written,
    Completion::Retry,
    Completion::Fault(GuestFault::Bus),
    Completion::Return(1),
    Completion::CpuUp(Ok(())),
    Completion::CpuUp(Err(CpuUpError::AlreadyOn)),
    Completion::CpuStatus(Some(CpuPower::On)),
    Completion::NoSuchCpu,
    Completion::Console(Some(1)),
    Completion::Console(None),
];

/// Tries every answer on the exit that `make` brings about.
#[track_caller]
fn only(
    what: &str,
    fits: impl Fn(Completion) -> bool,
    make: impl Fn(&mut Vcpu<NoSstc>) -> VcpuExit,
) {
    for answer in ANSWERS {
        let mut vcpu = bound::<NoSstc>();
        let exit = make(&mut vcpu);
        let before = vcpu.state();
        let done = vcpu.complete(answer);
        if fits(answer) {
            assert_eq!(done, Ok(None), "{what}: {answer:?} for {exit:?}");
            assert_eq!(vcpu.complete(answer), Err(BadState.into()), "{what}: {answer:?} again");
        } else {
            assert_eq!(done, Err(InvalidInput.into()), "{what}: {answer:?} for {exit:?}");
            assert_eq!(vcpu.state(), before, "{what}: {answer:?} for {exit:?}");
            // It is still to be answered.
            let right = ANSWERS.into_iter().find(|&answer| fits(answer)).unwrap();
            assert_eq!(vcpu.complete(right), Ok(None), "{what}: {right:?} after {answer:?}");
        }
        vcpu.unbind().unwrap();
    }
}

#[test]
fn an_access_takes_the_answers_of_its_direction() {
    use Completion::*;
    let access = |done: Completion| matches!(done, Retry | Fault(_));
    only(
        "load",
        |done| access(done) || matches!(done, Read(_)),
        |vcpu| run(vcpu, |_| guest_page_fault(21, 0x1000_0008, 0x2503)),
    );
    only(
        "store",
        |done| access(done) || matches!(done, Written),
        |vcpu| run(vcpu, |_| guest_page_fault(23, 0x1000_0008, 0x00c0_2023)),
    );
    only("atomic", access, |vcpu| run(vcpu, |_| guest_page_fault(23, 0x1000_0008, 0x00c0_252f)));
    only("walk", access, |vcpu| run(vcpu, |_| guest_page_fault(21, 0x1000_0008, 0x3000)));
    only("fetch", access, |vcpu| run(vcpu, |_| guest_page_fault(20, 0x1000_0008, 0)));
}

#[test]
fn a_call_takes_its_own_kind_of_answer() {
    use Completion::*;
    let targets = |done: Completion| matches!(done, Written | NoSuchCpu);
    only("IPI", targets, |vcpu| ecall(vcpu, 0x73_5049, 0, [1, 0, 0]));
    only("RFENCE", targets, |vcpu| ecall(vcpu, 0x5246_4e43, 0, [1, 0, 0]));
    let started = |done: Completion| matches!(done, CpuUp(_));
    only("start", started, |vcpu| ecall(vcpu, 0x48_534d, 0, [1, 0x8000_0000, 0]));
    only("suspend", started, |vcpu| ecall(vcpu, 0x48_534d, 3, [0x8000_0000, 0x8000_0000, 0]));
    let status = |done: Completion| matches!(done, CpuStatus(_));
    only("status", status, |vcpu| ecall(vcpu, 0x48_534d, 2, [1, 0, 0]));
    let console = |done: Completion| matches!(done, Console(_));
    for function in 0..3 {
        only("DBCN", console, |vcpu| ecall(vcpu, 0x4442_434e, function, [1, 0, 0]));
    }
    only("putchar", console, |vcpu| ecall(vcpu, 1, 0, [1, 0, 0]));
    only("getchar", console, |vcpu| ecall(vcpu, 2, 0, [1, 0, 0]));
    only("host", |done| matches!(done, Return(_)), |vcpu| ecall(vcpu, 0x0a00_0000, 0, [0; 3]));
}

#[test]
fn what_is_not_asked_is_not_answered() {
    let exits: [fn(&mut Vcpu<NoSstc>) -> VcpuExit; 8] = [
        |vcpu| run(vcpu, |_| interrupt(5)),
        |vcpu| run(vcpu, |_| exception(22, 0x1050_0073)),
        |vcpu| run(vcpu, |_| exception(2, 0)),
        |vcpu| ecall(vcpu, 0x10, 0, [0; 3]),
        // hart_stop, a suspension that keeps its state, system_reset
        |vcpu| ecall(vcpu, 0x48_534d, 1, [0; 3]),
        |vcpu| ecall(vcpu, 0x48_534d, 3, [0; 3]),
        |vcpu| ecall(vcpu, 0x5352_5354, 0, [0; 3]),
        |vcpu| ecall(vcpu, 0x5352_5354, 0, [1, 0, 0]),
    ];
    for answer in ANSWERS {
        let mut vcpu = bound::<NoSstc>();
        assert_eq!(vcpu.complete(answer), Err(BadState.into()), "before any exit");
        for exit in exits {
            let exit = exit(&mut vcpu);
            assert_eq!(vcpu.complete(answer), Err(BadState.into()), "{answer:?} for {exit:?}");
        }
        vcpu.unbind().unwrap();
    }
}

#[test]
fn an_exit_that_was_not_answered_happens_again() {
    let mut vcpu = bound::<NoSstc>();
    run(&mut vcpu, |_| guest_page_fault(21, 0x1000_0008, 0x2503));
    assert_eq!(look(&mut vcpu).pc, ENTRY);
    assert_eq!(vcpu.complete(Completion::Read(1)), Err(BadState.into()), "run forgets it");
}

#[test]
fn an_answer_may_come_after_the_vcpu_has_moved_to_another_hart() {
    let mut vcpu = bound::<NoSstc>();
    run(&mut vcpu, |_| guest_page_fault(21, 0x1000_0008, 0x2503));
    vcpu.unbind().unwrap();
    axvm_testkit::on_pcpu(1, || {
        enable::<Hal, NoSstc>();
        bind(&mut vcpu);
        complete(&mut vcpu, Completion::Read(0x99));
        let frame = look(&mut vcpu);
        assert_eq!((frame.pc, frame.gprs[A0]), (ENTRY + 4, 0x99));
    });
}

#[test]
fn a_vcpu_that_is_started_anew_has_nothing_to_answer() {
    let mut vcpu = bound::<NoSstc>();
    ecall(&mut vcpu, 0x48_534d, 3, [0x8000_0000, 0x8000_1000, 7]);
    vcpu.power_on(GuestPhysAddr::from_usize(0x8000_1000), 7).unwrap();
    assert_eq!(vcpu.complete(Completion::CpuUp(Ok(()))), Err(BadState.into()));
    let frame = look(&mut vcpu);
    assert_eq!((frame.pc, frame.gprs[A0], frame.gprs[A1]), (0x8000_1000, HART, 7));
}
