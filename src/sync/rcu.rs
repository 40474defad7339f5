//! Read-copy-update: readers of a table that changes rarely take no lock and write no cache line
//! that another CPU reads, a writer replaces the whole table and waits until nobody uses the old
//! one.
//!
//! **A thread must not call [`Epoch::synchronize`], [`Snapshot::update`] or
//! [`Snapshot::replace`] while it holds a guard of the same epoch: it would wait for itself.**

use alloc::boxed::Box;
use core::{marker::PhantomData, ops::Deref, ptr::NonNull};

use super::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

/// In how many slots readers are counted: more make CPUs share fewer cache lines.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 16 };

/// How many readers are in one slot and phase, on a cache line of its own.
#[repr(align(64))]
struct Count(AtomicUsize);

/// A count for each slot and phase. A power of two, so that masking makes any number an index.
const COUNTS: usize = 2 * SLOTS;
const _: () = assert!(COUNTS.is_power_of_two());

/// Grace periods: [`synchronize`](Self::synchronize) waits for every reader that came before it.
///
/// A reader is counted in a slot, usually its CPU's or vCPU's; several may share one. Each
/// reader counts itself out where it counted itself in, so a slot that is seen at zero proves by
/// itself that its earlier readers have left; the slots need not be zero at the same moment.
/// New readers are sent to the phase that is not being waited for, so they cannot keep a writer
/// waiting.
pub(crate) struct Epoch {
    /// The count of a slot and phase is at `2 * slot + phase`.
    counts: Box<[Count; COUNTS]>,
    /// The phase that new readers enter, 0 or 1.
    phase: AtomicUsize,
    writer: Turn,
}

impl Epoch {
    pub(crate) fn new() -> Self {
        let counts = core::array::from_fn(|_| Count(AtomicUsize::new(0)));
        Self { counts: Box::new(counts), phase: AtomicUsize::new(0), writer: Turn::new() }
    }

    /// Counts a reader in, until the guard is dropped. Guards may nest. `slot` is taken modulo
    /// the number of slots.
    #[inline]
    pub(crate) fn enter(&self, slot: usize) -> EpochGuard<'_> {
        // A phase that is out of date only makes a writer wait longer: both are waited for.
        let phase = self.phase.load(Ordering::Relaxed);
        // Masked, so the bounds check is gone.
        let Count(count) = &self.counts[slot.wrapping_mul(2).wrapping_add(phase) % COUNTS];
        // Pairs with the fence in `synchronize`: whichever of the two comes first, either the
        // writer sees this reader, or this reader sees all that the writer did before.
        fetch_add_fenced(count);
        EpochGuard { count }
    }

    /// Waits until every reader that entered before this call has left; calls `relax` while it
    /// waits. What those readers did happens before the return.
    pub(crate) fn synchronize(&self, mut relax: impl FnMut()) {
        let _turn = self.writer.take(&mut relax);
        fence(Ordering::SeqCst);
        // Away from the even phase and back, so that it is always the one entered between calls.
        for phase in [0, 1] {
            self.phase.store(1 - phase, Ordering::Relaxed);
            for count in self.counts.iter().skip(phase).step_by(2) {
                // The last reader's Release, and through it (a chain of read-modify-writes)
                // every earlier one's, is acquired here.
                while count.0.load(Ordering::Acquire) != 0 {
                    relax();
                }
            }
        }
    }
}

/// Adds one; then a sequentially consistent fence.
#[inline]
fn fetch_add_fenced(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::SeqCst);
    // On x86 the locked instruction is that fence already (Intel SDM vol. 3A 9.2.2: loads and
    // stores are not reordered with it), and a second one doubles a reader's price.
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    fence(Ordering::SeqCst);
}

/// A reader that is counted in.
pub(crate) struct EpochGuard<'a> {
    count: &'a AtomicUsize,
}

impl Drop for EpochGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Release);
    }
}

/// One writer at a time. A plain spin lock would not let the caller's `relax` run, and a host
/// whose threads take turns would never come back to the one that holds it.
struct Turn(AtomicBool);

impl Turn {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn take(&self, mut relax: impl FnMut()) -> TurnGuard<'_> {
        while self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            relax();
        }
        TurnGuard(&self.0)
    }
}

