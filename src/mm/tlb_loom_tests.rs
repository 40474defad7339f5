//! An unmap against a vCPU that enters, checked by loom in every order: no access hits a frame
//! that was freed.

use core::cell::Cell;

use loom::{
    sync::{Arc, atomic::AtomicBool, atomic::AtomicUsize, atomic::Ordering},
    thread,
};

use super::*;
use crate::vcpu::Hardware;

std::thread_local! {
    /// What this CPU's TLB holds: the frame behind the one page.
    static CACHED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A TLB that is emptied through the trait alone, on this CPU alone.
struct ThreadTlb;

impl NestedTlb for ThreadTlb {
    const BROADCAST: bool = false;

    fn flush_range(_: GuestTag, _: GpaRange) {
        CACHED.set(None);
    }

    fn flush_guest(_: GuestTag) {
        CACHED.set(None);
    }

    fn flush_all() {
        CACHED.set(None);
    }
}

const FRAME: usize = 7;

struct Guest {
    tlb: GuestTlb<ThreadTlb>,
    pte: AtomicUsize,
    freed: AtomicBool,
}

impl Guest {
    /// One time in the guest, with an access.
    fn enter(&self, cpus: &Hardware, vcpu: usize) {
        let entrant = self.tlb.entrant(vcpu, vcpu).unwrap();
        entrant.announce();
        entrant.enter(cpus);
        let cached = CACHED.get().or_else(|| {
            let entry = self.pte.load(Ordering::Relaxed);
            (entry != 0).then_some(entry)
        });
        CACHED.set(cached);
        if cached.is_some() {
            assert!(!self.freed.load(Ordering::Relaxed), "a freed frame is used");
        }
        entrant.leave();
    }

    /// Unmaps the page, and frees the frame when nobody can use it, at once or never.
    fn unmap(&self) {
        self.pte.store(0, Ordering::Relaxed);
        let page = GpaRange::new(0x1000.into(), 0x1000).unwrap();
        let ticket = self.tlb.invalidate(page);
        if self.tlb.is_reached(ticket) {
            self.freed.store(true, Ordering::Relaxed);
        }
    }
}

/// Each caller has CPUs of its own: VMIDs that another test takes would disturb loom.
fn model(entries: usize, cpus: &'static Hardware) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        // loom's threads may share one of the system's.
        let guest = Arc::new(Guest {
            tlb: GuestTlb::new(0.into(), 1),
            pte: AtomicUsize::new(FRAME),
            freed: AtomicBool::new(false),
        });
        CACHED.set(None);
        let unmapper = guest.clone();
        let thread = thread::spawn(move || unmapper.unmap());
        (0..entries).for_each(|_| guest.enter(cpus, 0));
        thread.join().unwrap();
        // Whoever enters from now on sees it.
        guest.enter(cpus, 0);
        assert_eq!(CACHED.get(), None);
        assert!(guest.tlb.all_reached());
    });
}

#[test]
fn loom_no_entry_uses_a_frame_that_an_unmap_freed() {
    static CPUS: Hardware = Hardware::new(16);
    model(1, &CPUS);
}

#[test]
fn loom_a_vcpu_that_comes_back_forgets_what_was_unmapped_meanwhile() {
    static CPUS: Hardware = Hardware::new(16);
    model(2, &CPUS);
}
