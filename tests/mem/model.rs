//! Random sequences against a plain model: contents, permissions, who faults, and at the end every
//! frame is back. Host and guest access memory in between, on two physical CPUs.

use std::collections::{BTreeMap, HashMap};

use axerrno::AxErrorKind::{AlreadyExists, InvalidInput};
use axvm::{mm::FaultOutcome, vcpu::VcpuEvent};
use axvm_testkit::{HwFormat, MockHal, Step, on_pcpu};
use proptest::prelude::*;

use crate::*;

for_each_kind! {
    random_sequences_agree_with_a_plain_model,
}

const PAGES: usize = 4 * 512;
/// Two chunks below a border of 1 GiB, two above.
const BASE: usize = GPA - 2 * M2;
const STEPS: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Op {
    Linear { at: usize, pages: usize, offset: usize, flags: MappingFlags },
    Alloc { at: usize, pages: usize, flags: MappingFlags, populate: bool },
    Unmap { at: usize, pages: usize },
    Protect { at: usize, pages: usize, flags: MappingFlags },
    Fault { at: usize, access: MappingFlags },
    Load { slot: usize },
    Store { slot: usize, value: u64 },
    Fetch { slot: usize },
    Read { slot: usize, words: usize },
    Write { slot: usize, words: usize, value: u64 },
    Clear,
}

fn flags() -> impl Strategy<Value = MappingFlags> {
    prop_oneof![6 => Just(RW), 2 => Just(RWX), 2 => Just(R), 1 => Just(RX), 1 => Just(X), 1 => Just(W)]
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        4 => (0..PAGES, 1..9usize),
        2 => (0..4usize, 1..3usize).prop_map(|(slot, slots)| (slot * 512, slots * 512)),
        1 => (0..PAGES, 400..1200usize),
        2 => (0..4usize, 0..3usize, 1..3usize).prop_map(|(slot, at, n)| (slot * 512 + at, n)),
    ]
    .prop_map(|(at, pages)| (at, pages.min(PAGES - at)))
}

/// A few words in each page are enough; those at the borders of chunks among them.
fn slot() -> impl Strategy<Value = usize> {
    let page =
        prop_oneof![3 => 0..PAGES, 2 => (0..4usize, 0..4usize).prop_map(|(s, p)| s * 512 + p)];
    (page, prop_oneof![Just(0), Just(1), Just(511), Just(77)]).prop_map(|(p, w)| p * 512 + w)
}

fn op() -> impl Strategy<Value = Op> {
    let device = prop_oneof![5 => Just(MappingFlags::empty()), 1 => Just(DEVICE)];
    prop_oneof![
        3 => (range(), 0..3usize, flags(), device).prop_map(|((at, pages), n, flags, device)| {
            // Congruent to 2 MiB, to nothing, or below the guest's address.
            Op::Linear { at, pages, offset: [0, 3, 512][n], flags: flags | device }
        }),
        4 => (range(), flags(), any::<bool>()).prop_map(|((at, pages), flags, populate)| {
            Op::Alloc { at, pages, flags, populate }
        }),
        3 => range().prop_map(|(at, pages)| Op::Unmap { at, pages }),
        3 => (range(), flags()).prop_map(|((at, pages), flags)| Op::Protect { at, pages, flags }),
        1 => (slot(), 0..3usize).prop_map(|(slot, n)| {
            Op::Fault { at: slot / 512, access: [R, W, X][n] }
        }),
        4 => slot().prop_map(|slot| Op::Load { slot }),
        5 => (slot(), 1..u64::MAX).prop_map(|(slot, value)| Op::Store { slot, value }),
        1 => slot().prop_map(|slot| Op::Fetch { slot }),
        2 => (slot(), 1..4usize).prop_map(|(slot, words)| Op::Read { slot, words }),
        2 => (slot(), 1..4usize, 1..u64::MAX).prop_map(|(slot, words, value)| {
            Op::Write { slot, words, value }
        }),
    ]
}

/// What is behind a page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behind {
    /// The host's page of that number.
    Host(usize),
    /// A frame of its own, numbered once for ever.
    Own(usize),
}

#[derive(Clone, Copy, Debug)]
struct Page {
    flags: MappingFlags,
    behind: Behind,
    present: bool,
}

#[derive(Default)]
struct Model {
    pages: BTreeMap<usize, Page>,
    words: HashMap<(bool, usize), u64>,
    next: usize,
}

