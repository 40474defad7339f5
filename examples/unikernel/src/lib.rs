//! The part of the unikernel that touches no machine: what is in the bundle, what the boot
//! arguments and the device tree say, whose turn it is, whose line is on the screen. It runs in
//! `cargo test` on any machine; the kernel around it is `main.rs`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bundle;
pub mod clock;
pub mod focus;
pub mod options;
pub mod queue;
pub mod screen;
pub mod tree;
