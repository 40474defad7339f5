//! The lifecycle, and fences of other vCPUs, checked by loom in every order.

use loom::{sync::Arc, thread};

use super::EndReason;
use super::lifecycle::{Lifecycle, VMStatus};
use crate::{
    arch::NoTlb,
    mm::tlb::GuestTlb,
    sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
    vcpu::{Attention, Hardware},
};

fn two<R: 'static>(
    shared: &Arc<Lifecycle>,
    first: fn(&Lifecycle) -> R,
    second: fn(&Lifecycle) -> R,
) -> (R, R) {
    let other = shared.clone();
    let thread = thread::spawn(move || second(&other));
    let mine = first(shared);
    (mine, thread.join().unwrap())
}

fn boot(state: &Lifecycle) -> bool {
    state.begin_boot().and_then(|()| state.finish_boot()).is_ok()
}

fn shut_down(state: &Lifecycle) -> bool {
    state.shut_down(EndReason::Host).is_ok()
}

#[test]
fn loom_of_two_boots_one_succeeds() {
    loom::model(|| {
        let state = Arc::new(Lifecycle::new());
        let (a, b) = two(&state, boot, boot);
        assert!(a != b && state.status() == VMStatus::Running);
    });
}

#[test]
fn loom_of_two_shutdowns_one_succeeds() {
    loom::model(|| {
        let state = Arc::new(Lifecycle::new());
        assert!(boot(&state));
        let (a, b) = two(&state, shut_down, shut_down);
        assert!(a != b && state.status() == VMStatus::ShuttingDown);
    });
}

#[test]
fn loom_a_shutdown_that_meets_a_boot_wins() {
    loom::model(|| {
        let state = Arc::new(Lifecycle::new());
        let (_, shut) = two(&state, boot, shut_down);
        assert!(shut && state.status() == VMStatus::ShuttingDown);
        assert_eq!(state.end_reason(), Some(EndReason::Host));
    });
}

#[test]
fn loom_a_reset_and_a_shutdown_do_not_mix() {
    loom::model(|| {
        let state = Arc::new(Lifecycle::new());
        let reset = |state: &Lifecycle| {
            let begun = state.begin_reset().is_ok();
            if begun {
                state.finish_reset(VMStatus::Created);
            }
            begun
        };
        let (reset, shut) = two(&state, reset, shut_down);
        assert!(reset || shut);
        let want = if shut { VMStatus::ShuttingDown } else { VMStatus::Created };
        assert_eq!(state.status(), want);
    });
}

/// `AxVM::shutdown` and `AxVM::terminate_if_empty` against vCPUs that come and go, with the
/// vCPU's state as a claim sets it: whatever the order, the VM ends terminated, and no vCPU is in
/// the guest then.
#[test]
fn loom_the_last_one_out_terminates() {
    struct Vm {
        state: Lifecycle,
        bound: [AtomicU8; 2],
    }
    fn terminate_if_empty(vm: &Vm) {
        fence(Ordering::SeqCst);
        if vm.state.status() != VMStatus::ShuttingDown {
            return;
        }
        fence(Ordering::SeqCst);
        if vm.bound.iter().all(|bound| bound.load(Ordering::Acquire) == 0) {
            let _ = vm.state.terminate();
        }
    }
    fn run(vm: &Vm, vcpu: usize) {
        let claimed = vm.bound[vcpu].compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        claimed.unwrap();
        fence(Ordering::SeqCst);
        if vm.state.status() == VMStatus::Running {
            assert_ne!(vm.state.status(), VMStatus::Terminated, "in the guest");
        }
        vm.bound[vcpu].store(0, Ordering::Release);
        terminate_if_empty(vm);
    }
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let bound = [AtomicU8::new(0), AtomicU8::new(0)];
        let vm = Arc::new(Vm { state: Lifecycle::new(), bound });
        assert!(boot(&vm.state));
        let threads = [0, 1].map(|vcpu| {
            let vm = vm.clone();
            thread::spawn(move || run(&vm, vcpu))
        });
        vm.state.shut_down(EndReason::Host).unwrap();
        terminate_if_empty(&vm);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(vm.state.status(), VMStatus::Terminated);
    });
}

static HARDWARE: Hardware = Hardware::new(4);

/// A guest that changed something that its vCPU 0 may have cached.
struct Fenced {
    tlb: GuestTlb<NoTlb>,
    attention: Attention,
    /// What the guest's page tables say.
    mapping: AtomicUsize,
    /// The call to fence has returned.
    returned: AtomicBool,
}

const OLD: usize = 1;
const NEW: usize = 2;

impl Fenced {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tlb: GuestTlb::new(0.into(), 1),
            attention: Attention::new(),
            mapping: AtomicUsize::new(OLD),
            returned: AtomicBool::new(false),
        })
    }

    /// `AxVM::remote_fence`, by a vCPU that is outside.
    fn call(&self, reason: u32) {
        self.attention.raise_quietly(reason);
        fence(Ordering::SeqCst);
        while self.attention.waits(reason) && self.tlb.inside(0).is_some() {
            thread::yield_now();
        }
    }

    /// `AxVM::enter`, with so many instructions in the guest.
    fn enter(&self, cached: &mut Option<usize>, instructions: usize) {
        let entrant = self.tlb.entrant(0, 0).unwrap();
        let mut fences = 0;
        loop {
            fences |= self.attention.take() & Attention::FENCES;
            entrant.announce();
            if !self.attention.is_raised() {
                break;
            }
            entrant.leave();
        }
        entrant.enter(&HARDWARE);
        if fences & Attention::FENCE_TRANSLATIONS != 0 {
            *cached = None;
        }
        for _ in 0..instructions {
            // Looked at first: what is executed now is executed after the return.
            let returned = self.returned.load(Ordering::Acquire);
            let used = *cached.get_or_insert_with(|| self.mapping.load(Ordering::Relaxed));
            assert!(!returned || used == NEW, "executed with what was to be forgotten");
        }
        entrant.leave();
    }
}

/// A caller against a target that comes and goes.
#[test]
fn loom_a_fence_that_returned_is_done_before_the_target_executes_another_instruction() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let guest = Fenced::new();
        let target = {
            let guest = guest.clone();
            thread::spawn(move || {
                let mut cached = None;
                guest.enter(&mut cached, 2);
                guest.enter(&mut cached, 1);
            })
        };
        guest.mapping.store(NEW, Ordering::Relaxed);
        guest.call(Attention::FENCE_TRANSLATIONS);
        guest.returned.store(true, Ordering::Release);
        target.join().unwrap();
    });
}

/// Another caller raises the same reason meanwhile: taken for the one, it counts for both.
#[test]
fn loom_of_two_fences_at_once_neither_returns_early() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let guest = Fenced::new();
        let other = {
            let guest = guest.clone();
            thread::spawn(move || guest.attention.raise_quietly(Attention::FENCE_TRANSLATIONS))
        };
        let target = {
            let guest = guest.clone();
            thread::spawn(move || {
                // From an entry before.
                guest.enter(&mut Some(OLD), 1);
            })
        };
        guest.mapping.store(NEW, Ordering::Relaxed);
        guest.call(Attention::FENCE_TRANSLATIONS);
        guest.returned.store(true, Ordering::Release);
        other.join().unwrap();
        target.join().unwrap();
    });
}
