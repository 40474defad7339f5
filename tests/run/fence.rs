//! Fences of other vCPUs: whoever is meant has forgotten before the call returns, or does before it
//! executes another instruction.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use axerrno::AxError;
use axvm::vcpu::{AxVCpuExitReason, CpuMask, GuestFence, IpiTargets, VcpuExit};
use axvm_testkit::{
    Call, Event, KICK_VECTOR, MockHal, Record, Step, TestVm, VM, mock_hal, on_pcpu, test_config,
};

use crate::support::{HALT, play, run_at_home, start, start_at_home, start_vcpu};

mock_hal!(struct Hal { arena: 4 << 20 });

const INSTRUCTIONS: Event = Event::Fence(GuestFence::Instructions);

fn fence(targets: IpiTargets, fence: GuestFence) -> Step {
    Step::Exit(VcpuExit::RemoteFence { targets, fence })
}

fn set(bits: u64) -> IpiTargets {
    IpiTargets::Set(CpuMask::from_bits(bits))
}

/// The entries, exits and fences of instructions of a vCPU, since the last call.
fn course(vcpu: usize) -> Vec<Event> {
    let matters = |record: Record| match record.event {
        Event::Enter | Event::Exit(_) | INSTRUCTIONS if record.vcpu == vcpu => Some(record.event),
        _ => None,
    };
    Hal::machine().take_trace().into_iter().filter_map(matters).collect()
}

/// Runs a vCPU to its halt; it fences before it enters, once.
#[track_caller]
fn fences_first(vm: &TestVm<Hal>, vcpu: usize) {
    Hal::machine().take_trace();
    assert_eq!(run_at_home(vm, vcpu), HALT);
    assert_eq!(course(vcpu), [INSTRUCTIONS, Event::Enter, Event::Exit(VcpuExit::Halt)]);
    assert_eq!(run_at_home(vm, vcpu), HALT);
    assert_eq!(course(vcpu), [Event::Enter, Event::Exit(VcpuExit::Halt)]);
}

#[test]
fn a_target_in_the_guest_is_out_before_the_call_returns_and_fences_before_it_goes_on() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    start_at_home(&vm, 1..2);
    for _ in 0..50 {
        Hal::machine().program(VM, 1).push(Step::SpinUntilKicked);
        Hal::machine().take_trace();
        std::thread::scope(|scope| {
            let target = scope.spawn(|| on_pcpu(1, || (vm.run_vcpu(1), vm.run_vcpu(1))));
            Hal::machine().wait_in_guest(VM, 1);
            play(&vm, [fence(IpiTargets::AllButSelf, GuestFence::Instructions)]);
            let kicked = Ok(AxVCpuExitReason::ExternalInterrupt { vector: KICK_VECTOR });
            assert_eq!(target.join().unwrap(), (kicked, HALT));
        });
        assert_eq!(Hal::machine().take_kicks(), [1]);
        let trace = Hal::machine().trace();
        let at = |vcpu, wanted: fn(Event) -> bool| {
            trace.iter().position(|r| r.vcpu == vcpu && wanted(r.event)).unwrap()
        };
        let left = at(1, |event| matches!(event, Event::Exit(_)));
        assert!(left < at(0, |event| matches!(event, Event::Complete(_))));
        let kick = Event::Exit(VcpuExit::ExternalInterrupt { vector: KICK_VECTOR });
        let halt = Event::Exit(VcpuExit::Halt);
        assert_eq!(course(1), [Event::Enter, kick, INSTRUCTIONS, Event::Enter, halt]);
    }
}

#[test]
fn a_sleeping_target_sleeps_on_and_fences_before_its_next_entry() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    start_at_home(&vm, 1..2);
    // Often, it is still one fence.
    for _ in 0..3 {
        play(&vm, [fence(set(0b10), GuestFence::Instructions)]);
    }
    assert_eq!((Hal::machine().take_wakes(), Hal::machine().take_kicks()), (vec![], vec![]));
    assert!(!vm.has_work(1), "nothing to run it for");
    vm.inject_interrupt_to_vcpu(1, 40).unwrap();
    assert_eq!(Hal::machine().take_wakes(), [(VM, 1)], "the fence did not end its sleep");
    fences_first(&vm, 1);
}

#[test]
fn a_target_that_is_off_fences_when_it_begins() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    start_at_home(&vm, 1..2);
    Hal::machine().program(VM, 1).push(Step::Exit(VcpuExit::CpuDown));
    assert_eq!(run_at_home(&vm, 1), Ok(AxVCpuExitReason::CpuDown));
    play(&vm, [fence(set(0b10), GuestFence::Instructions)]);
    start_vcpu(&vm, 1, 1);
    fences_first(&vm, 1);
}

#[test]
fn a_caller_that_means_itself_fences_at_once_and_others_only_if_meant() {
    let (vm, _turn) = start::<Hal>(test_config(3));
    start_at_home(&vm, 1..3);
    for (targets, want) in [
        (IpiTargets::Itself, [1, 0, 0]),
        (IpiTargets::All, [1, 1, 1]),
        (IpiTargets::AllButSelf, [0, 1, 1]),
        (set(0b101), [1, 0, 1]),
        (set(0), [0, 0, 0]),
        // What does not exist gets nothing.
        (set(!0b111), [0, 0, 0]),
        (IpiTargets::Named { base: 1, mask: 0b11 }, [0, 1, 1]),
    ] {
        Hal::machine().take_trace();
        play(&vm, [fence(targets, GuestFence::Instructions)]);
        assert_eq!((run_at_home(&vm, 1), run_at_home(&vm, 2)), (HALT, HALT));
        let count = |vcpu| {
            let events = Hal::machine().events(VM, vcpu);
            events.into_iter().filter(|&event| event == INSTRUCTIONS).count()
        };
        assert_eq!([0, 1, 2].map(count), want, "{targets:?}");
    }
}

