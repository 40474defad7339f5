//! The whole state, got and set.

use axerrno::AxErrorKind::InvalidInput;
use axvm::{
    arch::riscv64::{Csr, FpState, GuestCsrs, RiscvState},
    vcpu::AxArchVCpu,
};
use axvm_testkit::{MockHart, mock_hart};
use proptest::prelude::*;

use crate::{csrs::any_csrs, support::*};

mock_hart!(
    /// A hart whose guests have Sv39 only.
    struct Sv39 on Hal { satp_mode: 8 }
);

fn any_state() -> impl Strategy<Value = RiscvState> {
    let integer = (any::<[u64; 32]>(), any::<u64>(), any::<bool>());
    let fp = (any::<[u64; 32]>(), 0u64..0x100).prop_map(|(regs, fcsr)| FpState { regs, fcsr });
    (integer, any_csrs(), fp, any::<u64>()).prop_map(|((mut gprs, pc, user), csrs, fp, timer)| {
        gprs[0] = 0;
        RiscvState { gprs, pc: pc & !1, user, csrs, fp, timer }
    })
}

#[test]
fn a_state_comes_back_as_it_was_set_here_and_on_another_hart() {
    fn check<P: MockHart>(state: &RiscvState, then: &RiscvState) {
        let mut vcpu = bound::<P>();
        vcpu.set_state(state).unwrap();
        assert_eq!(vcpu.state(), *state, "at once");
        vcpu.unbind().unwrap();
        axvm_testkit::on_pcpu(1, || {
            enable::<Hal, P>();
            bind(&mut vcpu);
            assert_eq!(vcpu.state(), *state, "elsewhere");
            // Over another one, whose floating point is in the hart.
            put::<P>(Csr::Vsstatus, FS_INITIAL);
            run(&mut vcpu, |_| exception(2, 0));
            run(&mut vcpu, |guest| {
                guest.set_fp(0, 1);
                interrupt(5)
            });
            vcpu.set_state(then).unwrap();
            assert_eq!(vcpu.state(), *then, "after another one");
            vcpu.unbind().unwrap();
        });
    }
    proptest!(|(state in any_state(), then in any_state())| {
        check::<Sstc>(&state, &then);
        check::<NoSstc>(&state, &then);
    });
}

#[test]
fn the_guest_runs_with_the_state_that_was_set() {
    let mut vcpu = bound::<Sstc>();
    let mut state = vcpu.state();
    state.gprs[31] = 0x31;
    state.gprs[0] = 1;
    (state.pc, state.user) = (0x1234_5678, true);
    state.fp.regs[9] = 0x99;
    state.csrs.vsstatus |= FS_CLEAN;
    vcpu.set_state(&state).unwrap();
    let frame = look(&mut vcpu);
    assert_eq!((frame.gprs[0], frame.gprs[31], frame.pc), (0, 0x31, 0x1234_5678));
    assert_eq!((frame.sstatus & SPP, frame.hstatus & 1 << 8), (0, 0), "U-mode");
    run(&mut vcpu, |_| exception(2, 0));
    run(&mut vcpu, |guest| {
        assert_eq!(guest.fp(9), 0x99);
        interrupt(5)
    });
}

#[test]
fn a_state_that_the_hart_cannot_hold_is_refused_and_changes_nothing() {
    let mut vcpu = bound::<Sv39>();
    vcpu.set_gpr(9, 9);
    let before = vcpu.state();
    let csrs = before.csrs;
    let with = |csrs: GuestCsrs| RiscvState { csrs, gprs: [1; 32], ..before.clone() };
    for wrong in [
        with(GuestCsrs { vsatp: 9 << 60, ..csrs }),
        with(GuestCsrs { vsatp: 10 << 60 | 5, ..csrs }),
        with(GuestCsrs { vsatp: 11 << 60, ..csrs }),
        with(GuestCsrs { vsatp: 1 << 60, ..csrs }),
        with(GuestCsrs { hvip: 1 << 12, ..csrs }),
        with(GuestCsrs { hvip: u64::MAX, ..csrs }),
        RiscvState { pc: 0x8000_0001, ..with(csrs) },
    ] {
        assert_eq!(vcpu.set_state(&wrong), Err(InvalidInput.into()), "{:x?}", wrong.csrs);
        assert_eq!(vcpu.state(), before);
    }
    vcpu.set_state(&with(GuestCsrs { vsatp: 8 << 60 | 5, ..csrs })).unwrap();
}

/// A timer interrupt that was shown on a hart without Sstc is the timer's own on one with it: there
/// nobody would ever take the shown one back.
#[test]
fn a_timer_that_is_due_moves_between_harts_of_both_kinds() {
    let mut old = bound::<NoSstc>();
    NoSstc::with(|cpu| cpu.set_time(1000));
    ecall(&mut old, 0x5449_4d45, 0, [500, 0, 0]);
    look(&mut old);
    let state = old.state();
    assert_eq!((state.csrs.hvip, state.timer), (VSTI, 500));
    let mut new = bound::<Sstc>();
    Sstc::with(|cpu| cpu.set_time(1000));
    new.set_state(&state).unwrap();
    look(&mut new);
    assert_eq!(get::<Sstc>(Csr::Hip), VSTI, "it is due");
    // The guest sets it anew, by a call or by itself.
    ecall(&mut new, 0x5449_4d45, 0, [2000, 0, 0]);
    look(&mut new);
    assert_eq!(get::<Sstc>(Csr::Hip), 0, "it is not due any more");
    let back = new.state();
    old.set_state(&back).unwrap();
    NoSstc::with(|cpu| cpu.set_time(2000));
    look(&mut old);
    assert_eq!(get::<NoSstc>(Csr::Hip), VSTI);
}
