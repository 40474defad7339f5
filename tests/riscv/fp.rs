//! Floating point: loaded when it is used, saved when it is dirty, nobody else's at any time.

use axvm::{
    arch::riscv64::{Csr, FpState},
    vcpu::{AxArchVCpu, Service, VcpuExit},
};
use axvm_testkit::MockHart;
use proptest::prelude::*;

use crate::support::*;

const LOADED: VcpuExit = VcpuExit::Served(Service::FloatingPoint);

/// How often the hart's registers were saved and loaded since the last call.
fn moves() -> (u64, u64) {
    Sstc::with(|cpu| std::mem::take(&mut cpu.fp_moves))
}

fn hart_fp() -> FpState {
    Sstc::with(|cpu| cpu.fp)
}

/// The guest uses floating point: the first time it comes out for that.
#[track_caller]
fn use_fp(vcpu: &mut Vcpu<Sstc>, act: impl FnOnce(&mut axvm_testkit::Guest<'_>) + Send + 'static) {
    let on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = on.clone();
    let exit = run(vcpu, move |guest| {
        told.store(guest.fp_is_on(), std::sync::atomic::Ordering::Relaxed);
        exception(2, 0)
    });
    assert_eq!(exit, LOADED);
    assert!(!on.load(std::sync::atomic::Ordering::Relaxed), "it was on before");
    run(vcpu, move |guest| {
        assert!(guest.fp_is_on());
        act(guest);
        interrupt(5)
    });
}

/// A vCPU whose guest has switched floating point on.
#[track_caller]
fn with_fp_on() -> Vcpu<Sstc> {
    let vcpu = bound::<Sstc>();
    put::<Sstc>(Csr::Vsstatus, FS_INITIAL);
    vcpu
}

#[test]
fn a_guest_without_floating_point_costs_nothing() {
    let mut vcpu = bound::<Sstc>();
    moves();
    for _ in 0..3 {
        assert_eq!(look(&mut vcpu).sstatus & FS, 0);
        vcpu.unbind().unwrap();
        bind(&mut vcpu);
    }
    assert_eq!(moves(), (0, 0));
}

/// Upstream: no FP at all.
#[test]
fn registers_are_loaded_once_and_saved_only_if_written() {
    put::<Sstc>(Csr::Sstatus, FS_CLEAN);
    let mut vcpu = with_fp_on();
    moves();
    use_fp(&mut vcpu, |guest| assert_eq!(guest.fp(7), 0, "at first it has zeros"));
    assert_eq!(moves(), (1, 1), "the host's saved, the guest's loaded");
    for _ in 0..3 {
        look(&mut vcpu);
    }
    assert_eq!(moves(), (0, 0));
    vcpu.unbind().unwrap();
    assert_eq!(moves(), (0, 1), "clean: only the host's are loaded");
    bind(&mut vcpu);
    use_fp(&mut vcpu, |guest| guest.set_fp(7, 0x77));
    moves();
    vcpu.unbind().unwrap();
    assert_eq!(moves(), (1, 1), "dirty");
    bind(&mut vcpu);
    use_fp(&mut vcpu, |guest| assert_eq!(guest.fp(7), 0x77));
    moves();
    vcpu.unbind().unwrap();
    assert_eq!(moves(), (0, 1), "clean again");
}

#[test]
fn a_host_without_floating_point_has_nothing_to_give_back() {
    let mut vcpu = with_fp_on();
    moves();
    use_fp(&mut vcpu, |guest| guest.set_fp(1, 1));
    assert_eq!(moves(), (0, 1));
    vcpu.unbind().unwrap();
    assert_eq!(moves(), (1, 0));
    assert_eq!(get::<Sstc>(Csr::Sstatus) & FS, 0);
}

#[test]
fn the_hosts_registers_come_back_and_cannot_be_touched_meanwhile() {
    let mut vcpu = with_fp_on();
    put::<Sstc>(Csr::Sstatus, FS_CLEAN);
    let host = hart_fp();
    use_fp(&mut vcpu, |guest| (0..32).for_each(|reg| guest.set_fp(reg, 0xbad)));
    assert_eq!(get::<Sstc>(Csr::Sstatus) & FS, 0, "Off: the host would trap");
    vcpu.unbind().unwrap();
    assert_eq!(hart_fp(), host);
    assert_eq!(get::<Sstc>(Csr::Sstatus) & FS, FS_CLEAN);
}

#[test]
fn a_second_guest_finds_its_own_registers() {
    let mut first = with_fp_on();
    use_fp(&mut first, |guest| (0..32).for_each(|reg| guest.set_fp(reg, 0x5ec2e7)));
    first.unbind().unwrap();
    let mut second = created::<Hal, Sstc>();
    bind(&mut second);
    put::<Sstc>(Csr::Vsstatus, FS_INITIAL);
    use_fp(&mut second, |guest| assert!((0..32).all(|reg| guest.fp(reg) == 0)));
}

#[test]
fn dirty_registers_follow_the_vcpu_to_another_hart() {
    let mut vcpu = with_fp_on();
    use_fp(&mut vcpu, |guest| guest.set_fp(31, 0x1234));
    vcpu.unbind().unwrap();
    axvm_testkit::on_pcpu(1, || {
        enable::<Hal, Sstc>();
        bind(&mut vcpu);
        use_fp(&mut vcpu, |guest| assert_eq!(guest.fp(31), 0x1234));
    });
}

#[test]
fn a_look_at_the_state_sees_dirty_registers_and_leaves_them() {
    let mut vcpu = with_fp_on();
    use_fp(&mut vcpu, |guest| guest.set_fp(2, 0x22));
    assert_eq!(vcpu.state().fp.regs[2], 0x22);
    assert_eq!(get::<Sstc>(Csr::Sstatus) & FS, 0);
    moves();
    assert_eq!(vcpu.state().fp.regs[2], 0x22);
    assert_eq!(moves(), (0, 0), "clean since the last look");
    run(&mut vcpu, |guest| {
        assert_eq!(guest.fp(2), 0x22);
        guest.set_fp(2, 0x33);
        interrupt(5)
    });
    assert_eq!(vcpu.state().fp.regs[2], 0x33);
    assert_eq!(get::<Sstc>(Csr::Vsstatus) & FS, FS, "the guest's own FS is the guest's");
}

#[test]
fn a_guest_that_switches_floating_point_off_gets_its_exception() {
    let mut vcpu = with_fp_on();
    use_fp(&mut vcpu, |guest| guest.set_fp(1, 1));
    put::<Sstc>(Csr::Vsstatus, 0);
    assert_eq!(run(&mut vcpu, |_| exception(2, 0x53)), VcpuExit::Served(Service::Exception));
    assert_eq!(get::<Sstc>(Csr::Vscause), 2);
}

/// What may happen to one of two vCPUs that share a hart with a host that computes.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Write(usize, u64),
    Read,
    Look,
    Leave,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (0usize..32, any::<u64>()).prop_map(|(reg, value)| Deed::Write(reg, value)),
        Just(Deed::Read),
        Just(Deed::Look),
        Just(Deed::Leave),
    ]
}

