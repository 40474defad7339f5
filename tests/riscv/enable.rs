//! What harts have, and virtualization on and off.

use axerrno::AxErrorKind::{BadState, Unsupported};
use axvm::{
    arch::riscv64::{Csr, Features, Hart, RiscvPerCpu, is_supported},
    vcpu::{AxArchPerCpu, AxArchVCpu},
};
use axvm_testkit::{Flush, HartConfig, MockHal, MockHart, mock_hal, mock_hart, on_pcpu};

use crate::support::*;

/// What is found on a hart of this kind.
fn found<P: MockHart>() -> Option<Features> {
    P::machine().probe(&mut P::default())
}

#[test]
fn what_a_hart_has_is_found() {
    let all = Features { sstc: true, gstage_mode: 9, vmid_bits: 14, satp_mode: 10 };
    macro_rules! check {
        ($({ $($config:tt)* } => $want:expr,)*) => {$({
            mock_hart!(struct Kind on Hal { $($config)* });
            let want: Option<Features> = $want;
            assert_eq!(found::<Kind>(), want, stringify!($($config)*));
            assert_eq!(is_supported::<Kind>(), want.is_some());
            assert_eq!(Vcpu::<Kind>::has_hardware_support(), want.is_some());
            let bits = Vcpu::<Kind>::npt_geometry().map(|shape| shape.input_bits());
            let mode = want.ok_or(Unsupported.into());
            assert_eq!(bits, mode.map(|found| if found.gstage_mode == 9 { 50 } else { 41 }));
            let mut cpu = RiscvPerCpu::<Hal, Kind>::new(0).unwrap();
            assert_eq!(cpu.hardware_enable().is_ok(), want.is_some());
            assert_eq!(cpu.is_enabled(), want.is_some());
        })*};
    }
    check! {
        {} => Some(all),
        { hypervisor: false } => None,
        { sv48x4: false } => Some(Features { gstage_mode: 8, ..all }),
        { sv48x4: false, sv39x4: false } => None,
        { vmid_bits: 0 } => Some(Features { vmid_bits: 0, ..all }),
        { vmid_bits: 1 } => Some(Features { vmid_bits: 1, ..all }),
        { vmid_bits: 7 } => Some(Features { vmid_bits: 7, ..all }),
        { satp_mode: 9 } => Some(Features { satp_mode: 9, ..all }),
        { satp_mode: 8 } => Some(Features { satp_mode: 8, ..all }),
        { satp_mode: 0 } => None,
        { stce: false } => Some(Features { sstc: false, ..all }),
        // Firmware without Sstc, and a hart that has it, or that has only the bit of it.
        { vstimecmp: false } => Some(Features { sstc: false, ..all }),
        { stce: false, vstimecmp: false } => Some(Features { sstc: false, ..all }),
    }
}

#[test]
fn looking_changes_nothing() {
    mock_hart!(struct Kind on Hal {});
    let csrs = [Csr::Hgatp, Csr::Henvcfg, Csr::Vsatp, Csr::Hstatus, Csr::Sstatus];
    put::<Kind>(Csr::Hgatp, 8 << 60 | 3 << 44 | 0x1000);
    put::<Kind>(Csr::Vsatp, 9 << 60 | 0x77);
    put::<Kind>(Csr::Henvcfg, 1);
    let before = csrs.map(get::<Kind>);
    assert!(is_supported::<Kind>());
    assert_eq!(csrs.map(get::<Kind>), before);
}

#[test]
fn a_guest_is_confined_by_what_enabling_writes() {
    // At power-on the hart holds junk.
    put::<Sstc>(Csr::Htimedelta, 99);
    enable::<Hal, Sstc>();
    assert_eq!(get::<Sstc>(Csr::Hideleg), VSSI | VSTI | VSEI);
    let delegated = get::<Sstc>(Csr::Hedeleg);
    for own in [0, 1, 3, 4, 5, 6, 7, 8, 12, 13, 15] {
        assert_ne!(delegated & 1 << own, 0, "{own} needs no exit");
    }
    // Illegal instructions, calls, guest-page faults, virtual instructions.
    for ours in [2, 9, 10, 11, 20, 21, 22, 23] {
        assert_eq!(delegated & 1 << ours, 0, "{ours} is ours");
    }
    assert_eq!(get::<Sstc>(Csr::Hcounteren), 2, "time, and no other counter");
    assert_eq!(get::<Sstc>(Csr::Htimedelta), 0);
    assert_ne!(get::<Sstc>(Csr::Henvcfg) & STCE, 0);
    assert_eq!(get::<Sstc>(Csr::Vstimecmp), u64::MAX);
    assert_eq!([Csr::Hvip, Csr::Vsie, Csr::Hip].map(get::<Sstc>), [0; 3]);
    assert_eq!(get::<Sstc>(Csr::Hie) & (VSSI | VSTI | VSEI), 0, "the host can sleep");
}

#[test]
fn a_guest_without_sstc_does_not_get_it_from_a_hart_that_has_the_bit() {
    mock_hart!(struct Kind on Hal { vstimecmp: false });
    enable::<Hal, Kind>();
    assert_eq!(get::<Kind>(Csr::Henvcfg) & STCE, 0);
}

