//! The immutable table that finds the device behind an address.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult, ax_err};

use super::{BaseDeviceOps, DeviceAddrRange, WidthSet};
use crate::vcpu::AccessWidth;

/// A device with what a look-up needs of it, so that no virtual call is made for that.
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

/// Devices whose ranges do not overlap.
///
/// The entries form a complete binary search tree that is stored level by level (Eytzinger's
/// layout): the children of node `k` are `2k` and `2k + 1`. Going down it is one comparison a
/// level with no branch to mispredict, and the bounds check of the array is the end of the walk.
/// Here the child `2k + 1` holds the *smaller* addresses, so that the comparison's carry goes
/// straight into the index.
pub(super) struct DeviceTable<R: DeviceAddrRange> {
    /// The first addresses, apart from the entries so that a walk touches few cache lines. Node
    /// 0 does not exist.
    firsts: Vec<usize>,
    /// The entry of node `k` is at `k - 1`.
    entries: Vec<Entry<R>>,
}

impl<R: DeviceAddrRange> DeviceTable<R> {
    /// A table without devices.
    pub(super) const fn new() -> Self {
        Self { firsts: Vec::new(), entries: Vec::new() }
    }

    /// The device in whose range the whole access lies, if it can be accessed so.
    #[inline]
    pub(super) fn find(
        &self,
        addr: R::Addr,
        width: AccessWidth,
    ) -> Option<&Arc<dyn BaseDeviceOps<R>>> {
        let addr = R::number(addr);
        let entry = self.at_or_below(addr)?;
        let left = entry.last.checked_sub(addr)?;
        (left >= R::reach(width) && entry.widths.contains(width)).then_some(&entry.device)
    }

    /// The device in whose range the address lies.
    pub(super) fn at(&self, addr: R::Addr) -> Option<&Arc<dyn BaseDeviceOps<R>>> {
        let addr = R::number(addr);
        self.at_or_below(addr).filter(|entry| addr <= entry.last).map(|entry| &entry.device)
    }

    /// The entry with the greatest first address that is not above `addr`.
    #[inline]
    fn at_or_below(&self, addr: usize) -> Option<&Entry<R>> {
        let mut node = 1_usize;
        while let Some(first) = self.firsts.get(node) {
            node = node.wrapping_add(node).wrapping_add((addr < *first).into());
        }
        // The path's bits are in `node`: 1 where it went to the smaller addresses. The last
        // node that it left the other way is the one sought.
        let node = node >> node.trailing_ones() >> 1;
        self.entries.get(node.wrapping_sub(1))
    }

    /// The devices, in the order of their addresses.
    pub(super) fn sorted(&self) -> AxResult<Vec<Arc<dyn BaseDeviceOps<R>>>> {
        let entries = self.sorted_entries(0)?;
        let mut devices = with_capacity(entries.len())?;
        devices.extend(entries.into_iter().map(|entry| entry.device));
        Ok(devices)
    }

    /// Every device, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<dyn BaseDeviceOps<R>>> {
        self.entries.iter().map(|entry| &entry.device)
    }

    /// The table with one more device.
    ///
    /// # Errors
    /// `InvalidInput` for a range that ends before it begins, `AlreadyExists` when a device
    /// answers for one of its addresses, `NoMemory`.
    pub(super) fn with(&self, device: Arc<dyn BaseDeviceOps<R>>) -> AxResult<Box<Self>> {
        let (first, last) = device.address_range().bounds();
        if first > last {
            return ax_err!(InvalidInput, "device range ends before it begins");
        }
        // Ranges in the table are disjoint: if any overlaps, so does the last that begins before
        // the end of the new one.
        if self.at_or_below(last).is_some_and(|below| below.last >= first) {
            return ax_err!(AlreadyExists, "device ranges overlap");
        }
        let mut entries = self.sorted_entries(1)?;
        let place = entries.partition_point(|entry| entry.first < first);
        entries.insert(place, Entry { first, last, widths: device.legal_widths(), device });
        Self::from_sorted(&entries)
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
        let mut entries = self.sorted_entries(0)?;
        entries.retain(|entry| entry.first != start);
        Ok((Self::from_sorted(&entries)?, gone))
    }

    fn sorted_entries(&self, more: usize) -> AxResult<Vec<Entry<R>>> {
        let mut entries = with_capacity(self.entries.len() + more)?;
        entries.extend(self.entries.iter().cloned());
        entries.sort_unstable_by_key(|entry| entry.first);
        Ok(entries)
    }

    fn from_sorted(sorted: &[Entry<R>]) -> AxResult<Box<Self>> {
        let mut table = Self {
            firsts: with_capacity(sorted.len() + 1)?,
            entries: with_capacity(sorted.len())?,
        };
        table.firsts.push(0);
        for node in 1..=sorted.len() {
            let entry = sorted.get(rank(node, sorted.len())).ok_or(AxError::BadState)?;
            table.firsts.push(entry.first);
            table.entries.push(entry.clone());
        }
        Ok(Box::new(table))
    }
}

/// How many of `count` nodes hold smaller addresses than `node`, 1 to `count`.
fn rank(node: usize, count: usize) -> usize {
    // Those in the subtree of the smaller child, and, wherever the path from the root went to
    // the greater addresses, the node it left and that one's smaller child's subtree.
    let mut smaller = subtree(2 * node + 1, count);
    let mut at = node;
    while at > 1 {
        if at & 1 == 0 {
            smaller += 1 + subtree(at + 1, count);
        }
        at >>= 1;
    }
    smaller
}

/// The number of nodes, of `count` in all, in the subtree of `root`.
fn subtree(root: usize, count: usize) -> usize {
    let (mut first, mut width, mut nodes) = (root, 1, 0);
    while first <= count {
        nodes += width.min(count - first + 1);
        first *= 2;
        width *= 2;
    }
    nodes
}

fn with_capacity<T>(capacity: usize) -> AxResult<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| AxError::NoMemory)?;
    Ok(vec)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
