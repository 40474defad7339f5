//! The host's access to a VM's memory.

use alloc::vec::Vec;

use axerrno::{AxResult, ax_err};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::AxVM;
use crate::{
    hal::AxVMHal,
    mm::{
        AddrSpace, GpaRange, GuestPhysAddr, HostPhysAddr, HostSegment, MappingFlags, Origin, Source,
    },
    vcpu::AxArchVCpu,
};

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// The address space: copies, atomics, faults. To map host memory use
    /// [`map_region`](Self::map_region), which looks at devices too.
    pub fn memory(&self) -> &AddrSpace<H, A::Npt, A::Tlb> {
        &self.core.space
    }

    /// The host-virtual segments behind a guest range of RAM, for an image loader.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not RAM; `NoMemory`.
    pub fn get_image_load_region(
        &self,
        gpa: GuestPhysAddr,
        len: usize,
    ) -> AxResult<Vec<HostSegment>> {
        self.core.space.host_segments(gpa, len)
    }

    /// Maps host memory, which stays the host's, into the guest.
    ///
    /// # Errors
    /// `InvalidInput` unless addresses and size are multiples of 4 KiB in the address spaces and
    /// the hardware can express `flags`; `AlreadyExists` when memory or a device is there;
    /// `NoMemory`.
    pub fn map_region(
        &self,
        gpa: GuestPhysAddr,
        hpa: HostPhysAddr,
        size: usize,
        flags: MappingFlags,
    ) -> AxResult {
        let free = || match GpaRange::new(gpa, size) {
            Some(range) if self.devices.overlaps_mmio(range) => {
                ax_err!(AlreadyExists, format_args!("{range:?} overlaps a device"))
            }
            _ => Ok(()),
        };
        free()?;
        self.core.space.add(gpa, size, flags, Source::Linear(hpa), Origin::Host)?;
        // A device that was added meanwhile has looked before the memory was there: look again.
        free().or_else(|error| self.core.space.unmap(gpa, size).and(Err(error)))
    }

    /// Removes memory from the guest; see [`AddrSpace::unmap`]. Host memory may be used for
    /// something else when [`AddrSpace::is_settled`].
    ///
    /// # Errors
    /// `InvalidInput` unless both are multiples of 4 KiB and every byte is mapped; `NoMemory`
    /// when a large leaf must be split.
    pub fn unmap_region(&self, gpa: GuestPhysAddr, size: usize) -> AxResult {
        self.core.space.unmap(gpa, size)
    }

    /// Reads a plain-old-data object from guest memory.
    ///
    /// # Errors
    /// `InvalidInput` when a byte is not in readable RAM; `NoMemory` when a lazy page cannot be
    /// populated.
    #[inline]
    pub fn read_from_guest_of<T: FromBytes>(&self, gpa: GuestPhysAddr) -> AxResult<T> {
        self.core.space.read_obj(gpa)
    }

    /// Writes a plain-old-data object to guest memory.
    ///
    /// # Errors
    /// As [`read_from_guest_of`](Self::read_from_guest_of), for writable RAM.
    #[inline]
    pub fn write_to_guest_of<T: IntoBytes + Immutable>(
        &self,
        gpa: GuestPhysAddr,
        value: &T,
    ) -> AxResult {
        self.core.space.write_obj(gpa, value)
    }

    /// Sets guest-physical addresses aside for an inter-VM channel, in the window of the
    /// configuration's IVC device. Returns where, and the size rounded up to 4 KiB. Mapping
    /// memory there is the caller's ([`map_region`](Self::map_region)).
    ///
    /// # Errors
    /// `InvalidInput` for size 0; `NoMemory` when the window is exhausted or there is none.
    pub fn alloc_ivc_channel(&self, size: usize) -> AxResult<(GuestPhysAddr, usize)> {
        self.devices.alloc_ivc_channel(size)
    }

    /// Gives back what [`alloc_ivc_channel`](Self::alloc_ivc_channel) returned.
    ///
    /// # Errors
    /// `InvalidInput` unless it is exactly that.
    pub fn release_ivc_channel(&self, gpa: GuestPhysAddr, size: usize) -> AxResult {
        self.devices.release_ivc_channel(gpa, size)
    }
}
