//! The registers that are switched when a vCPU is bound and unbound, and interrupts in them.

use axerrno::AxErrorKind::InvalidInput;
use axvm::{
    arch::riscv64::{Csr, GuestCsrs},
    irq::{HartIrqHw, IrqHw},
    mm::GuestPhysAddr,
    vcpu::{AxArchVCpu, GuestFence},
};
use axvm_testkit::MockHart;
use proptest::prelude::*;

use crate::support::*;

/// Values that the hart can hold.
pub fn any_csrs() -> impl Strategy<Value = GuestCsrs> {
    let first = (any::<[u64; 4]>(), any::<[u64; 4]>(), any::<[u64; 3]>());
    let mode = prop_oneof![Just(0u64), 8u64..=10];
    (first, mode).prop_map(|(([a, b, c, d], [e, f, g, h], [i, j, k]), mode)| GuestCsrs {
        vsstatus: status(a),
        vsie: b & 0x222,
        vstvec: c & !2,
        vsscratch: d,
        vsepc: e & !1,
        vscause: f,
        vstval: g,
        vsatp: mode << 60 | h & !(0xf << 60),
        hvip: i & (VSSI | VSEI),
        scounteren: j & 0xffff_ffff,
        senvcfg: k & 0xf1,
    })
}

/// A `vsstatus`: UXL is 2, and SD is set when FS or VS is Dirty.
fn status(any: u64) -> u64 {
    let value = any & (SIE | SPIE | SPP | FS | 3 << 9 | 3 << 18);
    let dirty = value & FS == FS || value & 3 << 9 == 3 << 9;
    value | 2 << 32 | if dirty { 1 << 63 } else { 0 }
}

fn fields(csrs: &GuestCsrs) -> [(Csr, u64); 11] {
    [
        (Csr::Vsstatus, csrs.vsstatus),
        (Csr::Vsie, csrs.vsie),
        (Csr::Vstvec, csrs.vstvec),
        (Csr::Vsscratch, csrs.vsscratch),
        (Csr::Vsepc, csrs.vsepc),
        (Csr::Vscause, csrs.vscause),
        (Csr::Vstval, csrs.vstval),
        (Csr::Vsatp, csrs.vsatp),
        (Csr::Hvip, csrs.hvip),
        (Csr::Scounteren, csrs.scounteren),
        (Csr::Senvcfg, csrs.senvcfg),
    ]
}

/// Has the guest write all its registers.
fn fill(vcpu: &mut Vcpu<Sstc>, csrs: GuestCsrs, timer: u64) {
    run(vcpu, move |guest| {
        fields(&csrs).into_iter().for_each(|(csr, value)| guest.cpu.put(csr, value));
        guest.cpu.put(Csr::Vstimecmp, timer);
        interrupt(5)
    });
}

/// The registers as the guest finds them.
#[track_caller]
fn find(vcpu: &mut Vcpu<Sstc>) -> ([(Csr, u64); 11], u64) {
    let (tell, told) = std::sync::mpsc::channel();
    run(vcpu, move |guest| {
        let found = fields(&GuestCsrs::default()).map(|(csr, _)| (csr, guest.cpu.get(csr)));
        tell.send((found, guest.cpu.get(Csr::Vstimecmp))).unwrap();
        interrupt(5)
    });
    told.recv().unwrap()
}

/// Upstream: the VS registers were not switched.
#[test]
fn registers_of_vcpus_that_take_turns_on_a_hart_never_mix() {
    proptest!(|(csrs in prop::collection::vec((any_csrs(), any::<u64>()), 2..4),
                turns in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
                host in any::<(u32, u64)>())| {
        enable::<Hal, Sstc>();
        put::<Sstc>(Csr::Scounteren, host.0.into());
        put::<Sstc>(Csr::Senvcfg, host.1);
        let host = [Csr::Scounteren, Csr::Senvcfg].map(get::<Sstc>);
        let mut vcpus: Vec<_> = csrs.iter().map(|_| created::<Hal, Sstc>()).collect();
        for (vcpu, (csrs, timer)) in vcpus.iter_mut().zip(&csrs) {
            bind(vcpu);
            fill(vcpu, *csrs, *timer);
            vcpu.unbind().unwrap();
        }
        for turn in turns {
            let turn = turn.index(vcpus.len());
            bind(&mut vcpus[turn]);
            let found = find(&mut vcpus[turn]);
            prop_assert_eq!(found, (fields(&csrs[turn].0), csrs[turn].1));
            vcpus[turn].unbind().unwrap();
            prop_assert_eq!([Csr::Scounteren, Csr::Senvcfg].map(get::<Sstc>), host);
        }
    });
}

#[test]
fn nothing_of_a_guest_keeps_the_host_from_sleeping() {
    let mut vcpu = bound::<Sstc>();
    let everything = GuestCsrs { vsie: 0x222, hvip: VSSI | VSTI | VSEI, ..GuestCsrs::default() };
    fill(&mut vcpu, everything, 0);
    vcpu.unbind().unwrap();
    assert_eq!([Csr::Hvip, Csr::Vsie].map(get::<Sstc>), [0, 0]);
    assert_eq!(get::<Sstc>(Csr::Hie) & (VSSI | VSTI | VSEI), 0);
    Sstc::with(|cpu| cpu.set_time(1 << 40));
    assert_eq!(get::<Sstc>(Csr::Hip), 0, "its timer is not due either");
}

