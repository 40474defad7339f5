//! Where in the guest-physical address space channels between VMs are placed.

use alloc::vec::Vec;

use axerrno::{AxError, AxResult};

use crate::mm::{GpaRange, GuestPhysAddr, PAGE_SIZE_4K};

/// Hands out page-aligned ranges of a window, the lowest that is large enough first.
pub(super) struct IvcWindow {
    window: GpaRange,
    /// Allocated ranges, ascending and disjoint.
    channels: Vec<GpaRange>,
}

impl IvcWindow {
    /// An allocator for `window`, whose ends must be page-aligned: otherwise `InvalidInput`.
    pub(super) fn new(window: GpaRange) -> AxResult<Self> {
        if !window.is_aligned(PAGE_SIZE_4K) {
            return Err(AxError::InvalidInput);
        }
        Ok(Self { window, channels: Vec::new() })
    }

    /// Whether no channel is allocated.
    pub(super) fn is_unused(&self) -> bool {
        self.channels.is_empty()
    }

    /// Forgets every channel.
    pub(super) fn clear(&mut self) {
        self.channels.clear();
    }

    /// Allocates `size` bytes, rounded up to whole pages.
    pub(super) fn alloc(&mut self, size: usize) -> AxResult<GpaRange> {
        let size = whole_pages(size)?.ok_or(AxError::NoMemory)?;
        let mut free = self.window.start();
        let mut place = self.channels.len();
        for (index, channel) in self.channels.iter().enumerate() {
            // Each channel begins at or after the end of the one before.
            if channel.start().as_usize() - free.as_usize() >= size {
                place = index;
                break;
            }
            free = channel.end();
        }
        let channel = GpaRange::new(free, size)
            .filter(|channel| self.window.contains_range(*channel))
            .ok_or(AxError::NoMemory)?;
        self.channels.try_reserve(1).map_err(|_| AxError::NoMemory)?;
        self.channels.insert(place, channel);
        Ok(channel)
    }

    /// Frees what `alloc` gave; the size may be the one before rounding.
    pub(super) fn release(&mut self, start: GuestPhysAddr, size: usize) -> AxResult {
        let size = whole_pages(size)?.ok_or(AxError::InvalidInput)?;
        let index = self
            .channels
            .binary_search_by_key(&start, |channel| channel.start())
            .map_err(|_| AxError::InvalidInput)?;
        if self.channels.get(index).is_none_or(|channel| channel.size() != size) {
            return Err(AxError::InvalidInput);
        }
        self.channels.remove(index);
        Ok(())
    }
}

/// `size` in whole pages: `InvalidInput` for 0, none when that overflows.
fn whole_pages(size: usize) -> AxResult<Option<usize>> {
    match size {
        0 => Err(AxError::InvalidInput),
        _ => Ok(size.checked_next_multiple_of(PAGE_SIZE_4K)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const BASE: usize = 0x7000_0000;

    fn window(pages: usize) -> IvcWindow {
        IvcWindow::new(GpaRange::new(BASE.into(), pages * PAGE_SIZE_4K).unwrap()).unwrap()
    }

    #[test]
    fn a_window_that_is_not_page_aligned_is_refused() {
        for (start, size) in [(BASE + 1, 0x1000), (BASE, 0xfff)] {
            let range = GpaRange::new(start.into(), size).unwrap();
            assert_eq!(IvcWindow::new(range).err(), Some(AxError::InvalidInput));
        }
    }

    #[test]
    fn a_channel_is_rounded_up_to_pages_and_its_exact_size_frees_it() {
        let mut ivc = window(2);
        let channel = ivc.alloc(1).unwrap();
        assert_eq!((channel.start().as_usize(), channel.size()), (BASE, 0x1000));
        assert_eq!(ivc.release(channel.start(), 0x1001), Err(AxError::InvalidInput));
        assert_eq!(ivc.release((BASE + 0x1000).into(), 1), Err(AxError::InvalidInput));
        assert_eq!(ivc.release((BASE + 8).into(), 1), Err(AxError::InvalidInput));
        assert_eq!(ivc.release(channel.start(), 0), Err(AxError::InvalidInput));
        assert_eq!(ivc.release(channel.start(), usize::MAX), Err(AxError::InvalidInput));
        assert_eq!(ivc.release(channel.start(), 1), Ok(()));
        assert_eq!(ivc.release(channel.start(), 1), Err(AxError::InvalidInput));
    }

    #[test]
    fn a_size_that_does_not_fit_or_overflows_is_no_memory() {
        let mut ivc = window(2);
        assert_eq!(ivc.alloc(0), Err(AxError::InvalidInput));
        for size in [0x2001, usize::MAX - 0xfff, usize::MAX] {
            assert_eq!(ivc.alloc(size), Err(AxError::NoMemory), "{size:#x}");
        }
        assert!(ivc.is_unused());
    }

    #[test]
    fn a_window_at_the_end_of_the_address_space_does_not_overflow() {
        let start = usize::MAX - 0x1fff;
        let end = start + 0x1000;
        let mut ivc =
            IvcWindow::new(GpaRange::from_bounds(start.into(), end.into()).unwrap()).unwrap();
        assert_eq!(ivc.alloc(0x1000).unwrap().end().as_usize(), end);
        assert_eq!(ivc.alloc(0x1000), Err(AxError::NoMemory));
    }

    proptest! {
        /// The model is one owner for each page.
        #[test]
        fn channels_are_first_fit_disjoint_and_freed_exactly(
            steps in prop::collection::vec((any::<bool>(), 1usize..6 * 0x1000, any::<prop::sample::Index>()), 1..200)
        ) {
            const PAGES: usize = 24;
            let mut ivc = window(PAGES);
            let mut owned = [false; PAGES];
            let mut live: Vec<(usize, usize)> = vec![];
            for (alloc, size, pick) in steps {
                let pages = size.div_ceil(PAGE_SIZE_4K);
                if alloc {
                    let fit = owned.windows(pages).position(|run| run.iter().all(|page| !page));
                    match fit {
                        Some(at) => {
                            let start = BASE + at * PAGE_SIZE_4K;
                            let range = GpaRange::new(start.into(), pages * PAGE_SIZE_4K);
                            prop_assert_eq!(ivc.alloc(size).ok(), range);
                            owned[at..at + pages].fill(true);
                            live.push((at, size));
                        }
                        None => prop_assert_eq!(ivc.alloc(size), Err(AxError::NoMemory)),
                    }
                } else if !live.is_empty() {
                    let (at, size) = live.swap_remove(pick.index(live.len()));
                    let start = BASE + at * PAGE_SIZE_4K;
                    prop_assert_eq!(ivc.release(start.into(), size), Ok(()));
                    owned[at..at + size.div_ceil(PAGE_SIZE_4K)].fill(false);
                }
            }
        }
    }
}
