//! The devices of one VM.

use alloc::{sync::Arc, vec::Vec};

use axerrno::{AxError, AxResult, ax_err};

use super::{
    BaseDeviceOps, PortRange, SysRegRange,
    bus::{Bus, HOST},
    ivc::IvcWindow,
};
use crate::{
    mm::{GpaRange, GuestPhysAddr},
    sync::Mutex,
    vcpu::{AccessWidth, Port, SysRegAddr},
};

/// The devices of one VM.
///
/// An access goes to a device only if it lies wholly inside one range and has a width that the
/// device takes; it takes no lock and allocates nothing. Adding and removing replace a table and
/// wait until the old one is out of use, that is until the handlers which run at that moment
/// have returned. **So a device's handler must not add to or remove from its own VM's devices:
/// it would wait for itself.**
pub struct AxVmDevices {
    pub(crate) mmio: Bus<GpaRange>,
    pub(crate) ports: Bus<PortRange>,
    pub(crate) sys_regs: Bus<SysRegRange>,
    ivc: Mutex<Option<IvcWindow>>,
    relax: fn(),
}

impl Default for AxVmDevices {
    fn default() -> Self {
        Self::new()
    }
}

impl AxVmDevices {
    /// No devices yet.
    pub fn new() -> Self {
        Self::with_relax(core::hint::spin_loop)
    }

    /// Like [`new`](Self::new); `relax` is called in a loop while adding or removing waits for
    /// handlers, as [`AxVMHal::relax`](crate::AxVMHal::relax).
    pub fn with_relax(relax: fn()) -> Self {
        Self {
            mmio: Bus::new(),
            ports: Bus::new(),
            sys_regs: Bus::new(),
            ivc: Mutex::new(None),
            relax,
        }
    }

    /// Adds a device behind guest-physical addresses.
    ///
    /// # Errors
    /// `AlreadyExists` when a device answers for one of its addresses; `NoMemory`.
    pub fn add_mmio_dev(&self, device: Arc<dyn BaseDeviceOps<GpaRange>>) -> AxResult {
        self.mmio.add(device, self.relax)
    }

    /// Removes the device whose range begins at `start`; returns when no handler of it runs any
    /// more on behalf of a guest.
    ///
    /// # Errors
    /// `NotFound` when no range begins there; `NoMemory`.
    pub fn remove_mmio_dev(
        &self,
        start: GuestPhysAddr,
    ) -> AxResult<Arc<dyn BaseDeviceOps<GpaRange>>> {
        self.mmio.remove(start, self.relax)
    }

    /// Whether a device answers for an address in `range`.
    pub(crate) fn overlaps_mmio(&self, range: GpaRange) -> bool {
        self.mmio.overlaps(range.start().as_usize(), range.end().as_usize() - 1)
    }

    /// The device that answers for the guest-physical address.
    pub fn find_mmio_dev(&self, addr: GuestPhysAddr) -> Option<Arc<dyn BaseDeviceOps<GpaRange>>> {
        self.mmio.at(addr)
    }