impl Model {
    fn covered(&self, at: usize, pages: usize) -> bool {
        self.pages.range(at..at + pages).count() == pages
    }

    fn is_free(&self, at: usize, pages: usize) -> bool {
        self.pages.range(at..at + pages).next().is_none()
    }

    fn key(page: Page, slot: usize) -> (bool, usize) {
        match page.behind {
            Behind::Host(number) => (true, number * 512 + slot % 512),
            Behind::Own(number) => (false, number * 512 + slot % 512),
        }
    }

    /// Touches a word; none where the access is refused.
    fn touch(&mut self, slot: usize, access: MappingFlags) -> Option<&mut u64> {
        let page = self.pages.get_mut(&(slot / 512))?;
        if !page.flags.contains(access) {
            return None;
        }
        page.present = true;
        let key = Self::key(*page, slot);
        Some(self.words.entry(key).or_insert(0))
    }

    fn copyable(&self, slot: usize, access: MappingFlags) -> bool {
        let page = self.pages.get(&(slot / 512));
        page.is_some_and(|page| page.flags.contains(access) && !page.flags.contains(DEVICE))
    }
}

/// One VM and its model.
struct Pair<H: MockHal, A: Kind> {
    vm: AxVMRef<H, A>,
    model: Model,
    turn: usize,
}

fn address(page: usize) -> usize {
    BASE + page * K4
}

impl<H: MockHal, A: Kind> Pair<H, A> {
    fn supports(flags: MappingFlags) -> bool {
        let flags = flags & RWX;
        flags != W && (flags != X || A::Npt::HW != HwFormat::Stage2)
    }

    fn expect_new(&self, at: usize, pages: usize, flags: MappingFlags) -> Result<(), AxError> {
        match () {
            () if !Self::supports(flags) => error(InvalidInput),
            () if !self.model.is_free(at, pages) => error(AlreadyExists),
            () => Ok(()),
        }
    }

