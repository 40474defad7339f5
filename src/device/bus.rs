//! The devices behind one kind of address, and the dispatch of an access.

use alloc::{sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult};

use super::{
    BaseDeviceOps, DeviceAddrRange,
    table::{DeviceTable, with_capacity},
};
use crate::{
    sync::rcu::{SLOTS, Snapshot},
    vcpu::AccessWidth,
};

type Device<R> = Arc<dyn BaseDeviceOps<R>>;

/// The slot of the host's accesses: the one that vCPUs reach last.
pub(super) const HOST: usize = SLOTS - 1;

/// [`AccessWidth::mask`], looked up: shifting takes three times the instructions.
fn mask(width: AccessWidth) -> usize {
    const MASKS: [usize; 9] = {
        let mut masks = [usize::MAX; 9];
        let mut at = 0;
        let widths = [AccessWidth::Byte, AccessWidth::Word, AccessWidth::Dword];
        while at < widths.len() {
            masks[widths[at].size()] = widths[at].mask() as usize;
            at += 1;
        }
        masks
    };
    MASKS.get(width.size()).copied().unwrap_or(usize::MAX)
}

/// The devices behind one kind of address.
pub(crate) struct Bus<R: DeviceAddrRange>(Snapshot<DeviceTable<R>>);

impl<R: DeviceAddrRange> Bus<R> {
    pub(super) fn new() -> Self {
        Self(Snapshot::new(DeviceTable::new()))
    }

    /// Whether a device answers for the address.
    #[inline]
    pub(crate) fn claims(&self, slot: usize, addr: R::Addr) -> bool {
        self.0.read(slot).at(addr).is_some()
    }

    /// A read on vCPU `slot`, or by the [`HOST`]. The value has no bit set above the
    /// width. None when the access lies in no device, or not wholly, or the device does not take
    /// its width; an error is the device's.
    #[inline(always)]
    pub(crate) fn read(
        &self,
        slot: usize,
        addr: R::Addr,
        width: AccessWidth,
    ) -> Option<AxResult<usize>> {
        let table = self.0.read(slot);
        match table.find(addr, width)?.handle_read(addr, width) {
            // In a register while the guard goes, where a result would go through memory.
            Ok(value) => Some(Ok(value & mask(width))),
            Err(error) => {
                core::hint::cold_path();
                Some(Err(error))
            }
        }
    }

    /// A write, like [`read`](Self::read). Bits of the value above the width are ignored.
    #[inline]
    pub(crate) fn write(
        &self,
        slot: usize,
        addr: R::Addr,
        width: AccessWidth,
        value: usize,
    ) -> Option<AxResult> {
        let table = self.0.read(slot);
        Some(table.find(addr, width)?.handle_write(addr, width, value & mask(width)))
    }

    pub(super) fn add(&self, device: Device<R>, relax: fn()) -> AxResult {
        self.0.update(relax, |table| table.with(device)).map(drop)
    }

    pub(super) fn remove(&self, start: R::Addr, relax: fn()) -> AxResult<Device<R>> {
        let mut removed = None;
        self.0.update(relax, |table| {
            let (rest, device) = table.without(start)?;
            removed = Some(device);
            Ok::<_, AxError>(rest)
        })?;
        removed.ok_or(AxError::NotFound)
    }

    /// Whether a device answers for an address from `first` to `last`.
    pub(super) fn overlaps(&self, first: usize, last: usize) -> bool {
        self.0.read(HOST).overlaps(first, last)
    }

    pub(super) fn at(&self, addr: R::Addr) -> Option<Device<R>> {
        self.0.read(HOST).at(addr).cloned()
    }

    pub(super) fn sorted(&self) -> AxResult<Vec<Device<R>>> {
        let table = self.0.read(HOST);
        let mut devices = with_capacity(table.iter().len())?;
        devices.extend(table.iter().cloned());
        Ok(devices)
    }

    pub(super) fn reset(&self) {
        self.0.read(HOST).iter().for_each(|device| device.reset());
    }
}