struct TurnGuard<'a>(&'a AtomicBool);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A value that is read without a lock and replaced as a whole.
pub(crate) struct Snapshot<T: Send + Sync> {
    /// Made by `Box::into_raw`, never null.
    current: AtomicPtr<T>,
    epoch: Epoch,
    writer: Turn,
    owns: PhantomData<Box<T>>,
}

impl<T: Send + Sync> Snapshot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            current: AtomicPtr::new(Box::into_raw(Box::new(value))),
            epoch: Epoch::new(),
            writer: Turn::new(),
            owns: PhantomData,
        }
    }

    /// The value as it is now; it stays as it is, and alive, while the guard does. `slot` is
    /// taken modulo the number of slots.
    #[inline]
    pub(crate) fn read(&self, slot: usize) -> SnapshotGuard<'_, T> {
        let epoch = self.epoch.enter(slot);
        // SAFETY: the pointer came from `Box::into_raw`, which is not null; Acquire, so its
        // content is visible.
        let value = unsafe { NonNull::new_unchecked(self.current.load(Ordering::Acquire)) };
        SnapshotGuard { value, _epoch: epoch }
    }

    /// Replaces the value by what `next` makes of it; returns the old one when its last reader
    /// has left, and calls `relax` while it waits. No other writer comes between. An error
    /// leaves the value as it is.
    ///
    /// # Errors
    /// Those of `next`.
    pub(crate) fn update<E>(
        &self,
        mut relax: impl FnMut(),
        next: impl FnOnce(&T) -> Result<Box<T>, E>,
    ) -> Result<Box<T>, E> {
        let _turn = self.writer.take(&mut relax);
        // SAFETY: the current value is freed only after it was replaced, which only the thread
        // that has the turn can do; the reference ends before that, below.
        let new = next(unsafe { &*self.current.load(Ordering::Acquire) })?;
        let old = self.current.swap(Box::into_raw(new), Ordering::AcqRel);
        self.epoch.synchronize(relax);
        // SAFETY: it came from `Box::into_raw` and is no longer reachable through `current`.
        // Readers that loaded it entered the epoch before, and have left; writers load it only
        // in their turn. So this is the only pointer to it.
        Ok(unsafe { Box::from_raw(old) })
    }

    /// Replaces the value; returns the old one when its last reader has left, and calls `relax`
    /// while it waits.
    #[cfg(test)]
    pub(crate) fn replace(&self, new: Box<T>, relax: impl FnMut()) -> Box<T> {
        match self.update(relax, |_| Ok::<_, core::convert::Infallible>(new)) {
            Ok(old) => old,
            Err(never) => match never {},
        }
    }
}