    fn apply(&mut self, op: Op) {
        let space = self.vm.memory();
        match op {
            Op::Linear { at, pages, offset, flags } => {
                let expected = self.expect_new(at, pages, flags);
                let target = hpa(HPA + (at + offset) * K4);
                let outcome = space.map_linear(gpa(address(at)), target, pages * K4, flags);
                assert_eq!(outcome, expected);
                for page in at..at + if expected.is_ok() { pages } else { 0 } {
                    let behind = Behind::Host(page + offset);
                    self.model.pages.insert(page, Page { flags, behind, present: true });
                }
            }
            Op::Alloc { at, pages, flags, populate } => {
                let expected = self.expect_new(at, pages, flags);
                let outcome = space.map_alloc(gpa(address(at)), pages * K4, flags, populate);
                assert_eq!(outcome, expected);
                for page in at..at + if expected.is_ok() { pages } else { 0 } {
                    self.model.next += 1;
                    let behind = Behind::Own(self.model.next);
                    self.model.pages.insert(page, Page { flags, behind, present: populate });
                }
            }
            Op::Unmap { at, pages } => {
                let outcome = space.unmap(gpa(address(at)), pages * K4);
                let covered = self.model.covered(at, pages);
                assert_eq!(outcome, if covered { Ok(()) } else { error(InvalidInput) });
                if covered {
                    self.model.pages.retain(|page, _| !(at..at + pages).contains(page));
                }
            }
            Op::Protect { at, pages, flags } => {
                let outcome = space.protect(gpa(address(at)), pages * K4, flags);
                let fine = Self::supports(flags) && self.model.covered(at, pages);
                assert_eq!(outcome, if fine { Ok(()) } else { error(InvalidInput) });
                for (_, page) in self.model.pages.range_mut(at..at + if fine { pages } else { 0 }) {
                    page.flags = (page.flags - RWX) | flags;
                }
            }
            Op::Fault { at, access } => {
                let expected = match self.model.pages.get_mut(&at) {
                    None => FaultOutcome::Unmapped,
                    Some(page) if !page.flags.contains(access) => FaultOutcome::Denied,
                    Some(page) if page.present => FaultOutcome::Spurious,
                    Some(page) => {
                        page.present = true;
                        FaultOutcome::Populated
                    }
                };
                assert_eq!(space.fault(gpa(address(at) + 8), access), Ok(expected));
            }
            Op::Load { slot } => {
                let expected = self.model.touch(slot, R).map_or(u64::MAX, |word| *word);
                assert_eq!(guest_load(&self.vm, 0, BASE + slot * 8), expected);
            }
            Op::Store { slot, value } => {
                if let Some(word) = self.model.touch(slot, W) {
                    *word = value;
                }
                guest_store(&self.vm, 0, BASE + slot * 8, value);
            }
            Op::Fetch { slot } => {
                let faults = self.vm.events(VcpuEvent::FaultInjected);
                steps(&self.vm, 0, [Step::Fetch { gpa: BASE + slot * 8 }]);
                let refused = self.vm.events(VcpuEvent::FaultInjected) - faults;
                assert_eq!(refused, u64::from(self.model.touch(slot, X).is_none()));
            }
            Op::Read { slot, words } => {
                let mut bytes = vec![0; words * 8];
                let outcome = space.read(gpa(BASE + slot * 8), &mut bytes);
                let fine = (slot..slot + words).all(|slot| self.model.copyable(slot, R));
                assert_eq!(outcome, if fine { Ok(()) } else { error(InvalidInput) });
                for (at, word) in bytes.chunks(8).enumerate() {
                    // What precedes the refusal was read, and populated.
                    if !self.model.copyable(slot + at, R) {
                        break;
                    }
                    let expected = *self.model.touch(slot + at, R).unwrap();
                    assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), expected);
                }
            }
            Op::Write { slot, words, value } => {
                let bytes = value.to_le_bytes().repeat(words);
                let outcome = space.write(gpa(BASE + slot * 8), &bytes);
                let fine = (slot..slot + words).all(|slot| self.model.copyable(slot, W));
                assert_eq!(outcome, if fine { Ok(()) } else { error(InvalidInput) });
                for slot in slot..slot + words {
                    if !self.model.copyable(slot, W) {
                        break;
                    }
                    *self.model.touch(slot, W).unwrap() = value;
                }
            }
            Op::Clear => {
                space.clear().unwrap();
                self.model.pages.clear();
            }
        }
    }

    /// One step, on a physical CPU that changes now and then.
    fn step(&mut self, op: Op) {
        self.turn += 1;
        on_pcpu(self.turn / 5 % 2, || self.apply(op));
        let (at, pages) = match op {
            Op::Linear { at, pages, .. }
            | Op::Alloc { at, pages, .. }
            | Op::Unmap { at, pages }
            | Op::Protect { at, pages, .. } => (at, pages),
            _ => return,
        };
        for page in [at.wrapping_sub(1), at, at + pages / 2, at + pages - 1, at + pages] {
            self.check(page);
        }
    }

    /// What the hardware finds for a page is what the model says.
    fn check(&self, number: usize) {
        if number >= PAGES {
            return;
        }
        let found = probe::<H, A>(self.vm.memory(), address(number));
        let page = self.model.pages.get(&number).filter(|page| page.present);
        assert_eq!(found.map(|(_, flags)| flags), page.map(|page| page.flags & RWX), "{number}");
        if let (Some((found, _)), Some(Page { behind: Behind::Host(host), .. })) = (found, page) {
            assert_eq!(found, HPA + host * K4, "page {number}");
        }
    }
}

fn random_sequences_agree_with_a_plain_model<H: MockHal, A: Kind>() {
    H::machine().set_tracing(false);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let host = H::machine();
    host.regions().add_device(HPA, (PAGES + 512) * K4);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let sequences = prop::collection::vec(op(), STEPS);
    let outcome = runner.run(&sequences, |ops| {
        let vm = boot::<H, A>(AxVMConfig::new(1, "model"));
        host.program(1, 0).clear();
        let mut pair = Pair { vm, model: Model::default(), turn: 0 };
        // The host's memory is as the last case left it.
        let backing = host.phys_to_virt(hpa(HPA)).as_usize() as *mut u8;
        // SAFETY: device memory of the machine, all of it; no guest runs.
        unsafe { backing.write_bytes(0, (PAGES + 512) * K4) };
        for op in ops {
            pair.step(op);
        }
        (0..PAGES).for_each(|page| pair.check(page));
        pair.step(Op::Clear);
        assert_eq!(host.arena().allocated(), root_frames::<A>());
        drop(pair);
        host.assert_balanced();
        Ok(())
    });
    outcome.unwrap();
}
