//! Where things go in the guest's memory: where they were configured to go, or where there is room.

use super::{Item, KernelImage, Location, Misfit, PlacedKernel, PlacementError};
use crate::mm::{GpaRange, GuestPhysAddr, PAGE_SIZE_4K};

/// How far from the kernel's start a device tree is put, and an initial RAM disk if possible: 1
/// GiB. Early code maps little more.
pub const REACH: usize = 1 << 30;

/// Preferred alignment of a device tree whose address is chosen: kernels map it by 2 MiB.
const DTB_ALIGN: usize = 2 << 20;

/// A device tree begins at a multiple of 8 bytes (Devicetree Specification 0.4, 5.6).
const DTB_MIN_ALIGN: usize = 8;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r, 'a> {
    /// The guest's memory; regions do not overlap.
    pub ram: &'r [GpaRange],
    /// What nothing may be placed on: firmware, say. It need not be in RAM.
    pub reserved: &'r [GpaRange],
    /// The kernel.
    pub kernel: KernelImage<'a>,
    /// Where its first byte goes. An ELF program needs none, and has no other; a RISC-V Image goes
    /// to a multiple of 2 MiB plus its text offset, without an address to the first in RAM; a
    /// flat image needs one.
    pub kernel_at: Option<GuestPhysAddr>,
    /// Where vCPU 0 begins, if not where the image says: in the kernel or in what is reserved.
    pub entry: Option<GuestPhysAddr>,
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Where it goes; chosen as high as possible if not given.
    pub initrd_at: Option<GuestPhysAddr>,
    /// How many bytes the device tree may have, 0 if there is none.
    pub dtb_room: usize,
    /// Where it goes, a multiple of 8; chosen as high as possible if not given.
    pub dtb_at: Option<GuestPhysAddr>,
}

impl<'r, 'a> Request<'r, 'a> {
    /// A kernel, and nothing else yet.
    pub const fn new(ram: &'r [GpaRange], kernel: KernelImage<'a>) -> Self {
        Self {
            ram,
            reserved: &[],
            kernel,
            kernel_at: None,
            entry: None,
            initrd: None,
            initrd_at: None,
            dtb_room: 0,
            dtb_at: None,
        }
    }
}

/// Where everything goes. All of it is in RAM, and nothing overlaps.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    kernel: PlacedKernel<'a>,
    entry: GuestPhysAddr,
    initrd: Option<(GpaRange, &'a [u8])>,
    dtb: Option<GpaRange>,
}

