//! Entries against changes, and claims against each other, checked by loom in every order.

use super::*;
use crate::{device::BaseDeviceOps, irq::IrqHw, vcpu::AccessWidth};
use loom::thread;

/// Who was notified and has not looked yet. (Only read-modify-writes: loom does not order a store
/// after the swap that did not see it.)
#[derive(Default)]
struct Notes([AtomicBool; 2]);

impl VcpuNotifier for Notes {
    fn notify(&self, vcpu: usize) {
        self.0[vcpu].swap(true, Ordering::AcqRel);
    }
}

struct Hw {
    external: bool,
}

impl IrqHw for Hw {
    fn inject(&mut self, _: usize) -> AxResult {
        Ok(())
    }
}

impl HartIrqHw for Hw {
    fn set_external(&mut self, high: bool) {
        self.external = high;
    }
}

fn write(plic: &VPlic, offset: usize, value: usize) {
    plic.handle_write(offset.into(), AccessWidth::Dword, value).unwrap();
}

fn claim(plic: &VPlic, vcpu: usize) -> usize {
    plic.handle_read((0x20_1004 + 0x2000 * vcpu).into(), AccessWidth::Dword).unwrap()
}

fn complete(plic: &VPlic, vcpu: usize, source: usize) {
    write(plic, 0x20_1004 + 0x2000 * vcpu, source);
}

/// One source, of priority 1 and enabled for each vCPU.
fn plic(vcpus: usize) -> (Arc<VPlic>, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let plic = VPlic::new(0.into(), 1, vcpus, notes.clone()).unwrap();
    write(&plic, 4, 1);
    (0..vcpus).for_each(|vcpu| write(&plic, 0x2080 + 0x100 * vcpu, 2));
    (Arc::new(plic), notes)
}

/// An entry of vCPU 0: the notification is taken first.
fn enter(plic: &VPlic, notes: &Notes, hw: &mut Hw) {
    notes.0[0].swap(false, Ordering::AcqRel);
    plic.before_entry(0, hw).unwrap();
}

/// When everybody is done, vCPU 0's hardware has the right level, or the vCPU is notified.
fn nothing_is_lost(plic: &VPlic, notes: &Notes, hw: &mut Hw, expected: bool) {
    assert!(hw.external == expected || notes.0[0].load(Ordering::Acquire), "nobody tells it");
    enter(plic, notes, hw);
    assert_eq!(hw.external, expected);
}

#[test]
fn loom_a_level_that_rises_while_its_vcpu_enters_is_given_or_told() {
    loom::model(|| {
        let (plic, notes) = plic(1);
        let device = plic.clone();
        let thread = thread::spawn(move || device.set_level(1, true).unwrap());
        let mut hw = Hw { external: false };
        enter(&plic, &notes, &mut hw);
        thread.join().unwrap();
        nothing_is_lost(&plic, &notes, &mut hw, true);
    });
}

#[test]
fn loom_a_level_that_another_vcpu_takes_away_while_its_vcpu_enters_is_given_or_told() {
    loom::model(|| {
        let (plic, notes) = plic(2);
        plic.set_level(1, true).unwrap();
        let other = plic.clone();
        let thread = thread::spawn(move || assert_eq!(claim(&other, 1), 1));
        let mut hw = Hw { external: false };
        enter(&plic, &notes, &mut hw);
        thread.join().unwrap();
        nothing_is_lost(&plic, &notes, &mut hw, false);
    });
}

#[test]
fn loom_two_changes_that_matter_only_together_are_given_or_told() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let (plic, notes) = plic(1);
        write(&plic, 0x2080, 0);
        let changes = [
            |plic: &VPlic| plic.set_level(1, true).unwrap(),
            |plic: &VPlic| {
                write(plic, 0x2080, 2);
            },
        ];
        let threads = changes.map(|change| {
            let plic = plic.clone();
            thread::spawn(move || change(&plic))
        });
        let mut hw = Hw { external: false };
        enter(&plic, &notes, &mut hw);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        nothing_is_lost(&plic, &notes, &mut hw, true);
    });
}

#[test]
fn loom_of_two_claims_one_gets_the_request() {
    loom::model(|| {
        let (plic, _) = plic(2);
        plic.set_level(1, true).unwrap();
        let other = plic.clone();
        let thread = thread::spawn(move || claim(&other, 1));
        let claims = claim(&plic, 0) + thread.join().unwrap();
        assert_eq!(claims, 1);
    });
}

#[test]
fn loom_a_level_that_is_high_in_the_end_is_pending_or_in_service() {
    loom::model(|| {
        let (plic, _) = plic(1);
        plic.set_level(1, true).unwrap();
        let device = plic.clone();
        let thread = thread::spawn(move || {
            device.set_level(1, false).unwrap();
            device.set_level(1, true).unwrap();
        });
        assert_eq!(claim(&plic, 0), 1);
        complete(&plic, 0, 1);
        thread.join().unwrap();
        assert_eq!(plic.pending_word(0), 2);
    });
}

#[test]
fn loom_an_edge_during_service_follows_the_completion_once() {
    loom::model(|| {
        let (plic, _) = plic(1);
        plic.pulse(1).unwrap();
        assert_eq!(claim(&plic, 0), 1);
        let device = plic.clone();
        let thread = thread::spawn(move || device.pulse(1).unwrap());
        complete(&plic, 0, 1);
        thread.join().unwrap();
        assert_eq!(claim(&plic, 0), 1);
        complete(&plic, 0, 1);
        assert_eq!(claim(&plic, 0), 0);
    });
}
