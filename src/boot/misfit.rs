//! Why a guest's images have no place in its memory.

use core::fmt;

use axerrno::AxError;

use crate::mm::{GpaRange, GuestPhysAddr};

/// Something that has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The device tree.
    DeviceTree,
    /// What the caller reserved.
    Reserved,
}

/// Why something does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is empty.
    Empty,
    /// It needs an address, which was not given.
    NoAddress,
    /// An address was given, and it can be here only.
    FixedAt(GpaRange),
    /// Its address is not `offset` more than a multiple of `align`.
    Misaligned {
        /// A power of two.
        align: usize,
        /// Less than `align`.
        offset: usize,
    },
    /// A byte of it would not be in RAM.
    NotInRam,
    /// It would overlap this.
    Overlaps(Item, GpaRange),
    /// Nowhere in RAM is room.
    NoRoom,
    /// The address, as an entry point, is not in the kernel, nor in what is reserved.
    EntryOutside,
}

impl Misfit {
    pub(super) const fn of(
        self,
        item: Item,
        at: Option<GuestPhysAddr>,
        size: usize,
    ) -> PlacementError {
        PlacementError { item, at, size, why: self }
    }
}

/// Something does not fit into the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementError {
    /// What.
    pub item: Item,
    /// Its address, if it has one.
    pub at: Option<GuestPhysAddr>,
    /// Its size in bytes.
    pub size: usize,
    /// Why.
    pub why: Misfit,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel",
            Self::Initrd => "the initial RAM disk",
            Self::DeviceTree => "the device tree",
            Self::Reserved => "what is reserved",
        })
    }
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item, at, size, why } = self;
        if *why == Misfit::EntryOutside {
            write!(f, "the entry point {:#x}", at.unwrap_or_default())?;
        } else {
            write!(f, "{item} of {size:#x} bytes")?;
            if let Some(at) = at {
                write!(f, " at {at:#x}")?;
            }
        }
        match why {
            Misfit::Empty => f.write_str(" is empty"),
            Misfit::NoAddress => f.write_str(" needs an address"),
            Misfit::FixedAt(span) => write!(f, " can be at {span:?} only"),
            Misfit::Misaligned { align, offset: 0 } => {
                write!(f, " is not at a multiple of {align:#x}")
            }
            Misfit::Misaligned { align, offset } => {
                write!(f, " is not at {offset:#x} more than a multiple of {align:#x}")
            }
            Misfit::NotInRam => f.write_str(" is not all in RAM"),
            Misfit::Overlaps(other, place) => write!(f, " overlaps {other} at {place:?}"),
            Misfit::NoRoom => f.write_str(" has no room in RAM"),
            Misfit::EntryOutside => f.write_str(" is not in the kernel"),
        }
    }
}

impl core::error::Error for PlacementError {}

/// Always `InvalidInput`.
impl From<PlacementError> for AxError {
    fn from(_: PlacementError) -> Self {
        Self::InvalidInput
    }
}
