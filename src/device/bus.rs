//! The devices behind one kind of address, and the dispatch of an access.

use alloc::{sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult};

use super::{BaseDeviceOps, DeviceAddrRange, table::DeviceTable};
use crate::{sync::rcu::Snapshot, vcpu::AccessWidth};

type Device<R> = Arc<dyn BaseDeviceOps<R>>;

/// What became of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dispatch<T = ()> {
    /// A device served it; a value read has no bit set above the width.
    Served(T),
    /// The device's handler failed.
    Failed(AxError),
    /// It lies in no device, or not wholly, or the device does not know that width.
    Unclaimed,
}

impl<T> Dispatch<T> {
    pub(super) fn into_result(self) -> AxResult<T> {
        match self {
            Self::Served(value) => Ok(value),
            Self::Failed(error) => Err(error),
            Self::Unclaimed => Err(AxError::NotFound),
        }
    }
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

    /// A guest's read. `slot` is the vCPU's number, or [`host`](Self::host).
    #[inline]
    pub(crate) fn read(&self, slot: usize, addr: R::Addr, width: AccessWidth) -> Dispatch<usize> {
        let table = self.0.read(slot);
        let Some(device) = table.find(addr, width) else { return Dispatch::Unclaimed };
        match device.handle_read(addr, width) {
            Ok(value) => Dispatch::Served(value & width.mask() as usize),
            Err(error) => Dispatch::Failed(error),
        }
    }

    /// A guest's write. `slot` is the vCPU's number, or [`host`](Self::host).
    #[inline]
    pub(crate) fn write(
        &self,
        slot: usize,
        addr: R::Addr,
        width: AccessWidth,
        value: usize,
    ) -> Dispatch {
        let table = self.0.read(slot);
        let Some(device) = table.find(addr, width) else { return Dispatch::Unclaimed };
        match device.handle_write(addr, width, value & width.mask() as usize) {
            Ok(()) => Dispatch::Served(()),
            Err(error) => Dispatch::Failed(error),
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
        self.0.read(self.host()).sorted()
    }

    pub(super) fn reset(&self) {
        self.0.read(self.host()).iter().for_each(|device| device.reset());
    }
}
