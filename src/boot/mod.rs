//! What a guest needs to start: its kernel's image format, a place in its memory for each thing, a
//! device tree, and the copy into its memory.
//!
//! A host calls [`KernelImage::parse`], has a [`Plan`] made of where all goes, generates the device
//! tree for it ([`fdt`]) and calls [`load`], from
//! [`AxVM::load_images`](crate::vm::AxVM::load_images), so that a reset loads again. All of it but
//! the copy is pure, and compiles everywhere.

#![forbid(unsafe_code)]

pub mod fdt;
mod image;
mod load;
mod misfit;
mod placement;

pub use image::{
    ImageError, ImageFormat, KernelImage, Location, MAX_SEGMENTS, Machine, PlacedKernel, Segment,
};
pub use load::load;
pub use misfit::{Item, Misfit, PlacementError};
pub use placement::{Plan, REACH, Request};
