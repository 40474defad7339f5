//! Atomics, locks and cells, replaced by loom's under `--cfg loom`, so that the model checker
//! runs the shipped types.

pub(crate) mod direct_arc;
pub(crate) mod rcu;

pub(crate) use rcu::Epoch;

pub(crate) mod atomic {
    #[cfg(not(loom))]
    pub(crate) use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

#[cfg(not(loom))]
pub(crate) use spin::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use self::loom_types::{Mutex, MutexGuard};
#[cfg(loom)]
pub(crate) use loom::cell::{MutPtr, UnsafeCell};

#[cfg(not(loom))]
pub(crate) use self::cell::{MutPtr, UnsafeCell};

/// `core`'s cell with the two calls of loom's that the crate uses.
#[cfg(not(loom))]
mod cell {
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        pub(crate) fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    /// A pointer to the cell's content, like loom's guard of the same name.
    pub(crate) struct MutPtr<T>(*mut T);

    impl<T> MutPtr<T> {
        /// # Safety
        /// No other reference to the content may be alive.
        #[expect(clippy::mut_from_ref, reason = "loom's signature")]
        pub(crate) unsafe fn deref(&self) -> &mut T {
            // SAFETY: the pointer comes from a live cell; the caller promises exclusiveness.
            unsafe { &mut *self.0 }
        }
    }
}

#[cfg(loom)]
mod loom_types {
    use core::ops::{Deref, DerefMut};

    use loom::sync::atomic::{AtomicBool, Ordering};

    /// loom's mutex with `spin`'s signature. For loom an unlock is no event of its own, and it
    /// would not try what a `try_lock` does while the lock is held; the atomic makes it one.
    pub(crate) struct Mutex<T> {
        inner: loom::sync::Mutex<T>,
        unlock: AtomicBool,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { inner: loom::sync::Mutex::new(value), unlock: AtomicBool::new(false) }
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            let inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            MutexGuard { inner, unlock: &self.unlock }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.unlock.load(Ordering::Relaxed);
            Some(MutexGuard { inner: self.inner.try_lock().ok()?, unlock: &self.unlock })
        }
    }

    pub(crate) struct MutexGuard<'a, T> {
        inner: loom::sync::MutexGuard<'a, T>,
        unlock: &'a AtomicBool,
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            self.unlock.store(true, Ordering::Relaxed);
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.inner
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.inner
        }
    }
}
