//! Whose turn it is: the run queue of one physical CPU.

use alloc::{collections::VecDeque, vec::Vec};

/// How long a task runs before others that wait get their turn: 10 ms, in nanoseconds.
pub const SLICE: u64 = 10_000_000;

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// The tasks of one CPU that do not run: those that wait for their turn, and those asleep. A task
/// that runs, or that is switched off, is in no queue.
///
/// Whoever adds a task from elsewhere is told whether the CPU must be interrupted to see it. Both
/// sides decide under the queue's lock, so no wake-up is lost: either the CPU finds the task when
/// it looks, or it is interrupted after.
#[derive(Debug)]
pub struct RunQueue<T> {
    ready: VecDeque<T>,
    asleep: Vec<Sleeper<T>>,
    /// The CPU has found nothing to do beside what it runs, and has no timer set to look again.
    quiet: bool,
}

#[derive(Debug)]
struct Sleeper<T> {
    task: T,
    /// When to wake it at the latest, in nanoseconds.
    deadline: u64,
}

impl<T: Copy + PartialEq> Default for RunQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy + PartialEq> RunQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { ready: VecDeque::new(), asleep: Vec::new(), quiet: false }
    }

    /// Adds a task that can run, behind the others. True when the CPU must be interrupted.
    #[must_use]
    pub fn push(&mut self, task: T) -> bool {
        self.ready.push_back(task);
        core::mem::take(&mut self.quiet)
    }

    /// Puts a task to sleep, until it is woken or the deadline has come.
    pub fn sleep(&mut self, task: T, deadline: u64) {
        self.asleep.push(Sleeper { task, deadline });
    }

    /// Ends a task's sleep; nothing happens when it is not asleep. True when the CPU must be
    /// interrupted.
    #[must_use]
    pub fn wake(&mut self, task: T) -> bool {
        match self.asleep.iter().position(|sleeper| sleeper.task == task) {
            Some(index) => {
                self.asleep.swap_remove(index);
                self.push(task)
            }
            None => false,
        }
    }

    /// Takes the next task to run; none when the CPU is to wait for an interrupt.
    pub fn pop(&mut self, now: u64) -> Option<T> {
        self.wake_due(now);
        let next = self.ready.pop_front();
        self.quiet = next.is_none();
        next
    }

    /// Whether a task that runs since `slice_end` - [`SLICE`] has had its turn.
    pub fn must_yield(&mut self, now: u64, slice_end: u64) -> bool {
        self.wake_due(now);
        now >= slice_end && !self.ready.is_empty()
    }

    /// When the CPU must look at the queue again: when the first sleeper is due, or the slice of
    /// what runs is over while others wait. Call it last before running or waiting.
    pub fn timer(&mut self, slice_end: u64) -> u64 {
        let first = self.asleep.iter().map(|sleeper| sleeper.deadline).min().unwrap_or(NEVER);
        self.quiet = self.ready.is_empty();
        if self.quiet { first } else { first.min(slice_end) }
    }

    fn wake_due(&mut self, now: u64) {
        let due = self.asleep.extract_if(.., |sleeper| sleeper.deadline <= now);
        self.ready.extend(due.map(|sleeper| sleeper.task));
    }
}

/// Chooses a CPU for a task: of those that `allowed` has (bit `i` for CPU `i`; none: any), the
/// one with the fewest tasks. `loads` has their number for each CPU, none for one that must not be
/// used. None when there is no such CPU.
pub fn place(loads: &[Option<usize>], allowed: Option<usize>) -> Option<usize> {
    let allows = |mask: usize, cpu| mask.checked_shr(cpu).is_some_and(|bits| bits & 1 != 0);
    let may =
        |cpu| allowed.is_none_or(|mask| u32::try_from(cpu).is_ok_and(|cpu| allows(mask, cpu)));
    let cpus = loads.iter().enumerate().filter_map(|(cpu, load)| Some((cpu, (*load)?)));
    cpus.filter(|&(cpu, _)| may(cpu)).min_by_key(|&(_, load)| load).map(|(cpu, _)| cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_take_turns() {
        let mut queue = RunQueue::new();
        for task in ['a', 'b', 'c'] {
            assert!(!queue.push(task), "nobody waits for an interrupt yet");
        }
        let mut order = std::string::String::new();
        for now in 0..7 {
            let task = queue.pop(now).unwrap();
            order.push(task);
            let _ = queue.push(task);
        }
        assert_eq!(order, "abcabca");
    }

    #[test]
    fn a_cpu_that_looks_by_itself_is_not_interrupted_and_one_that_does_not_is_once() {
        let mut queue = RunQueue::new();
        assert_eq!(queue.pop(0), None);
        assert_eq!(queue.timer(NEVER), NEVER);
        assert!(queue.push(1), "idle");
        assert!(!queue.push(2), "told already");
        assert_eq!(queue.pop(0), Some(1));
        assert_eq!(queue.timer(SLICE), SLICE);
        assert!(!queue.push(3), "the slice ends by itself");
        assert_eq!((queue.pop(0), queue.pop(0)), (Some(2), Some(3)));
        assert_eq!(queue.timer(SLICE), NEVER, "what runs alone is not disturbed");
        assert!(queue.push(4), "and must be");
    }

    #[test]
    fn a_sleeper_runs_when_woken_or_due_and_once() {
        let mut queue = RunQueue::new();
        queue.sleep('a', 100);
        queue.sleep('b', 50);
        queue.sleep('c', NEVER);
        assert_eq!(queue.pop(49), None);
        assert_eq!(queue.timer(NEVER), 50);
        assert!(queue.wake('c'));
        assert!(!queue.wake('c'));
        assert_eq!((queue.pop(49), queue.pop(50), queue.pop(50)), (Some('c'), Some('b'), None));
        assert!(!queue.wake('b'), "it is not asleep");
        assert_eq!(queue.timer(NEVER), 100);
        assert_eq!((queue.pop(1_000), queue.pop(1_000)), (Some('a'), None));
    }

    #[test]
    fn a_turn_ends_only_for_another() {
        let mut queue = RunQueue::new();
        assert!(!queue.must_yield(SLICE, SLICE), "nobody waits");
        queue.sleep('a', SLICE + 1);
        assert!(!queue.must_yield(SLICE, SLICE), "asleep");
        assert!(queue.must_yield(SLICE + 1, SLICE), "due");
        assert!(!queue.must_yield(SLICE - 1, SLICE), "too early");
    }

    #[test]
    fn the_least_loaded_allowed_cpu_is_chosen() {
        let loads = [Some(1), Some(0), Some(0), None];
        assert_eq!(place(&loads, None), Some(1));
        assert_eq!(place(&loads, Some(0b1101)), Some(2));
        assert_eq!(place(&loads, Some(0b1)), Some(0));
        assert_eq!(place(&loads, Some(0b11_1000)), None);
        assert_eq!(place(&loads, Some(0)), None);
        assert_eq!(place(&[], None), None);
        let last = place(&[Some(0); 100], Some(1 << (usize::BITS - 1)));
        assert_eq!(last, Some(usize::BITS as usize - 1));
        assert_eq!(place(&[None; 2], None), None);
    }
}
