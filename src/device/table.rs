//! The immutable table that finds the device behind an address.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult, ax_err};

use super::{BaseDeviceOps, DeviceAddrRange, WidthSet};
use crate::{sync::direct_arc::DirectArc, vcpu::AccessWidth};

/// A device and what it said when it was added.
struct Entry<R: DeviceAddrRange> {
    first: usize,
    last: usize,
    widths: WidthSet,
    device: Arc<dyn BaseDeviceOps<R>>,
}

impl<R: DeviceAddrRange> Clone for Entry<R> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), ..*self }
    }
}

/// What a look-up needs of an entry, worked out beforehand, on one cache line.
#[repr(align(64))]
struct Target<R: DeviceAddrRange> {
    /// For each width, by its binary logarithm, the address from which on an access would leave
    /// the range; 0 if the device does not take that width.
    ends: [usize; 4],
    device: DirectArc<dyn BaseDeviceOps<R>>,
}

impl<R: DeviceAddrRange> Target<R> {
    fn new(entry: &Entry<R>) -> Self {
        use AccessWidth::{Byte, Dword, Qword, Word};
        let ends = [Byte, Word, Dword, Qword].map(|width| {
            // The last address of all is in no range, so `+ 1` cannot overflow.
            let end = (entry.last + 1).saturating_sub(R::reach(width));
            if entry.widths.contains(width) { end } else { 0 }
        });
        Self { ends, device: entry.device.clone().into() }
    }

    /// What an address below the first device's finds: no access is legal.
    fn nothing(first: &Entry<R>) -> Self {
        Self { ends: [0; 4], device: first.device.clone().into() }
    }
}

/// Devices whose ranges do not overlap.
///
/// Beside the sorted list there is an index for the dispatch: the first addresses as a complete
/// binary search tree, stored level by level (Eytzinger's layout). Going down it is one
/// comparison a level with no branch to mispredict; the array's bounds check is the end of the
/// walk. It ends at a leaf that stands for the gap between two neighbours, and for each leaf the
/// device below the gap is stored.
pub(super) struct DeviceTable<R: DeviceAddrRange> {
    /// By first address.
    entries: Vec<Entry<R>>,
    /// Node `k` is at `k`; there is no node 0. The child `2k` holds the greater addresses, and
    /// `2k + 1` the smaller ones.
    nodes: Vec<usize>,
    /// Node 1 once more, at hand for the first step; 0 without devices.
    root: usize,
    /// The leaf that a walk of `n` nodes reaches is `n + 1` to `2n + 1`; the first is at 0.
    leaves: Vec<Target<R>>,
}

