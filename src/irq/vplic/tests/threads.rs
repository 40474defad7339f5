//! Several vCPUs and devices at once, on real threads.

use super::*;
use crate::sync::atomic::AtomicU64;
use std::{array, sync::atomic::AtomicBool as StdBool};

/// A device whose wire is high while it has work; vCPUs that claim, do the work and complete.
#[test]
fn no_level_is_lost_and_no_source_is_in_service_twice() {
    const SOURCES: usize = 20;
    const HARTS: usize = 3;
    const EACH: u64 = 2000;

    /// One flag for each hart, as a vCPU's attention is.
    struct Flags([StdBool; HARTS]);
    impl VcpuNotifier for Flags {
        fn notify(&self, vcpu: usize) {
            self.0[vcpu].store(true, Ordering::SeqCst);
        }
    }

    let flags = Arc::new(Flags(array::from_fn(|_| StdBool::new(false))));
    let plic = VPlic::new(BASE.into(), SOURCES as u32, HARTS, flags.clone()).unwrap();
    for source in 1..=SOURCES {
        plic.put_priority(source, 1 + source % 7);
        (0..HARTS).for_each(|hart| plic.enable(hart, source));
    }
    // Work that is there and work that was done; the wire is changed under the device's lock.
    let work: [Mutex<u64>; SOURCES] = array::from_fn(|_| Mutex::new(0));
    let in_service: [StdBool; SOURCES] = array::from_fn(|_| StdBool::new(false));
    let done = AtomicU64::new(0);
    let total = EACH * SOURCES as u64;
    thread::scope(|scope| {
        for half in 0..2 {
            let (plic, work) = (&plic, &work);
            scope.spawn(move || {
                for round in 0..EACH {
                    for index in (half..SOURCES).step_by(2) {
                        let mut work = work[index].lock().unwrap();
                        *work += 1;
                        plic.set_level(index + 1, true).unwrap();
                    }
                    if round % 64 == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        for hart in 0..HARTS {
            let (plic, work, in_service, done, flags) = (&plic, &work, &in_service, &done, &flags);
            scope.spawn(move || {
                let mut hw = Hw::default();
                let mut idle = 0u64;
                while done.load(Ordering::Acquire) < total {
                    // Asleep until notified, as a vCPU that waits for an interrupt.
                    if flags.0[hart].swap(false, Ordering::SeqCst) {
                        plic.before_entry(hart, &mut hw).unwrap();
                    }
                    let source = if hw.external { plic.get_claim(hart) } else { 0 };
                    if source == 0 {
                        idle += 1;
                        assert!(idle < 50_000_000, "asleep for ever: {:?}", plic.state());
                        thread::yield_now();
                        continue;
                    }
                    idle = 0;
                    let index = source - 1;
                    assert!(!in_service[index].swap(true, Ordering::SeqCst), "{source} twice");
                    {
                        let mut work = work[index].lock().unwrap();
                        done.fetch_add(std::mem::take(&mut *work), Ordering::AcqRel);
                        plic.set_level(source, false).unwrap();
                    }
                    assert!(in_service[index].swap(false, Ordering::SeqCst));
                    plic.put_complete(hart, source);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Acquire), total);
}