#[test]
fn nobody_ever_sees_anothers_registers() {
    proptest!(|(deeds in prop::collection::vec((0usize..2, deed()), 1..40), fs in 0u64..4)| {
        enable::<Hal, Sstc>();
        put::<Sstc>(Csr::Sstatus, fs << 13);
        let host = FpState { regs: [0x4057; 32], fcsr: 0x1f };
        Sstc::with(|cpu| cpu.fp = host);
        let mut vcpus = [created::<Hal, Sstc>(), created::<Hal, Sstc>()];
        let mut model = [[0u64; 32]; 2];
        let (mut on, mut used) = (None, false);
        for (who, deed) in deeds {
            let vcpu = &mut vcpus;
            if on != Some(who) {
                if let Some(other) = on.replace(who) {
                    vcpu[other].unbind().unwrap();
                }
                bind(&mut vcpu[who]);
                put::<Sstc>(Csr::Vsstatus, get::<Sstc>(Csr::Vsstatus) | FS_INITIAL);
                used = false;
            }
            let vcpu = &mut vcpus[who];
            if !used && matches!(deed, Deed::Read | Deed::Write(..)) {
                prop_assert_eq!(run(vcpu, |_| exception(2, 0)), LOADED);
                used = true;
            }
            match deed {
                Deed::Write(reg, value) => {
                    model[who][reg] = value;
                    run(vcpu, move |guest| {
                        guest.set_fp(reg, value);
                        interrupt(5)
                    });
                }
                Deed::Read => {
                    let want = model[who];
                    run(vcpu, move |guest| {
                        assert_eq!(guest.cpu.fp.regs, want);
                        interrupt(5)
                    });
                }
                Deed::Look => prop_assert_eq!(vcpu.state().fp.regs, model[who]),
                Deed::Leave => {
                    vcpu.unbind().unwrap();
                    on = None;
                    prop_assert_eq!(get::<Sstc>(Csr::Sstatus) & FS, fs << 13);
                    // With FS Off the registers are nobody's.
                    prop_assert!(fs == 0 || hart_fp() == host);
                }
            }
        }
        if let Some(last) = on {
            vcpus[last].unbind().unwrap();
        }
    });
}