impl<R: DeviceAddrRange> DeviceTable<R> {
    /// A table without devices.
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), nodes: Vec::new(), root: 0, leaves: Vec::new() }
    }

    /// The device in whose range the whole access lies, if it can be accessed so.
    #[inline]
    pub(super) fn find(&self, addr: R::Addr, width: AccessWidth) -> Option<&dyn BaseDeviceOps<R>> {
        let addr = R::number(addr);
        let target = self.leaves.get(self.leaf(addr))?;
        let end = target.ends.get(width.size().trailing_zeros() as usize)?;
        (addr < *end).then_some(&*target.device)
    }

    /// The leaf of the greatest first address that is not above `addr`.
    #[inline]
    fn leaf(&self, addr: usize) -> usize {
        let mut node = 2 + usize::from(addr < self.root);
        while let Some(first) = self.nodes.get(node) {
            node = node.wrapping_add(node).wrapping_add((addr < *first).into());
        }
        node.wrapping_sub(self.nodes.len())
    }

    /// The number of entries that begin at or below `addr`.
    fn rank(&self, addr: usize) -> usize {
        self.entries.partition_point(|entry| entry.first <= addr)
    }

    /// The last entry that begins at or below `addr`.
    fn at_or_below(&self, addr: usize) -> Option<&Entry<R>> {
        self.entries.get(self.rank(addr).checked_sub(1)?)
    }

    /// Whether a device answers for an address from `first` to `last`. Ranges are disjoint: if
    /// any overlaps, so does the last that begins before the end.
    pub(super) fn overlaps(&self, first: usize, last: usize) -> bool {
        self.at_or_below(last).is_some_and(|below| below.last >= first)
    }

    /// The device in whose range the address lies.
    pub(super) fn at(&self, addr: R::Addr) -> Option<&Arc<dyn BaseDeviceOps<R>>> {
        let addr = R::number(addr);
        self.at_or_below(addr).filter(|entry| addr <= entry.last).map(|entry| &entry.device)
    }

    /// The devices, in the order of their addresses.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<dyn BaseDeviceOps<R>>> {
        self.entries.iter().map(|entry| &entry.device)
    }

    /// The table with one more device.
    ///
    /// # Errors
    /// `InvalidInput` for a range that ends before it begins, or that holds the last of all
    /// addresses; `AlreadyExists` when a device answers for one of its addresses; `NoMemory`.
    pub(super) fn with(&self, device: Arc<dyn BaseDeviceOps<R>>) -> AxResult<Box<Self>> {
        let (first, last) = device.address_range().bounds();
        if first > last || last == usize::MAX {
            return ax_err!(InvalidInput, "not a device range");
        }
        if self.overlaps(first, last) {
            return ax_err!(AlreadyExists, "device ranges overlap");
        }
        let mut entries = with_capacity(self.entries.len() + 1)?;
        entries.extend(self.entries.iter().cloned());
        let widths = device.legal_widths();
        entries.insert(self.rank(first), Entry { first, last, widths, device });
        Self::from_sorted(entries)
    }

    /// The table without the device whose range begins at `start`, and that device.
    ///
    /// # Errors
    /// `NotFound` when no range begins there, `NoMemory`.
    pub(super) fn without(
        &self,
        start: R::Addr,
    ) -> AxResult<(Box<Self>, Arc<dyn BaseDeviceOps<R>>)> {
        let start = R::number(start);
        let gone = self.at_or_below(start).filter(|entry| entry.first == start);
        let gone = gone.ok_or(AxError::NotFound)?.device.clone();
        let mut entries = with_capacity(self.entries.len())?;
        entries.extend(self.entries.iter().filter(|entry| entry.first != start).cloned());
        Ok((Self::from_sorted(entries)?, gone))
    }

    fn from_sorted(entries: Vec<Entry<R>>) -> AxResult<Box<Self>> {
        let count = entries.len();
        let mut table = Self {
            entries,
            root: 0,
            nodes: with_capacity(count + 1)?,
            leaves: with_capacity(count + 1)?,
        };
        table.nodes.resize(count + 1, 0);
        fill(&mut table.nodes, 1, &mut table.entries.iter().map(|entry| entry.first));
        table.root = table.nodes.get(1).copied().unwrap_or(0);

        let Some(lowest) = table.entries.first() else { return Ok(Box::new(table)) };
        let mut leaves = with_capacity(count + 1)?;
        // Whatever lies below every device turns to the smaller addresses at every node.
        let mut below = 1;
        while below <= count {
            below = 2 * below + 1;
        }
        leaves.push((below - table.nodes.len(), Target::nothing(lowest)));
        leaves.extend(
            table.entries.iter().map(|entry| (table.leaf(entry.first), Target::new(entry))),
        );
        leaves.sort_unstable_by_key(|(leaf, _)| *leaf);
        table.leaves.extend(leaves.into_iter().map(|(_, target)| target));
        Ok(Box::new(table))
    }
}

/// Fills the subtree of `node` in order. As deep as the tree: the logarithm of its size.
fn fill(nodes: &mut [usize], node: usize, sorted: &mut impl Iterator<Item = usize>) {
    if node < nodes.len() {
        fill(nodes, 2 * node + 1, sorted);
        if let (Some(place), Some(first)) = (nodes.get_mut(node), sorted.next()) {
            *place = first;
        }
        fill(nodes, 2 * node, sorted);
    }
}

pub(super) fn with_capacity<T>(capacity: usize) -> AxResult<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| AxError::NoMemory)?;
    Ok(vec)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
