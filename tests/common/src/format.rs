//! Which hardware format belongs to which of the crate's, and the shapes of its tables.

use axerrno::{AxErrorKind, AxResult};
pub use axvm::mm::npt::{Ept, GStage, Stage2};
use axvm::mm::npt::{Geometry, NptFormat};

use crate::{HwFormat, walk::Shape};

/// A page-table format of the crate's for which there is hardware here.
pub trait HwNpt: NptFormat {
    /// Its hardware.
    const HW: HwFormat;

    /// The crate's geometry for guest-physical addresses of `bits` bits; None: the default.
    ///
    /// # Errors
    /// `Unsupported` when the format has no such shape.
    fn geometry(bits: Option<u32>) -> AxResult<Geometry> {
        let geometry = match (Self::HW, bits) {
            (HwFormat::Ept, None | Some(48)) => Some(Geometry::EPT),
            (HwFormat::GStage, None | Some(41)) => Some(Geometry::SV39X4),
            (HwFormat::GStage, Some(50)) => Some(Geometry::SV48X4),
            (HwFormat::Stage2, bits) => Geometry::stage2(bits.unwrap_or(40)),
            _ => None,
        };
        geometry.ok_or(AxErrorKind::Unsupported.into())
    }

    /// The shape that the hardware expects for the same.
    fn shape(bits: Option<u32>) -> Shape {
        match (Self::HW, bits) {
            (HwFormat::Ept, _) => Shape { levels: 4, root_entries: 512 },
            (HwFormat::GStage, Some(50)) => Shape { levels: 4, root_entries: 2048 },
            (HwFormat::GStage, _) => Shape { levels: 3, root_entries: 2048 },
            // Up to 16 concatenated tables; with more bits the walk starts a level earlier.
            (HwFormat::Stage2, bits) => match bits.unwrap_or(40) {
                bits @ 39..=43 => Shape { levels: 3, root_entries: 1 << (bits - 30) },
                bits @ 44..=48 => Shape { levels: 4, root_entries: 1 << (bits - 39) },
                bits => panic!("testkit: no stage 2 of {bits} bits"),
            },
        }
    }
}

impl HwNpt for Ept {
    const HW: HwFormat = HwFormat::Ept;
}

impl HwNpt for Stage2 {
    const HW: HwFormat = HwFormat::Stage2;
}

impl HwNpt for GStage {
    const HW: HwFormat = HwFormat::GStage;
}

#[cfg(test)]
mod tests {
    use axvm::mm::{HostPhysAddr, MappingFlags, PageSize};

    use super::*;
    use crate::walk::HwEntry;

    fn agrees<F: HwNpt>(sizes: &[Option<u32>]) {
        for &bits in sizes {
            let geometry = F::geometry(bits).unwrap();
            let expected =
                Shape { levels: geometry.levels(), root_entries: geometry.root_entries() };
            assert_eq!(F::shape(bits), expected, "{} {bits:?}", F::NAME);
        }
        let pa = HostPhysAddr::from_usize(0x12_4000_0000);
        assert_eq!(F::HW.needs_break_before_make(), F::BREAK_BEFORE_MAKE);
        assert_eq!(F::HW.decode(F::table(pa), 1), HwEntry::Table(pa.as_usize()));
        let pages = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
        let rwx = (0..8).map(MappingFlags::from_bits_truncate);
        for permissions in rwx.filter(|&flags| F::supports(flags)) {
            for extra in [MappingFlags::empty(), MappingFlags::DEVICE, MappingFlags::UNCACHED] {
                for (level, size) in pages.into_iter().enumerate() {
                    let entry = F::leaf(pa, permissions | extra, size);
                    let HwEntry::Leaf { pa: found, mut flags } = F::HW.decode(entry, level) else {
                        panic!("{}: {entry:#x} is no leaf to the hardware", F::NAME);
                    };
                    flags.remove(MappingFlags::DEVICE);
                    assert_eq!((found, flags), (pa.as_usize(), permissions), "{entry:#x}");
                }
            }
        }
    }

    #[test]
    fn the_crate_writes_what_the_manuals_say() {
        agrees::<Ept>(&[None]);
        agrees::<Stage2>(&[None, Some(39), Some(42), Some(43), Some(44), Some(48)]);
        agrees::<GStage>(&[None, Some(50)]);
    }
}