#[test]
fn instructions_and_translations_are_forgotten_as_asked() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    // The first entry on this CPU.
    play(&vm, []);
    for what in [GuestFence::Instructions, GuestFence::Translations] {
        Hal::machine().take_trace();
        play(&vm, [fence(IpiTargets::All, what)]);
        let events = Hal::machine().events(VM, 0).into_iter();
        let fences: Vec<_> = events.filter(|event| matches!(event, Event::Fence(_))).collect();
        assert_eq!(fences, [Event::Fence(what)]);
    }
}

#[test]
fn an_error_on_the_way_in_loses_no_fence() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    start_at_home(&vm, 1..2);
    for call in [Call::Bind, Call::Inject] {
        play(&vm, [fence(set(0b10), GuestFence::Instructions)]);
        vm.inject_interrupt_to_vcpu(1, 40).unwrap();
        for _ in 0..3 {
            Hal::machine().fail_next(call, AxError::Io);
            assert_eq!(run_at_home(&vm, 1), Err(AxError::Io), "{call:?}");
        }
        fences_first(&vm, 1);
    }
    // What fails behind the fence has fenced.
    play(&vm, [fence(set(0b10), GuestFence::Instructions)]);
    Hal::machine().fail_next(Call::Run, AxError::Io);
    assert_eq!(run_at_home(&vm, 1), Err(AxError::Io));
    let fences = Hal::machine().events(VM, 1).into_iter().filter(|&event| event == INSTRUCTIONS);
    assert_eq!(fences.count(), 1);
    Hal::machine().take_trace();
    assert_eq!(run_at_home(&vm, 1), HALT);
    assert!(!Hal::machine().events(VM, 1).contains(&INSTRUCTIONS));
}

/// A guest whose vCPUs change something that all cache, fence each other, and find that nobody
/// who was fenced uses what it cached before.
struct Race {
    /// What the page tables say.
    version: AtomicU64,
    /// What each vCPU must know at least.
    known: Vec<AtomicU64>,
    calls: AtomicUsize,
}

impl Race {
    fn guest(self: &Arc<Self>, own: usize, calls: usize) -> Step {
        let race = self.clone();
        let (mut cached, mut fences, mut turn) = (0, None, own);
        let mut called: Option<(u64, CpuMask)> = None;
        Step::guest(move |guest| {
            if let Some((version, targets)) = called.take() {
                for target in targets.iter() {
                    race.known[target].fetch_max(version, SeqCst);
                }
            }
            // A cache that is filled once after each fence, and used until the next.
            if fences != Some(guest.fences.instructions) {
                fences = Some(guest.fences.instructions);
                cached = race.version.load(SeqCst);
            }
            for _ in 0..20 {
                let known = race.known[own].load(SeqCst);
                assert!(cached >= known, "vCPU {own} uses {cached}, was fenced at {known}");
                std::hint::spin_loop();
            }
            turn += 1;
            if race.calls.load(SeqCst) >= calls || turn % 7 == 0 {
                return VcpuExit::Halt;
            }
            if turn % 3 != 0 {
                return VcpuExit::Nothing;
            }
            race.calls.fetch_add(1, SeqCst);
            let all = CpuMask::first(race.known.len());
            let (targets, mask) = match turn / 3 % 3 {
                0 => (IpiTargets::All, all),
                1 => (IpiTargets::AllButSelf, all.minus(CpuMask::one(own))),
                _ => (set(0b101), CpuMask::from_bits(0b101)),
            };
            called = Some((race.version.fetch_add(1, SeqCst) + 1, mask));
            VcpuExit::RemoteFence { targets, fence: GuestFence::Instructions }
        })
    }
}

#[test]
fn vcpus_that_fence_each_other_all_the_time_neither_miss_a_fence_nor_wait_for_ever() {
    const CALLS: usize = 20_000;
    let (vm, _turn) = start::<Hal>(test_config(3));
    (1..3).for_each(|vcpu| start_vcpu(&vm, vcpu, vcpu));
    Hal::machine().set_tracing(false);
    let race = Arc::new(Race {
        version: AtomicU64::new(0),
        known: (0..3).map(|_| AtomicU64::new(0)).collect(),
        calls: AtomicUsize::new(0),
    });
    for vcpu in 0..3 {
        Hal::machine().program(VM, vcpu).push(race.guest(vcpu, CALLS));
    }
    std::thread::scope(|scope| {
        for vcpu in 0..3 {
            let (vm, race) = (&vm, &race);
            scope.spawn(move || {
                on_pcpu(vcpu, || {
                    while race.calls.load(SeqCst) < CALLS {
                        match vm.run_vcpu(vcpu) {
                            Ok(
                                AxVCpuExitReason::Halt | AxVCpuExitReason::ExternalInterrupt { .. },
                            ) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                });
            });
        }
    });
    Hal::machine().set_tracing(true);
}
