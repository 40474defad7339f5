//! Which hardware format belongs to which of the crate's, and the shapes of its tables.
//!
//! STAND-IN until `axvm::mm::npt` has its formats: then the three local types go, and
//! `geometry` and `shape` ask the real `Geometry`.

use axerrno::AxResult;
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
        let _ = bits;
        Ok(Geometry)
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

/// STAND-IN
#[derive(Clone, Copy, Debug)]
pub struct Ept;
/// STAND-IN
#[derive(Clone, Copy, Debug)]
pub struct Stage2;
/// STAND-IN
#[derive(Clone, Copy, Debug)]
pub struct GStage;

impl NptFormat for Ept {}
impl NptFormat for Stage2 {}
impl NptFormat for GStage {}

impl HwNpt for Ept {
    const HW: HwFormat = HwFormat::Ept;
}

impl HwNpt for Stage2 {
    const HW: HwFormat = HwFormat::Stage2;
}

impl HwNpt for GStage {
    const HW: HwFormat = HwFormat::GStage;
}
