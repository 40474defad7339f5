use super::*;
use crate::vcpu::CpuMask;
use std::{collections::HashSet, sync::Mutex, thread, vec, vec::Vec};

/// Remembers who was notified, once for each call.
#[derive(Default)]
struct Notes(Mutex<Vec<usize>>);

impl VcpuNotifier for Notes {
    fn notify(&self, vcpu: usize) {
        self.0.lock().unwrap().push(vcpu);
    }
}

/// Takes `room` interrupts, and none from `lacks` on.
struct Hw {
    room: usize,
    lacks: usize,
    taken: Vec<usize>,
}

impl IrqHw for Hw {
    fn inject(&mut self, vector: usize) -> AxResult {
        if vector >= self.lacks {
            return Err(AxError::InvalidInput);
        }
        self.room = self.room.checked_sub(1).ok_or(AxError::ResourceBusy)?;
        self.taken.push(vector);
        Ok(())
    }
}

fn hw(room: usize) -> Hw {
    Hw { room, lacks: usize::MAX, taken: vec![] }
}

fn direct(irqs: usize, priority: Priority) -> (DirectIrq, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    (DirectIrq::new(2, irqs, priority, notes.clone()).unwrap(), notes)
}

/// One entry; what was delivered, and whether more is to come.
fn entry(irq: &DirectIrq, vcpu: usize, room: usize) -> (Vec<usize>, bool) {
    let mut hw = hw(room);
    let state = irq.before_entry(vcpu, &mut hw).unwrap();
    assert!(!state.in_hardware);
    assert_eq!(state.more, InterruptController::<Hw>::pending(irq, vcpu));
    (hw.taken, state.more)
}

fn inject(irq: &DirectIrq, vcpu: usize, number: usize) -> AxResult {
    InterruptController::<Hw>::inject(irq, vcpu, number)
}

#[test]
fn the_best_goes_first_and_what_the_guest_cannot_take_stays_pending() {
    for (priority, order) in
        [(Priority::LowestFirst, [3, 70, 71, 1000]), (Priority::HighestFirst, [1000, 71, 70, 3])]
    {
        let (irq, _) = direct(1024, priority);
        for number in [70, 1000, 3, 71] {
            inject(&irq, 1, number).unwrap();
        }
        assert_eq!(entry(&irq, 0, 9), (vec![], false), "another vCPU's");
        assert_eq!(entry(&irq, 1, 0), (vec![], true));
        assert_eq!(entry(&irq, 1, 1), (vec![order[0]], true));
        assert_eq!(entry(&irq, 1, 9), (order[1..].to_vec(), false));
        assert_eq!(entry(&irq, 1, 9), (vec![], false), "delivered once");
    }
}

#[test]
fn a_number_or_a_vcpu_that_is_not_there_is_an_error() {
    let (irq, notes) = direct(256, Priority::HighestFirst);
    assert_eq!(inject(&irq, 0, 256), Err(AxError::InvalidInput));
    assert_eq!(inject(&irq, 0, usize::MAX), Err(AxError::InvalidInput));
    assert_eq!(inject(&irq, 2, 1), Err(AxError::NotFound));
    assert_eq!(irq.set_level(256, true), Err(AxError::InvalidInput));
    assert_eq!(irq.before_entry(2, &mut hw(1)), Err(AxError::NotFound));
    assert!(notes.0.lock().unwrap().is_empty());
    let too_many = DirectIrq::new(1, MAX_IRQS + 1, Priority::LowestFirst, notes.clone());
    assert_eq!(too_many.err(), Some(AxError::InvalidInput));
    let no_vcpu = DirectIrq::new(0, 1, Priority::LowestFirst, notes);
    assert_eq!(no_vcpu.err(), Some(AxError::InvalidInput));
}

#[test]
fn a_number_that_the_architecture_lacks_is_dropped_and_holds_up_nothing() {
    let (irq, _) = direct(1024, Priority::HighestFirst);
    irq.pulse(300).unwrap();
    irq.pulse(40).unwrap();
    let mut hw = Hw { lacks: 256, ..hw(9) };
    assert_eq!(irq.before_entry(0, &mut hw), Ok(EntryState::default()));
    assert_eq!(hw.taken, [40]);
}

