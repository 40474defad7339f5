//! From a kernel's file to a guest's memory: formats, places, device trees, the copy.

mod fdt;
mod files;
mod image;
mod load;
mod mutations;
mod placement;

use axvm::boot::{KernelImage, Machine};

/// A file that is right, in the format that it shows.
#[track_caller]
fn kernel(bytes: &[u8]) -> KernelImage<'_> {
    KernelImage::parse(bytes, Machine::Riscv64, None).unwrap()
}
