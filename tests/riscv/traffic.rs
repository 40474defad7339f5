//! How often the hart's registers are touched from one entry to the next: each access costs tens of
//! cycles, and more where the host is itself a guest.

use axvm::arch::riscv64::{Csr, Trap};
use axvm::vcpu::{AxArchVCpu, Completion};
use axvm_testkit::{Guest, MockHart, Touched};

use crate::support::*;

/// From the entry into the guest to the next one, with the calls that the VM makes in between.
#[track_caller]
fn traffic<P: MockHart>(
    timer: bool,
    act: impl FnOnce(&mut Guest<'_>) -> Trap + Send + 'static,
    answer: Option<Completion>,
) -> Vec<Touched> {
    let mut vcpu = bound::<P>();
    if timer {
        ecall(&mut vcpu, 0x5449_4d45, 0, [1 << 40, 0, 0]);
    }
    look(&mut vcpu);
    P::with(|cpu| cpu.take_touched());
    run(&mut vcpu, act);
    if let Some(answer) = answer {
        complete(&mut vcpu, answer);
    }
    vcpu.interrupt_at();
    let touched = P::with(|cpu| cpu.take_touched());
    vcpu.unbind().unwrap();
    touched
}

/// With Sstc nothing at all; without it a look at `time` while a timer is set.
#[test]
fn an_exit_that_is_served_costs_no_register_but_time() {
    fn check<P: MockHart>(timer: bool, want: &[Touched]) {
        let call = |guest: &mut Guest<'_>| {
            guest.set_reg(16, 0);
            guest.set_reg(17, 0x10);
            exception(10, 0)
        };
        assert_eq!(traffic::<P>(timer, call, None), want, "a call");
        let load = |_: &mut Guest<'_>| guest_page_fault(21, 0x1000_0008, 0x2503);
        assert_eq!(traffic::<P>(timer, load, Some(Completion::Read(1))), want, "a load");
        let store = |_: &mut Guest<'_>| guest_page_fault(23, 0x1000_0008, 0x00c0_2023);
        assert_eq!(traffic::<P>(timer, store, Some(Completion::Written)), want, "a store");
        let page = |_: &mut Guest<'_>| guest_page_fault(23, 0x8000_0008, 0x00c0_2023);
        assert_eq!(traffic::<P>(timer, page, Some(Completion::Retry)), want, "a page");
        assert_eq!(traffic::<P>(timer, |_| interrupt(9), None), want, "an interrupt");
        assert_eq!(traffic::<P>(timer, |_| exception(22, 0x1050_0073), None), want, "WFI");
    }
    check::<Sstc>(false, &[]);
    check::<Sstc>(true, &[]);
    check::<NoSstc>(false, &[]);
    check::<NoSstc>(true, &[Touched::Read(Csr::Time)]);
}

#[test]
fn setting_the_timer_costs_one_register_with_sstc_and_three_without() {
    let set = |guest: &mut Guest<'_>| {
        guest.set_reg(10, 1 << 41);
        guest.set_reg(16, 0);
        guest.set_reg(17, 0x5449_4d45);
        exception(10, 0)
    };
    assert_eq!(traffic::<Sstc>(false, set, None), [Touched::Changed(Csr::Vstimecmp)]);
    let want = [Touched::Read(Csr::Time), Touched::Changed(Csr::Hvip), Touched::Read(Csr::Time)];
    assert_eq!(traffic::<NoSstc>(true, set, None), want);
}

#[test]
fn a_vcpu_that_does_not_use_floating_point_is_switched_by_a_fixed_number_of_accesses() {
    fn check<P: MockHart>(most: usize) {
        let mut vcpu = bound::<P>();
        look(&mut vcpu);
        P::with(|cpu| cpu.take_touched());
        vcpu.unbind().unwrap();
        bind(&mut vcpu);
        let touched = P::with(|cpu| cpu.take_touched());
        assert!(!touched.contains(&Touched::Changed(Csr::Sstatus)), "{touched:?}");
        assert!(touched.len() <= most, "{}: {touched:?}", touched.len());
        vcpu.unbind().unwrap();
    }
    // Out: 11 registers saved, 6 set for the host, the timer saved and stopped. In: 2 of the host's
    // saved, 11 set, the timer set, `hgatp`.
    check::<Sstc>(11 + 6 + 2 + 2 + 11 + 1 + 1);
    check::<NoSstc>(11 + 6 + 2 + 11 + 1);
}

#[test]
fn an_exception_is_delivered_by_six_accesses() {
    let touched = traffic::<Sstc>(false, |_| exception(15, 0), None);
    assert_eq!(touched.len(), 6, "{touched:?}");
}
