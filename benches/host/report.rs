//! What the program tells `cargo xtask bench host`: lines of JSON after `@bench `.
//!
//! - `{"op": …, "unit": …, "limit": …}` declares an operation, in the table's order; the
//!   limit is null for one that is shown for information;
//! - `{"op": …, "who": …, "dump": …, "divide": …, "pauses": …, "rounds": …, "less": …}` says that
//!   the callgrind dump of that name is one measurement of it, to be divided by the number of
//!   operations. To be subtracted first: what the exclusions (`pauses`) cost and the rounds of
//!   the loop in [`Op::each`], and `less`, null or the name of another dump;
//! - `{"op": …, "who": …, "value": …}` is a count that needed no callgrind.
//!
//! `who` is [`OURS`] or the name of a peer. Three dumps calibrate: see [`calibrate`]. What they
//! find is subtracted from everybody's figures alike, ours and the peers'.

use std::cell::Cell;
use std::hint::black_box;

use crate::callgrind;

/// The crate that the limits are for.
pub const OURS: &str = "axvm";

/// An operation: a row of the table.
pub struct Op {
    /// What is done; the row's name.
    pub name: &'static str,
    /// What `value` counts.
    pub unit: &'static str,
    /// What ours may cost at most; none for a row beyond the table, that gates nothing.
    pub limit: Option<f64>,
}

impl Op {
    /// An operation measured in instructions.
    pub const fn instr(name: &'static str, limit: f64) -> Self {
        Self { name, unit: "instr", limit: Some(limit) }
    }

    /// An operation whose result is a count of frames.
    pub const fn frames(name: &'static str, limit: f64) -> Self {
        Self { name, unit: "frames", limit: Some(limit) }
    }

    /// An operation measured in instructions, for information.
    pub const fn extra(name: &'static str) -> Self {
        Self { name, unit: "instr", limit: None }
    }

    fn declare(&self) {
        let Self { name, unit, limit } = self;
        let limit = limit.map_or("null".to_owned(), |limit| limit.to_string());
        println!("@bench {{\"op\":{name:?},\"unit\":{unit:?},\"limit\":{limit}}}");
    }

    /// Measures `f`, which does the operation `count` times. A loop in `f` counts.
    pub fn run(&self, who: &str, count: usize, f: impl FnOnce()) {
        let region = Region::measure(f);
        region.print(self.name, who, count, 0, None);
    }

    /// Measures `f` on each of `inputs`, which are known at run time only. The loop itself (load,
    /// count, branch, and the store that keeps the optimiser from dropping the result) is no part
    /// of any operation: its cost is subtracted, as [`calibrate`] finds it.
    pub fn each<I: Copy, R>(&self, who: &str, inputs: &[I], f: impl FnMut(I) -> R) {
        let region = Region::measure(|| rounds(inputs, f));
        region.print(self.name, who, inputs.len(), inputs.len(), None);
    }

    /// Like [`each`](Self::each), and subtracts what `other` costs: a part of `f` that is not to
    /// count and cannot be [`callgrind::excluded`], such as the zeroing of frames. `other` runs
    /// first and excludes nothing.
    pub fn each_less<I: Copy, R>(
        &self,
        who: &str,
        inputs: &[I],
        other: impl FnOnce(),
        f: impl FnMut(I) -> R,
    ) {
        let other = Region::measure(other);
        let region = Region::measure(|| rounds(inputs, f));
        region.print(self.name, who, inputs.len(), inputs.len(), Some(&other));
    }

    /// Reports a figure that was counted in the program.
    pub fn value(&self, who: &str, value: usize) {
        println!("@bench {{\"op\":{:?},\"who\":{who:?},\"value\":{value}}}", self.name);
    }
}

/// Declares the rows of the table.
pub fn declare(ops: &[&[Op]]) {
    ops.iter().flat_map(|ops| ops.iter()).for_each(Op::declare);
}

/// The loop of [`Op::each`].
#[inline(always)]
fn rounds<I: Copy, R>(inputs: &[I], mut f: impl FnMut(I) -> R) {
    for input in inputs {
        black_box(f(*input));
    }
}

/// Measures an empty region, one with nothing but exclusions, and one with the loop of
/// [`Op::each`] around the operation that returns its input: what every other region is corrected
/// by. A result that is larger than a word costs a round more; that stays in the figures.
pub fn calibrate() {
    const COUNT: usize = 1000;
    Region::measure(|| {}).print("", "empty", 1, 0, None);
    let pauses = Region::measure(|| {
        for _ in 0..COUNT {
            callgrind::excluded(|| {});
        }
    });
    pauses.print("", "pauses", 1, 0, None);
    let inputs: Vec<_> = random_below(1 << 30).take(COUNT).collect();
    Region::measure(|| rounds(&inputs, |input| input)).print("", "rounds", 1, COUNT, None);
}

/// A region that was measured.
struct Region {
    name: String,
    pauses: u64,
}

impl Region {
    fn measure(f: impl FnOnce()) -> Self {
        thread_local!(static NUMBER: Cell<u32> = const { Cell::new(0) });
        let number = NUMBER.get();
        NUMBER.set(number + 1);
        let name = format!("region-{number}");
        let pauses = callgrind::region(&name, f);
        Self { name, pauses }
    }

    fn print(&self, op: &str, who: &str, count: usize, rounds: usize, less: Option<&Self>) {
        let Self { name, pauses } = self;
        let less = less.map_or("null".to_owned(), |less| format!("{:?}", less.name));
        println!(
            "@bench {{\"op\":{op:?},\"who\":{who:?},\"dump\":{name:?},\"divide\":{count},\
             \"pauses\":{pauses},\"rounds\":{rounds},\"less\":{less}}}"
        );
    }
}

/// A repeatable sequence of numbers below `bound`, in no order that a cache of the last result
/// or a stride could serve (splitmix64).
pub fn random_below(bound: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        ((u128::from(word) * bound as u128) >> 64) as usize
    })
}