#[test]
fn virtualization_goes_on_and_off_and_on_again() {
    let off = [Csr::Hvip, Csr::Vsie, Csr::Hedeleg, Csr::Hideleg, Csr::Hcounteren, Csr::Hgatp];
    mock_hal!(struct Own { counter_hz: 10_000_000 });
    mock_hart!(struct Kind on Own {});
    let mut cpu = RiscvPerCpu::<Own, Kind>::new(0).unwrap();
    assert_eq!(cpu.hardware_disable(), Err(BadState.into()));
    for _ in 0..3 {
        assert!(!cpu.is_enabled());
        cpu.hardware_enable().unwrap();
        assert!(cpu.is_enabled());
        assert_eq!(cpu.hardware_enable(), Err(BadState.into()));
        let mut vcpu = created::<Own, Kind>();
        bind(&mut vcpu);
        assert_eq!(look(&mut vcpu).pc, ENTRY);
        vcpu.unbind().unwrap();
        Own::machine().tlb().take_log();
        cpu.hardware_disable().unwrap();
        assert_eq!(cpu.hardware_disable(), Err(BadState.into()));
        assert_eq!(off.map(get::<Kind>), [0; 6]);
        assert_eq!(get::<Kind>(Csr::Henvcfg) & STCE, 0);
        assert_eq!(Own::machine().tlb().take_log(), [(0, Flush::All)]);
    }
}

/// Every hart runs every vCPU. One that would ignore the mode of the page table would run guests
/// without one, in the host's memory.
#[test]
fn a_hart_that_lacks_what_the_first_one_had_is_refused_untouched() {
    mock_hart!(struct Kind on Hal {});
    enable::<Hal, Kind>();
    let all = HartConfig::DEFAULT;
    for (hart, config) in [
        HartConfig { hypervisor: false, ..all },
        HartConfig { sv48x4: false, ..all },
        HartConfig { sv39x4: false, sv48x4: false, ..all },
        HartConfig { satp_mode: 9, ..all },
        HartConfig { stce: false, ..all },
        HartConfig { vstimecmp: false, ..all },
    ]
    .into_iter()
    .enumerate()
    {
        on_pcpu(hart + 1, || {
            Kind::with(|cpu| cpu.config = config);
            let mut cpu = RiscvPerCpu::<Hal, Kind>::new(hart + 1).unwrap();
            assert_eq!(cpu.hardware_enable(), Err(Unsupported.into()), "{config:?}");
            assert!(!cpu.is_enabled());
            if config.hypervisor {
                let csrs = [Csr::Hedeleg, Csr::Hideleg, Csr::Hcounteren, Csr::Henvcfg];
                assert_eq!(csrs.map(get::<Kind>), [0; 4], "{config:?}");
            }
        });
    }
}

#[test]
fn a_hart_with_more_than_the_first_one_runs_what_the_first_one_runs() {
    mock_hart!(struct Kind on Hal { sv48x4: false, stce: false, satp_mode: 8 });
    enable::<Hal, Kind>();
    on_pcpu(1, || {
        Kind::with(|cpu| cpu.config = HartConfig::DEFAULT);
        let mut vcpu = bound_on::<Hal, Kind>();
        look(&mut vcpu);
        assert_eq!(get::<Kind>(Csr::Hgatp) >> 60, 8);
        assert_eq!(get::<Kind>(Csr::Henvcfg) & STCE, 0);
    });
}

#[test]
fn vmids_are_those_that_every_hart_has() {
    mock_hart!(struct Kind on Hal {});
    enable::<Hal, Kind>();
    on_pcpu(1, || {
        Kind::with(|cpu| cpu.config.vmid_bits = 2);
        enable::<Hal, Kind>();
    });
    let vmids = Kind::machine().hardware().vmids();
    let given: Vec<_> = (0..8).map(|_| vmids.allocate().id).collect();
    assert!(given.iter().all(|vmid| (1..4).contains(vmid)), "{given:?}");
}

#[test]
fn a_vcpu_is_not_bound_before_its_harts_are_known() {
    mock_hart!(struct Kind on Hal {});
    assert_eq!(created::<Hal, Kind>().bind(), Err(BadState.into()));
}

#[test]
fn a_frequency_that_the_host_does_not_tell_is_measured() {
    mock_hal!(struct Silent);
    mock_hart!(struct Kind on Silent {});
    assert_eq!(Kind::machine().known_frequency::<Silent>(), None);
    // Between two looks 2 ms pass, and 20 000 ticks: 10 MHz.
    Silent::machine().set_clock_step(2_000_000);
    Kind::with(|cpu| cpu.time_step = 20_000);
    enable::<Silent, Kind>();
    assert_eq!(Kind::machine().known_frequency::<Silent>(), Some(10_000_000));
    // Once: the next hart does not wait.
    Silent::machine().set_clock_step(0);
    on_pcpu(1, || enable::<Silent, Kind>());
}

#[test]
fn a_frequency_that_the_host_tells_is_not_measured() {
    mock_hart!(struct Kind on Hal {});
    assert_eq!(Kind::machine().known_frequency::<Hal>(), Some(10_000_000));
    enable::<Hal, Kind>();
    let touched = Kind::with(|cpu| cpu.take_touched());
    assert!(!touched.contains(&axvm_testkit::Touched::Read(Csr::Time)), "{touched:?}");
}