    /// The devices behind guest-physical addresses, in the order of these.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn iter_mmio_dev(&self) -> AxResult<Vec<Arc<dyn BaseDeviceOps<GpaRange>>>> {
        self.mmio.sorted()
    }

    /// Reads as a guest would, for the host. The value has no bit set above the width.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    #[inline(always)]
    pub fn handle_mmio_read(&self, addr: GuestPhysAddr, width: AccessWidth) -> AxResult<usize> {
        claimed(self.mmio.read(HOST, addr, width))
    }

    /// Writes as a guest would, for the host. Bits of the value above the width are ignored.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    pub fn handle_mmio_write(
        &self,
        addr: GuestPhysAddr,
        width: AccessWidth,
        value: usize,
    ) -> AxResult {
        self.mmio.write(HOST, addr, width, value).unwrap_or(Err(AxError::NotFound))
    }

    /// Adds a device behind I/O ports.
    ///
    /// # Errors
    /// `AlreadyExists` when a device answers for one of its addresses; `NoMemory`.
    pub fn add_port_dev(&self, device: Arc<dyn BaseDeviceOps<PortRange>>) -> AxResult {
        self.ports.add(device, self.relax)
    }

    /// Removes the device whose range begins at `start`; returns when no handler of it runs any
    /// more on behalf of a guest.
    ///
    /// # Errors
    /// `NotFound` when no range begins there; `NoMemory`.
    pub fn remove_port_dev(&self, start: Port) -> AxResult<Arc<dyn BaseDeviceOps<PortRange>>> {
        self.ports.remove(start, self.relax)
    }

    /// The device that answers for the I/O port.
    pub fn find_port_dev(&self, addr: Port) -> Option<Arc<dyn BaseDeviceOps<PortRange>>> {
        self.ports.at(addr)
    }

    /// The devices behind I/O ports, in the order of these.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn iter_port_dev(&self) -> AxResult<Vec<Arc<dyn BaseDeviceOps<PortRange>>>> {
        self.ports.sorted()
    }

    /// Reads as a guest would, for the host. The value has no bit set above the width.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    pub fn handle_port_read(&self, addr: Port, width: AccessWidth) -> AxResult<usize> {
        claimed(self.ports.read(HOST, addr, width))
    }

    /// Writes as a guest would, for the host. Bits of the value above the width are ignored.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    pub fn handle_port_write(&self, addr: Port, width: AccessWidth, value: usize) -> AxResult {
        self.ports.write(HOST, addr, width, value).unwrap_or(Err(AxError::NotFound))
    }

    /// Adds a device behind system registers.
    ///
    /// # Errors
    /// `AlreadyExists` when a device answers for one of its addresses; `NoMemory`.
    pub fn add_sys_reg_dev(&self, device: Arc<dyn BaseDeviceOps<SysRegRange>>) -> AxResult {
        self.sys_regs.add(device, self.relax)
    }

    /// Removes the device whose range begins at `start`; returns when no handler of it runs any
    /// more on behalf of a guest.
    ///
    /// # Errors
    /// `NotFound` when no range begins there; `NoMemory`.
    pub fn remove_sys_reg_dev(
        &self,
        start: SysRegAddr,
    ) -> AxResult<Arc<dyn BaseDeviceOps<SysRegRange>>> {
        self.sys_regs.remove(start, self.relax)
    }

    /// The device that answers for the system register.
    pub fn find_sys_reg_dev(
        &self,
        addr: SysRegAddr,
    ) -> Option<Arc<dyn BaseDeviceOps<SysRegRange>>> {
        self.sys_regs.at(addr)
    }

    /// The devices behind system registers, in the order of these.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn iter_sys_reg_dev(&self) -> AxResult<Vec<Arc<dyn BaseDeviceOps<SysRegRange>>>> {
        self.sys_regs.sorted()
    }

    /// Reads as a guest would, for the host. The value has no bit set above the width.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    pub fn handle_sys_reg_read(&self, addr: SysRegAddr, width: AccessWidth) -> AxResult<usize> {
        claimed(self.sys_regs.read(HOST, addr, width))
    }

    /// Writes as a guest would, for the host. Bits of the value above the width are ignored.
    ///
    /// # Errors
    /// `NotFound` when no device serves the access; those of the device.
    pub fn handle_sys_reg_write(
        &self,
        addr: SysRegAddr,
        width: AccessWidth,
        value: usize,
    ) -> AxResult {
        self.sys_regs.write(HOST, addr, width, value).unwrap_or(Err(AxError::NotFound))
    }

    /// Sets where channels between VMs are placed.
    ///
    /// # Errors
    /// `InvalidInput` unless both ends are page-aligned; `BadState` while a channel is allocated.
    pub fn set_ivc_window(&self, window: GpaRange) -> AxResult {
        let window = IvcWindow::new(window)?;
        let mut ivc = self.ivc.lock();
        if ivc.as_ref().is_some_and(|old| !old.is_unused()) {
            return ax_err!(BadState, "channels are allocated in the old window");
        }
        *ivc = Some(window);
        Ok(())
    }

    /// Allocates a range for a channel: `size` bytes, rounded up to 4 KiB. Returns where it
    /// begins and how long it is.
    ///
    /// # Errors
    /// `InvalidInput` for 0; `NoMemory` when the window, if one is set, has no such gap.
    pub fn alloc_ivc_channel(&self, size: usize) -> AxResult<(GuestPhysAddr, usize)> {
        match self.ivc.lock().as_mut() {
            _ if size == 0 => Err(AxError::InvalidInput),
            Some(ivc) => ivc.alloc(size).map(|channel| (channel.start(), channel.size())),
            None => Err(AxError::NoMemory),
        }
    }

    /// Frees a channel's range; `size` may be the one before rounding.
    ///
    /// # Errors
    /// `InvalidInput` unless exactly this is allocated.
    pub fn release_ivc_channel(&self, start: GuestPhysAddr, size: usize) -> AxResult {
        let mut ivc = self.ivc.lock();
        ivc.as_mut().ok_or(AxError::InvalidInput)?.release(start, size)
    }

    /// Resets every device, and forgets the channels, which the VM has unmapped. No vCPU runs.
    pub(crate) fn reset(&self) {
        self.mmio.reset();
        self.ports.reset();
        self.sys_regs.reset();
        if let Some(ivc) = self.ivc.lock().as_mut() {
            ivc.clear();
        }
    }
}

/// `NotFound` for what nobody claimed. Spelled out: `unwrap_or` copies the result through memory.
#[inline(always)]
fn claimed(result: Option<AxResult<usize>>) -> AxResult<usize> {
    match result {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(error),
        None => Err(AxError::NotFound),
    }
}

#[cfg(all(test, not(loom)))]
#[path = "manager_tests.rs"]
mod tests;