#[test]
fn an_error_of_the_hardware_loses_nothing() {
    struct Broken;
    impl IrqHw for Broken {
        fn inject(&mut self, _: usize) -> AxResult {
            Err(AxError::Io)
        }
    }
    let (irq, _) = direct(64, Priority::LowestFirst);
    irq.pulse(7).unwrap();
    assert_eq!(irq.before_entry(0, &mut Broken), Err(AxError::Io));
    assert_eq!(entry(&irq, 0, 9), (vec![7], false));
}

#[test]
fn a_level_is_delivered_while_it_is_asserted_and_notified_when_it_rises() {
    let (irq, notes) = direct(64, Priority::LowestFirst);
    irq.set_level(9, true).unwrap();
    irq.set_level(9, true).unwrap();
    for _ in 0..3 {
        assert_eq!(entry(&irq, 0, 9), (vec![9], true));
    }
    irq.set_level(9, false).unwrap();
    assert_eq!(entry(&irq, 0, 9), (vec![], false));
    assert_eq!(*notes.0.lock().unwrap(), [0]);
}

#[test]
fn reset_forgets_edges_and_keeps_the_levels_that_devices_drive() {
    let (irq, _) = direct(64, Priority::LowestFirst);
    irq.pulse(1).unwrap();
    irq.set_level(2, true).unwrap();
    InterruptController::<Hw>::reset(&irq);
    assert_eq!(entry(&irq, 0, 9), (vec![2], true));
}

#[test]
fn every_injection_notifies_its_vcpu_after_it_is_pending() {
    struct Watch(Mutex<Option<Arc<DirectIrq>>>, Mutex<CpuMask>);
    impl VcpuNotifier for Watch {
        fn notify(&self, vcpu: usize) {
            let irq = self.0.lock().unwrap();
            assert!(InterruptController::<Hw>::pending(&**irq.as_ref().unwrap(), vcpu));
            *self.1.lock().unwrap() = vcpu.into();
        }
    }
    let watch = Arc::new(Watch(Mutex::new(None), Mutex::default()));
    let irq = DirectIrq::new(2, 64, Priority::LowestFirst, watch.clone()).unwrap();
    let irq = Arc::new(irq);
    *watch.0.lock().unwrap() = Some(irq.clone());
    inject(&irq, 1, 5).unwrap();
    assert_eq!(*watch.1.lock().unwrap(), CpuMask::one(1));
    *watch.0.lock().unwrap() = None;
}

#[test]
fn an_interrupt_from_any_thread_is_delivered_exactly_once() {
    const THREADS: usize = 4;
    const EACH: usize = MAX_IRQS / THREADS;
    for round in 0..20 {
        let (irq, _) = direct(MAX_IRQS, Priority::HighestFirst);
        let mut delivered = vec![];
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let irq = &irq;
                scope.spawn(move || {
                    for number in 0..EACH {
                        inject(irq, 1, number * THREADS + thread).unwrap();
                    }
                });
            }
            let mut idle = 0;
            while delivered.len() < MAX_IRQS && idle < 1_000_000 {
                // Room for few: most of them are put back, while others come.
                let (taken, _) = entry_unchecked(&irq, 1, 1 + round % 3);
                idle = if taken.is_empty() { idle + 1 } else { 0 };
                delivered.extend(taken);
            }
        });
        delivered.extend(entry(&irq, 1, usize::MAX).0);
        assert_eq!(delivered.len(), MAX_IRQS);
        assert_eq!(delivered.iter().collect::<HashSet<_>>().len(), MAX_IRQS);
    }
}

/// Like `entry`, while others inject.
fn entry_unchecked(irq: &DirectIrq, vcpu: usize, room: usize) -> (Vec<usize>, bool) {
    let mut hw = hw(room);
    let state = irq.before_entry(vcpu, &mut hw).unwrap();
    (hw.taken, state.more)
}