impl<T: Send + Sync> Drop for Snapshot<T> {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`; guards borrow the snapshot, so none is left.
        drop(unsafe { Box::from_raw(self.current.load(Ordering::Acquire)) });
    }
}

/// A value that is being read.
pub(crate) struct SnapshotGuard<'a, T> {
    value: NonNull<T>,
    _epoch: EpochGuard<'a>,
}

impl<T> Deref for SnapshotGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: it was the current value after the epoch was entered. Who replaces it waits,
        // before freeing it, for this guard's epoch to be left.
        unsafe { self.value.as_ref() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicBool as Flag, Ordering::SeqCst},
        thread,
        vec::Vec,
    };

    #[test]
    fn any_slot_number_is_taken_and_guards_nest() {
        let epoch = Epoch::new();
        let outer = epoch.enter(usize::MAX);
        let inner = epoch.enter(usize::MAX);
        drop(outer);
        drop(inner);
        epoch.synchronize(|| panic!("nobody to wait for"));
    }

    #[test]
    fn synchronize_waits_for_a_reader_in_either_phase() {
        let epoch = Epoch::new();
        for phase in [0, 1, 0] {
            epoch.phase.store(phase, Ordering::Relaxed);
            let mut guard = Some(epoch.enter(0));
            let mut waited = 0;
            epoch.synchronize(|| {
                waited += 1;
                if waited == 5 {
                    guard = None;
                }
            });
            assert!(guard.is_none());
        }
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let snapshot = Snapshot::new(1);
        assert_eq!(snapshot.update(|| (), |_| Err::<Box<i32>, _>("no")).unwrap_err(), "no");
        assert_eq!(*snapshot.read(0), 1);
        assert_eq!(*snapshot.replace(Box::new(2), || ()), 1);
        assert_eq!(*snapshot.read(0), 2);
    }

    #[test]
    fn concurrent_updates_are_all_kept_and_readers_see_whole_values() {
        let rounds = if cfg!(miri) { 20 } else { 2000 };
        let snapshot = Snapshot::new(Vec::from([0u64; 8]));
        let done = Flag::new(false);
        thread::scope(|scope| {
            for slot in 0..2 {
                let (snapshot, done) = (&snapshot, &done);
                scope.spawn(move || {
                    while !done.load(SeqCst) {
                        let value = snapshot.read(slot);
                        assert!(value.iter().all(|word| *word == value[0]));
                    }
                });
            }
            let writers = [0, 1].map(|_| {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        let next = |old: &Vec<u64>| {
                            Ok::<_, ()>(Box::new(old.iter().map(|word| word + 1).collect()))
                        };
                        let mut old = snapshot.update(thread::yield_now, next).unwrap();
                        old.fill(u64::MAX);
                        old[0] = 0;
                    }
                })
            });
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, SeqCst);
        });
        assert_eq!(snapshot.read(0)[0], 2 * rounds);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    /// A value that loom watches: a read that races with the owner's write is an error.
    struct Watched(UnsafeCell<usize>);

    // SAFETY: loom reports every access that races.
    unsafe impl Sync for Watched {}

    fn watched(value: usize) -> Watched {
        Watched(UnsafeCell::new(value))
    }

    fn read(snapshot: &Snapshot<Watched>, slot: usize) -> usize {
        let guard = snapshot.read(slot);
        // SAFETY: nobody may write while the guard lives; loom checks it.
        guard.0.with(|value| unsafe { *value })
    }

    /// Replaces the value and writes into the old one, as freeing it would.
    fn replace(snapshot: &Snapshot<Watched>, value: usize) -> usize {
        let old = snapshot.replace(Box::new(watched(value)), thread::yield_now);
        // SAFETY: the box is owned, so no reader may have it; loom checks it.
        old.0.with_mut(|old| unsafe { core::mem::replace(&mut *old, usize::MAX) })
    }

    fn model(check: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    #[test]
    fn loom_a_reader_never_sees_a_freed_value() {
        model(|| {
            let snapshot = Arc::new(Snapshot::new(watched(0)));
            let readers: std::vec::Vec<_> = (0..2)
                .map(|slot| {
                    let snapshot = snapshot.clone();
                    thread::spawn(move || assert!(read(&snapshot, slot) <= 2))
                })
                .collect();
            assert_eq!(replace(&snapshot, 1), 0);
            assert_eq!(replace(&snapshot, 2), 1);
            for reader in readers {
                reader.join().unwrap();
            }
            assert_eq!(read(&snapshot, 0), 2);
        });
    }

    #[test]
    fn loom_readers_that_share_a_slot_are_all_waited_for() {
        model(|| {
            let snapshot = Arc::new(Snapshot::new(watched(0)));
            let other = snapshot.clone();
            let reader = thread::spawn(move || {
                let first = read(&other, 0);
                assert!(first <= read(&other, 0), "a reader goes back in time");
            });
            assert!(replace(&snapshot, 1) == 0 && read(&snapshot, 0) == 1);
            reader.join().unwrap();
        });
    }

    #[test]
    fn loom_two_writers_keep_each_other_s_update() {
        model(|| {
            let snapshot = Arc::new(Snapshot::new(watched(0)));
            let add = |snapshot: &Snapshot<Watched>| {
                let next = |old: &Watched| {
                    // SAFETY: the current value is only read; loom checks it.
                    Ok::<_, ()>(Box::new(watched(old.0.with(|old| unsafe { *old }) + 1)))
                };
                drop(snapshot.update(thread::yield_now, next));
            };
            let other = snapshot.clone();
            let writer = thread::spawn(move || add(&other));
            add(&snapshot);
            writer.join().unwrap();
            assert_eq!(read(&snapshot, 0), 2);
        });
    }
}