impl<'a> Plan<'a> {
    /// Finds a place for each thing: first for those whose address is given; then, where there is
    /// room, for the kernel as low, and for the device tree and the initial RAM disk as high as
    /// possible, within [`REACH`] of the kernel. Only an initial RAM disk may be further away.
    ///
    /// # Errors
    /// The first thing that does not fit, and why.
    pub fn new(request: &Request<'_, 'a>) -> Result<Self, PlacementError> {
        let mut taken = Taken { ram: request.ram, reserved: request.reserved, items: [None; 3] };
        // What has an address goes first, so that what is chosen keeps clear of it.
        let mut kernel = match kernel_address(request)? {
            Some(at) => Some(taken.kernel(request.kernel, at)?),
            None => None,
        };
        let initrd_size = request.initrd.map(<[u8]>::len);
        let mut initrd = match (initrd_size, request.initrd_at) {
            (Some(size), Some(at)) => Some(taken.take(Item::Initrd, at, size)?),
            (Some(0), None) => return Err(Misfit::Empty.of(Item::Initrd, None, 0)),
            _ => None,
        };
        let dtb_size = Some(request.dtb_room).filter(|&room| room != 0);
        let mut dtb = match (dtb_size, request.dtb_at) {
            (Some(size), Some(at)) if !at.as_usize().is_multiple_of(DTB_MIN_ALIGN) => {
                let why = Misfit::Misaligned { align: DTB_MIN_ALIGN, offset: 0 };
                return Err(why.of(Item::DeviceTree, Some(at), size));
            }
            (Some(size), Some(at)) => Some(taken.take(Item::DeviceTree, at, size)?),
            _ => None,
        };
        if kernel.is_none()
            && let Location::Movable { size, align, offset } = request.kernel.location()
        {
            let at = taken.lowest(size, align, offset);
            let at = at.ok_or(Misfit::NoRoom.of(Item::Kernel, None, size))?;
            kernel = Some(taken.kernel(request.kernel, at)?);
        }
        let kernel = kernel.ok_or(Misfit::NoAddress.of(Item::Kernel, None, 0))?;
        let reach = kernel.span().start().checked_add(REACH);
        let reach = reach.map_or(usize::MAX, GuestPhysAddr::as_usize);
        if let (Some(size), None) = (dtb_size, dtb) {
            let place = |align| taken.highest(size, align, reach);
            let at = place(DTB_ALIGN).or_else(|| place(PAGE_SIZE_4K));
            let at = at.ok_or(Misfit::NoRoom.of(Item::DeviceTree, None, size))?;
            dtb = Some(taken.take(Item::DeviceTree, at, size)?);
        }
        if let (Some(size), None) = (initrd_size, initrd) {
            let place = |limit| taken.highest(size, PAGE_SIZE_4K, limit);
            let at = place(reach).or_else(|| place(usize::MAX));
            let at = at.ok_or(Misfit::NoRoom.of(Item::Initrd, None, size))?;
            initrd = Some(taken.take(Item::Initrd, at, size)?);
        }
        let entry = request.entry.unwrap_or(kernel.entry());
        let places = request.reserved.iter().copied().chain([kernel.span()]);
        if !{ places }.any(|place| place.contains(entry)) {
            return Err(Misfit::EntryOutside.of(Item::Kernel, Some(entry), kernel.span().size()));
        }
        Ok(Self { kernel, entry, initrd: initrd.zip(request.initrd), dtb })
    }

    /// The kernel.
    pub const fn kernel(&self) -> &PlacedKernel<'a> {
        &self.kernel
    }

    /// Where vCPU 0 begins.
    pub const fn entry(&self) -> GuestPhysAddr {
        self.entry
    }

    /// Where the initial RAM disk goes.
    pub fn initrd(&self) -> Option<GpaRange> {
        self.initrd.map(|(range, _)| range)
    }

    /// The initial RAM disk, as long as its range.
    pub(super) const fn initrd_bytes(&self) -> Option<(GpaRange, &'a [u8])> {
        self.initrd
    }

    /// Where the device tree goes; it may be shorter.
    pub const fn dtb(&self) -> Option<GpaRange> {
        self.dtb
    }
}

/// The kernel's address, if it has one already.
fn kernel_address(request: &Request<'_, '_>) -> Result<Option<GuestPhysAddr>, PlacementError> {
    match (request.kernel.location(), request.kernel_at) {
        (Location::Fixed(span), None) => Ok(Some(span.start())),
        (Location::Fixed(span), Some(at)) if at != span.start() => {
            Err(Misfit::FixedAt(span).of(Item::Kernel, Some(at), span.size()))
        }
        (Location::Movable { size, align, offset }, Some(at)) => {
            // Both are less than the align, a power of two far from overflow.
            let aligned = at.as_usize() % align == offset % align;
            let why = Misfit::Misaligned { align, offset: offset % align };
            if aligned { Ok(Some(at)) } else { Err(why.of(Item::Kernel, Some(at), size)) }
        }
        (Location::Unknown { size }, None) => Err(Misfit::NoAddress.of(Item::Kernel, None, size)),
        (_, at) => Ok(at),
    }
}

/// What is taken so far.
struct Taken<'a> {
    ram: &'a [GpaRange],
    reserved: &'a [GpaRange],
    items: [Option<(Item, GpaRange)>; 3],
}

