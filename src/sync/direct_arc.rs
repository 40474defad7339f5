//! An [`Arc`] whose pointer leads straight to the value.

use alloc::sync::Arc;
use core::{ops::Deref, ptr::NonNull};

/// Like [`Arc`], except that it points at the value and not at the counters before it. For a
/// `dyn Trait` that makes a difference: the distance depends on the value's alignment, which an
/// `Arc` looks up in the vtable at each call.
pub(crate) struct DirectArc<T: ?Sized>(NonNull<T>);

// SAFETY: it is an `Arc<T>` in all but layout, which is `Send` and `Sync` for such `T`.
unsafe impl<T: ?Sized + Send + Sync> Send for DirectArc<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for DirectArc<T> {}

impl<T: ?Sized> From<Arc<T>> for DirectArc<T> {
    fn from(arc: Arc<T>) -> Self {
        // SAFETY: an `Arc`'s value is never at null.
        Self(unsafe { NonNull::new_unchecked(Arc::into_raw(arc).cast_mut()) })
    }
}

impl<T: ?Sized> Deref for DirectArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value lives as long as the reference count that `self` owns; like an
        // `Arc`, this gives out shared references only.
        unsafe { self.0.as_ref() }
    }
}

impl<T: ?Sized> Drop for DirectArc<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Arc::into_raw`, whose count is given back once, here.
        drop(unsafe { Arc::from_raw(self.0.as_ptr().cast_const()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Debug;
    use std::format;

    #[derive(Debug)]
    #[repr(align(64))]
    #[expect(dead_code, reason = "for Debug")]
    struct Wide(u8);

    #[test]
    fn it_owns_one_count_and_finds_a_value_of_any_alignment() {
        let arc: Arc<dyn Debug + Send + Sync> = Arc::new(Wide(7));
        let direct = DirectArc::from(arc.clone());
        assert_eq!(Arc::strong_count(&arc), 2);
        assert_eq!(format!("{:?}", &*direct), "Wide(7)");
        drop(direct);
        assert_eq!(Arc::strong_count(&arc), 1);
    }
}
