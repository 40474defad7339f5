//! The guest's timer, with Sstc and without (SBI 2.0 §6; Privileged 1.13 §18.2.6).

use axvm::{
    arch::riscv64::Csr,
    vcpu::{AxArchVCpu, Service, VcpuExit},
};
use axvm_testkit::{MockHal, MockHart, mock_hal, mock_hart};

use crate::support::*;

const TIME: u64 = 0x5449_4d45;
const STIE: u64 = 1 << 5;

#[track_caller]
fn set_timer<P: MockHart>(vcpu: &mut Vcpu<P>, at: u64) {
    for (extension, function) in [(TIME, 0), (0, 0)] {
        let exit = ecall(vcpu, extension, function, [at, 0, 0]);
        assert_eq!(exit, VcpuExit::Served(Service::Firmware));
    }
}

/// Interrupt, deadline, wake-up, as the documentation of `AxArchVCpu` has them.
#[track_caller]
fn expect<P: MockHart>(vcpu: &mut Vcpu<P>, at: Option<u64>, next: Option<u64>, wakes: bool) {
    assert_eq!(vcpu.interrupt_at(), at, "interrupt_at");
    assert_eq!(vcpu.next_deadline(), next, "next_deadline");
    assert_eq!(vcpu.has_wakeup(), wakes, "has_wakeup");
}

#[test]
fn without_sstc_the_host_brings_the_guest_out_and_shows_what_is_due() {
    let mut vcpu = bound::<NoSstc>();
    put::<NoSstc>(Csr::Vsie, STIE);
    expect(&mut vcpu, None, None, false);
    set_timer(&mut vcpu, 1_000);
    expect(&mut vcpu, Some(100_000), Some(100_000), false);
    NoSstc::with(|cpu| cpu.set_time(999));
    look(&mut vcpu);
    assert_eq!(get::<NoSstc>(Csr::Hip), 0);
    expect(&mut vcpu, Some(100_000), Some(100), false);
    NoSstc::with(|cpu| cpu.set_time(1_000));
    expect(&mut vcpu, Some(100_000), None, true);
    look(&mut vcpu);
    assert_eq!(get::<NoSstc>(Csr::Hip), VSTI, "shown at the entry");
    expect(&mut vcpu, None, None, true);
    // The next one takes the shown one back.
    set_timer(&mut vcpu, 2_000);
    assert_eq!(get::<NoSstc>(Csr::Hip), 0);
    expect(&mut vcpu, Some(100_000), Some(100_000), false);
    set_timer(&mut vcpu, u64::MAX);
    expect(&mut vcpu, None, None, false);
}

#[test]
fn with_sstc_the_hart_delivers_it_and_the_host_is_not_asked() {
    let mut vcpu = bound::<Sstc>();
    put::<Sstc>(Csr::Vsie, STIE);
    expect(&mut vcpu, None, None, false);
    set_timer(&mut vcpu, 1_000);
    assert_eq!(get::<Sstc>(Csr::Vstimecmp), 1_000);
    expect(&mut vcpu, None, Some(100_000), false);
    Sstc::with(|cpu| cpu.set_time(1_000));
    assert_eq!(get::<Sstc>(Csr::Hip), VSTI);
    expect(&mut vcpu, None, None, true);
    set_timer(&mut vcpu, 1_001);
    assert_eq!(get::<Sstc>(Csr::Hip), 0, "taken back");
    expect(&mut vcpu, None, Some(100), false);
    // The guest sets it by itself.
    put::<Sstc>(Csr::Vstimecmp, 1_002);
    expect(&mut vcpu, None, Some(200), false);
    set_timer(&mut vcpu, u64::MAX);
    expect(&mut vcpu, None, None, false);
    assert_eq!(get::<Sstc>(Csr::Hvip), 0, "nothing of ours is in it");
}

#[test]
fn an_interrupt_that_the_guest_does_not_want_neither_wakes_it_nor_calls_it_back() {
    fn check<P: MockHart>(interrupt_at: Option<u64>) {
        let mut vcpu = bound::<P>();
        set_timer(&mut vcpu, 1_000);
        // SSIE and SEIE.
        put::<P>(Csr::Vsie, 0x202);
        expect(&mut vcpu, interrupt_at, None, false);
        P::with(|cpu| cpu.set_time(1_000));
        expect(&mut vcpu, interrupt_at, None, false);
        vcpu.unbind().unwrap();
    }
    check::<Sstc>(None);
    // A guest may look at `sip`, and have interrupts off: shown it must be.
    check::<NoSstc>(Some(100_000));
}