impl Taken<'_> {
    fn all(&self) -> impl Iterator<Item = (Item, GpaRange)> {
        let reserved = self.reserved.iter().map(|&range| (Item::Reserved, range));
        reserved.chain(self.items.iter().flatten().copied())
    }

    /// Whether every byte is in RAM; it may lie in several regions that touch.
    fn in_ram(&self, range: GpaRange) -> bool {
        let mut next = range.start();
        while next < range.end() {
            match self.ram.iter().find(|region| region.contains(next)) {
                Some(region) => next = region.end(),
                None => return false,
            }
        }
        true
    }

    fn collision(&self, range: GpaRange) -> Option<(Item, GpaRange)> {
        self.all().find(|(_, other)| other.overlaps(range))
    }

    fn is_free(&self, range: GpaRange) -> bool {
        self.in_ram(range) && self.collision(range).is_none()
    }

    /// Takes this range, in RAM or not.
    fn occupy(&mut self, item: Item, range: GpaRange) -> Result<(), PlacementError> {
        if let Some((other, place)) = self.collision(range) {
            let why = Misfit::Overlaps(other, place);
            return Err(why.of(item, Some(range.start()), range.size()));
        }
        if let Some(free) = self.items.iter_mut().find(|slot| slot.is_none()) {
            *free = Some((item, range));
        }
        Ok(())
    }

    fn take(
        &mut self,
        item: Item,
        at: GuestPhysAddr,
        size: usize,
    ) -> Result<GpaRange, PlacementError> {
        let misfit = |why: Misfit| why.of(item, Some(at), size);
        if size == 0 {
            return Err(misfit(Misfit::Empty));
        }
        let range = GpaRange::new(at, size).ok_or(misfit(Misfit::NotInRam))?;
        if !self.in_ram(range) {
            return Err(misfit(Misfit::NotInRam));
        }
        self.occupy(item, range)?;
        Ok(range)
    }

    /// Between its segments there may be something else than RAM.
    fn kernel<'a>(
        &mut self,
        image: KernelImage<'a>,
        at: GuestPhysAddr,
    ) -> Result<PlacedKernel<'a>, PlacementError> {
        let size = image.location().size();
        let kernel = image.at(at).ok_or(Misfit::NotInRam.of(Item::Kernel, Some(at), size))?;
        let outside = kernel.segments().map(|part| part.range).find(|&part| !self.in_ram(part));
        if let Some(part) = outside {
            return Err(Misfit::NotInRam.of(Item::Kernel, Some(part.start()), part.size()));
        }
        self.occupy(Item::Kernel, kernel.span())?;
        Ok(kernel)
    }

    /// The lowest free address that is `offset` more than a multiple of `align`, and as much
    /// further than the start of its region of RAM.
    fn lowest(&self, size: usize, align: usize, offset: usize) -> Option<GuestPhysAddr> {
        let rest = offset % align;
        let next =
            |at: usize| at.saturating_sub(rest).checked_next_multiple_of(align)?.checked_add(rest);
        // It follows the start of RAM, or what is taken.
        let candidates = self.ram.iter().flat_map(|region| {
            let first = region.start().as_usize().checked_add(offset - rest).and_then(next);
            let after = self.all().filter_map(move |(_, range)| next(range.end().as_usize()));
            first.into_iter().chain(after.filter_map(move |at| Some(at.max(first?))))
        });
        candidates
            .filter_map(|at| GpaRange::new(at.into(), size))
            .filter(|&range| self.is_free(range))
            .map(GpaRange::start)
            .min()
    }

    /// The highest free multiple of `align` from which `size` bytes end at `limit` or before.
    fn highest(&self, size: usize, align: usize, limit: usize) -> Option<GuestPhysAddr> {
        // It is followed by the end of RAM, by the limit, or by what is taken.
        let ends = self.ram.iter().map(|region| region.end());
        let candidates = ends.chain(self.all().map(|(_, range)| range.start()));
        candidates
            .chain([limit.into()])
            .filter_map(|end| {
                let start = end.as_usize().min(limit).checked_sub(size)?;
                let range = GpaRange::new((start - start % align).into(), size)?;
                self.is_free(range).then_some(range.start())
            })
            .max()
    }
}
