//! The devices behind one kind of address, and the dispatch of an access.

use alloc::{sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult};

use super::{
    BaseDeviceOps, DeviceAddrRange,
    table::{DeviceTable, with_capacity},
};
use crate::{sync::rcu::Snapshot, vcpu::AccessWidth};

type Device<R> = Arc<dyn BaseDeviceOps<R>>;

/// [`AccessWidth::mask`] by width.
const MASKS: [usize; 9] = {
    let mut masks = [usize::MAX; 9];
    masks[1] = 0xff;
    masks[2] = 0xffff;
    masks[4] = 0xffff_ffff;
    masks
};

pub(super) fn mask(width: AccessWidth) -> usize {
    MASKS.get(width.size()).copied().unwrap_or(usize::MAX)
}

/// The devices behind one kind of address.
pub(crate) struct Bus<R: DeviceAddrRange>(Snapshot<DeviceTable<R>>);

impl<R: DeviceAddrRange> Bus<R> {
    pub(super) fn new(slots: usize) -> Self {
        Self(Snapshot::new(DeviceTable::new(), slots))
    }

    /// The slot that vCPUs do not use.
    pub(super) fn host(&self) -> usize {
        self.0.last_slot()
    }

    /// A read on vCPU `slot`, or by the [`host`](Self::host). The value has no bit set above the
    /// width. An access that lies in no device, or not wholly, or whose width the device does
    /// not take, is answered by `unclaimed`; every error but that one's is the device's.
    #[inline]
    pub(crate) fn read(
        &self,
        slot: usize,
        addr: R::Addr,
        width: AccessWidth,
        unclaimed: impl FnOnce() -> AxResult<usize>,
    ) -> AxResult<usize> {
        let table = self.0.read(slot);
        let Some(device) = table.find(addr, width) else {
            drop(table);
            return unclaimed();
        };
        // In place: the device's result is the caller's, nothing is copied.
        let mut result = device.handle_read(addr, width);
        match &mut result {
            Ok(value) => *value &= mask(width),
            Err(_) => core::hint::cold_path(),
        }
        result
    }

    /// A write, like [`read`](Self::read). Bits of the value above the width are ignored.
    #[inline]
    pub(crate) fn write(
        &self,
        slot: usize,
        addr: R::Addr,
        width: AccessWidth,
        value: usize,
        unclaimed: impl FnOnce() -> AxResult,
    ) -> AxResult {
        let table = self.0.read(slot);
        match table.find(addr, width) {
            Some(device) => device.handle_write(addr, width, value & mask(width)),
            None => {
                drop(table);
                unclaimed()
            }
        }
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

    pub(super) fn at(&self, addr: R::Addr) -> Option<Device<R>> {
        self.0.read(self.host()).at(addr).cloned()
    }

    pub(super) fn sorted(&self) -> AxResult<Vec<Device<R>>> {
        let table = self.0.read(self.host());
        let mut devices = with_capacity(table.iter().len())?;
        devices.extend(table.iter().cloned());
        Ok(devices)
    }

    pub(super) fn reset(&self) {
        self.0.read(self.host()).iter().for_each(|device| device.reset());
    }
}