#[test]
fn a_timer_in_the_past_is_due_at_once() {
    fn check<P: MockHart>() {
        let mut vcpu = bound::<P>();
        put::<P>(Csr::Vsie, STIE);
        P::with(|cpu| cpu.set_time(5_000));
        for at in [0, 4_999, 5_000] {
            set_timer(&mut vcpu, at);
            assert_eq!(vcpu.next_deadline(), None);
            assert!(vcpu.has_wakeup(), "{at}");
            look(&mut vcpu);
            assert_eq!(get::<P>(Csr::Hip), VSTI, "{at}");
        }
        vcpu.unbind().unwrap();
    }
    check::<Sstc>();
    check::<NoSstc>();
}

#[test]
fn a_timer_at_the_end_of_time_does_not_wrap() {
    fn check<P: MockHart>() {
        let mut vcpu = bound::<P>();
        put::<P>(Csr::Vsie, STIE);
        for at in [u64::MAX - 1, 1 << 63, 1 << 60] {
            set_timer(&mut vcpu, at);
            assert_eq!(vcpu.next_deadline(), Some(at.saturating_mul(100)), "{at:#x}");
            assert!(!vcpu.has_wakeup(), "{at:#x}");
        }
        // All ones is never, even when `time` gets there.
        set_timer(&mut vcpu, u64::MAX);
        P::with(|cpu| cpu.set_time(u64::MAX));
        assert_eq!(vcpu.next_deadline(), None);
        assert_eq!(vcpu.interrupt_at(), None);
        vcpu.unbind().unwrap();
    }
    check::<Sstc>();
    check::<NoSstc>();
}

#[test]
fn a_timer_goes_on_while_its_vcpu_is_not_bound() {
    fn check<P: MockHart>() {
        let mut vcpu = bound::<P>();
        put::<P>(Csr::Vsie, STIE);
        set_timer(&mut vcpu, 1_000);
        vcpu.unbind().unwrap();
        assert_eq!(get::<P>(Csr::Hip), 0);
        P::with(|cpu| cpu.set_time(1_000));
        assert_eq!(get::<P>(Csr::Hip), 0, "the host does not see it");
        bind(&mut vcpu);
        assert!(vcpu.has_wakeup());
        look(&mut vcpu);
        assert_eq!(get::<P>(Csr::Hip), VSTI);
        // What was shown is still shown elsewhere.
        vcpu.unbind().unwrap();
        axvm_testkit::on_pcpu(1, || {
            enable::<Hal, P>();
            P::with(|cpu| cpu.set_time(1_000));
            bind(&mut vcpu);
            look(&mut vcpu);
            assert_eq!(get::<P>(Csr::Hip), VSTI);
            vcpu.unbind().unwrap();
        });
        P::with(|cpu| cpu.set_time(0));
    }
    check::<Sstc>();
    check::<NoSstc>();
}

/// Nanoseconds from now for some ticks, at a frequency and a time of the host's clock.
macro_rules! conversions {
    ($($name:ident: $hz:expr, $now:expr, [$(($ticks:expr, $nanos:expr)),* $(,)?];)*) => {$(
        #[test]
        fn $name() {
            mock_hal!(struct Clock { counter_hz: $hz });
            mock_hart!(struct Slow on Clock { stce: false, vstimecmp: false });
            mock_hart!(struct Fast on Clock {});
            fn check<P: MockHart>(ticks: u64, nanos: u64) {
                let mut vcpu = bound_on::<Clock, P>();
                put::<P>(Csr::Vsie, STIE);
                P::with(|cpu| cpu.set_time(7));
                run(&mut vcpu, move |guest| {
                    guest.set_reg(10, 7u64.saturating_add(ticks));
                    guest.set_reg(17, TIME);
                    exception(10, 0)
                });
                assert_eq!(vcpu.next_deadline(), Some(nanos), "{ticks} ticks");
                let host = vcpu.interrupt_at();
                assert!(host.is_none_or(|at| at == nanos), "{ticks} ticks: {host:?}");
                vcpu.unbind().unwrap();
            }
            Clock::machine().set_time($now);
            $(check::<Slow>($ticks, $nanos); check::<Fast>($ticks, $nanos);)*
        }
    )*};
}

conversions! {
    ticks_of_a_second: 1, 0, [(1, 1_000_000_000), (18_446_744_073, 18_446_744_073_000_000_000),
        (18_446_744_074, u64::MAX), (1 << 62, u64::MAX)];
    ticks_of_100_ns: 10_000_000, 50, [(1, 150), (1 << 32, 429_496_729_650), (1 << 62, u64::MAX)];
    ticks_of_a_nanosecond: 1_000_000_000, 9, [(1, 10), (1 << 40, (1 << 40) + 9)];
    ticks_that_are_no_whole_number_are_rounded_up: u32::MAX.into(), 0,
        [(1, 1), (4, 1), (5, 2), (u64::from(u32::MAX), 1_000_000_000),
         (u64::from(u32::MAX) + 1, 1_000_000_001)];
    a_clock_near_its_end_saturates: 10_000_000, u64::MAX - 50, [(1, u64::MAX), (1 << 40, u64::MAX)];
}