/// The registers of the trap, and `sstatus`, are the host's: they survive a whole life of a guest.
#[test]
fn the_hosts_own_status_is_as_before() {
    for fs in [0, FS_INITIAL, FS_CLEAN, FS] {
        let mut vcpu = bound::<Sstc>();
        put::<Sstc>(Csr::Sstatus, fs | 1 << 18);
        let before = get::<Sstc>(Csr::Sstatus);
        put::<Sstc>(Csr::Vsstatus, FS_INITIAL);
        run(&mut vcpu, |_| exception(2, 0));
        run(&mut vcpu, |guest| {
            guest.set_fp(1, 1);
            interrupt(5)
        });
        vcpu.unbind().unwrap();
        assert_eq!(get::<Sstc>(Csr::Sstatus), before);
    }
}

#[test]
fn the_software_interrupt_is_the_one_that_can_be_injected() {
    let mut vcpu = bound::<Sstc>();
    vcpu.inject(1).unwrap();
    assert_eq!(get::<Sstc>(Csr::Hvip), VSSI);
    for other in (0..70).filter(|&irq| irq != 1).chain([usize::MAX]) {
        assert_eq!(vcpu.inject(other), Err(InvalidInput.into()), "{other}");
    }
    assert_eq!(get::<Sstc>(Csr::Hvip), VSSI);
    // The guest clears it; nobody raises it again.
    run(&mut vcpu, |guest| {
        guest.cpu.put(Csr::Hvip, 0);
        interrupt(5)
    });
    assert_eq!(get::<Sstc>(Csr::Hvip), 0);
}

#[test]
fn the_external_interrupt_follows_its_line() {
    let mut vcpu = bound::<Sstc>();
    vcpu.inject(1).unwrap();
    vcpu.set_external(true);
    vcpu.set_external(true);
    assert_eq!(get::<Sstc>(Csr::Hvip), VSSI | VSEI);
    vcpu.set_external(false);
    assert_eq!(get::<Sstc>(Csr::Hvip), VSSI);
}

#[test]
fn a_line_that_is_up_wakes_a_guest_that_wants_it() {
    for (bit, inject) in [(VSSI, true), (VSEI, false)] {
        let mut vcpu = bound::<Sstc>();
        assert!(!vcpu.has_wakeup());
        if inject {
            vcpu.inject(1).unwrap()
        } else {
            vcpu.set_external(true)
        }
        assert!(!vcpu.has_wakeup(), "not enabled");
        put::<Sstc>(Csr::Vsie, bit >> 1);
        // SIE does not count: WFI ends all the same (§12.3.3).
        assert!(vcpu.has_wakeup());
        put::<Sstc>(Csr::Vsie, 0x222 & !(bit >> 1));
        assert!(!vcpu.has_wakeup(), "another one is enabled");
        vcpu.unbind().unwrap();
    }
}

#[test]
fn a_vcpu_that_is_started_anew_keeps_nothing_but_the_external_line() {
    let mut vcpu = bound::<Sstc>();
    let csrs = GuestCsrs {
        vsstatus: SIE | SPP | FS,
        vsie: 0x222,
        vstvec: STVEC,
        vsscratch: 1,
        vsepc: 2,
        vscause: 3,
        vstval: 4,
        vsatp: 8 << 60 | 5,
        hvip: VSSI | VSTI | VSEI,
        scounteren: 7,
        senvcfg: 1,
    };
    fill(&mut vcpu, csrs, 99);
    run(&mut vcpu, |_| exception(2, 0));
    run(&mut vcpu, |guest| {
        guest.set_user(true);
        (1..32).for_each(|reg| guest.set_reg(reg, 1));
        guest.set_fp(3, 0x1234);
        interrupt(5)
    });
    vcpu.power_on(GuestPhysAddr::from_usize(0x8000_0000), 42).unwrap();
    let state = vcpu.state();
    let mut gprs = [0; 32];
    (gprs[A0], gprs[A1]) = (HART, 42);
    assert_eq!((state.gprs, state.pc, state.user), (gprs, 0x8000_0000, false));
    let fresh = GuestCsrs { vsstatus: 2 << 32, hvip: VSEI, ..GuestCsrs::default() };
    assert_eq!(state.csrs, fresh);
    assert_eq!(state.fp, Default::default());
    assert_eq!(state.timer, u64::MAX);
    assert_eq!((vcpu.next_deadline(), vcpu.interrupt_at()), (None, None));
    assert_eq!(look(&mut vcpu).sstatus & FS, 0, "floating point is loaded again when it is used");
}

#[test]
fn each_fence_is_the_one_that_was_asked_for() {
    let mut vcpu = bound::<Sstc>();
    vcpu.fence(GuestFence::Instructions);
    assert_eq!(Sstc::with(|cpu| cpu.fences), (1, 0));
    vcpu.fence(GuestFence::Translations);
    assert_eq!(Sstc::with(|cpu| cpu.fences), (1, 1));
    look(&mut vcpu);
    assert_eq!(Sstc::with(|cpu| cpu.fences), (1, 1), "none at an entry");
}
