//! Against a model that is one plain struct for each source, whatever is done in whatever order.

use super::*;
use proptest::prelude::*;

const SOURCES: usize = 40;
const HARTS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Op {
    Level(usize, bool),
    Pulse(usize),
    Priority(usize, usize),
    Threshold(usize, usize),
    Enables(usize, usize, usize),
    Claim(usize),
    Complete(usize, usize),
    Software(usize),
    Enter(usize),
    Restore,
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    // Few of the sources, so that something happens to them.
    let source = || prop::sample::select(vec![0usize, 1, 2, 16, 31, 32, 40, 41]);
    let hart = 0..HARTS;
    prop_oneof![
        4 => (source(), any::<bool>()).prop_map(|(source, high)| Op::Level(source, high)),
        2 => source().prop_map(Op::Pulse),
        3 => (source(), 0usize..10).prop_map(|(source, value)| Op::Priority(source, value)),
        1 => (hart.clone(), 0usize..10).prop_map(|(hart, value)| Op::Threshold(hart, value)),
        3 => (hart.clone(), 0usize..2, any::<u32>())
            .prop_map(|(hart, word, bits)| Op::Enables(hart, word, bits as usize)),
        4 => hart.clone().prop_map(Op::Claim),
        4 => (hart.clone(), source()).prop_map(|(hart, source)| Op::Complete(hart, source)),
        1 => hart.clone().prop_map(Op::Software),
        3 => hart.prop_map(Op::Enter),
        1 => Just(Op::Restore),
        1 => Just(Op::Reset),
    ]
}

#[derive(Clone, Copy, Default)]
struct Source {
    level: bool,
    pending: bool,
    in_service: bool,
    edge: bool,
    priority: usize,
    enabled: [bool; HARTS],
}

#[derive(Clone, Copy)]
struct Model {
    sources: [Source; SOURCES + 1],
    threshold: [usize; HARTS],
    software: [bool; HARTS],
    given: [bool; HARTS],
}

impl Model {
    fn new(sources: [Source; SOURCES + 1]) -> Self {
        let (no, none) = ([false; HARTS], [0; HARTS]);
        Self { sources, threshold: none, software: no, given: no }
    }

    /// The sources that exist.
    fn source(&mut self, source: usize) -> Option<&mut Source> {
        (1..=SOURCES).contains(&source).then(|| &mut self.sources[source])
    }

    fn level(&self, hart: usize) -> bool {
        self.sources.iter().any(|source| {
            source.pending && source.enabled[hart] && source.priority > self.threshold[hart]
        })
    }

    fn claim(&mut self, hart: usize) -> usize {
        let candidates = (1..=SOURCES).filter(|source| {
            let source = &self.sources[*source];
            source.pending && source.enabled[hart] && source.priority > 0
        });
        let key = |source: &usize| (self.sources[*source].priority, usize::MAX - source);
        let Some(best) = candidates.max_by_key(key) else { return 0 };
        self.sources[best].pending = false;
        self.sources[best].in_service = true;
        best
    }

    fn reset(&mut self) {
        let sources = self.sources.map(|Source { level, .. }| Source {
            level,
            pending: level,
            ..Source::default()
        });
        *self = Self::new(sources);
    }
}

proptest! {
    #[test]
    fn it_behaves_as_the_model_and_tells_exactly_who_lacks_something(
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let (plic, notes) = plic(SOURCES as u32, HARTS);
        let mut model = Model::new([Source::default(); SOURCES + 1]);
        // Who was told and has not entered since.
        let mut told = [false; HARTS];
        for op in ops {
            match op {
                Op::Level(number, high) => {
                    let result = plic.set_level(number, high);
                    prop_assert_eq!(result.is_ok(), model.source(number).is_some());
                    if let Some(source) = model.source(number) {
                        source.level = high;
                        source.pending |= high && !source.in_service;
                    }
                }
                Op::Pulse(number) => {
                    prop_assert_eq!(plic.pulse(number).is_ok(), model.source(number).is_some());
                    if let Some(source) = model.source(number) {
                        source.pending |= !source.in_service;
                        source.edge |= source.in_service;
                    }
                }
                Op::Priority(number, value) => {
                    plic.put_priority(number, value);
                    if let Some(source) = model.source(number) {
                        source.priority = value & 7;
                    }
                }
                Op::Threshold(hart, value) => {
                    plic.put_threshold(hart, value);
                    model.threshold[hart] = value & 7;
                }
                Op::Enables(hart, word, bits) => {
                    plic.put(0x2080 + 0x100 * hart + 4 * word, bits);
                    for number in word * 32..(word + 1) * 32 {
                        if let Some(source) = model.source(number) {
                            source.enabled[hart] = bits >> (number % 32) & 1 != 0;
                        }
                    }
                }
                Op::Claim(hart) => prop_assert_eq!(plic.get_claim(hart), model.claim(hart)),
                Op::Complete(hart, number) => {
                    plic.put_complete(hart, number);
                    if let Some(source) = model.source(number)
                        && source.enabled[hart] && source.in_service
                    {
                        source.in_service = false;
                        source.pending = source.level || source.edge;
                        source.edge = false;
                    }
                }
                Op::Software(hart) => {
                    inject(&plic, hart, 1).unwrap();
                    model.software[hart] = true;
                }
                Op::Enter(hart) => {
                    let mut hw = Hw::default();
                    plic.before_entry(hart, &mut hw).unwrap();
                    model.given[hart] = model.level(hart);
                    let software = std::mem::take(&mut model.software[hart]);
                    prop_assert_eq!(hw.external, model.given[hart]);
                    prop_assert_eq!(hw.software == 1, software);
                    told[hart] = false;
                }
                Op::Restore => {
                    let state = plic.state();
                    reset(&plic);
                    plic.set_state(&state).unwrap();
                    prop_assert_eq!(plic.state(), state);
                    model.given = [false; HARTS];
                    told = [false; HARTS];
                }
                Op::Reset => {
                    reset(&plic);
                    model.reset();
                    told = [false; HARTS];
                }
            }
            for vcpu in notes.take() {
                prop_assert!(told[vcpu] || lacks(&plic, vcpu), "told for nothing");
                told[vcpu] = true;
            }
            for (hart, told) in told.iter().enumerate() {
                let lacking = model.software[hart] || model.level(hart) != model.given[hart];
                prop_assert_eq!(lacks(&plic, hart), lacking);
                prop_assert!(*told || !lacking, "{:?}: nobody told hart {}", op, hart);
            }
            for (number, source) in model.sources.iter().enumerate() {
                prop_assert_eq!(plic.is_pending(number), source.pending);
                prop_assert!(!source.level || source.pending || source.in_service);
            }
        }
    }
}
