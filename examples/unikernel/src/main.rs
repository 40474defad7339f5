//! The smallest real host of axvm: it boots on bare metal, and runs the VMs of a guest bundle.
//!
//! The bundle is a `newc` cpio archive, handed over as initrd, with one or several `vm*.toml` and
//! the images that they name. Each VM's output appears on the machine's console. When all have
//! ended, the machine does: with exit status 0 if each was powered off by itself, otherwise 1.
//!
//! `cargo xtask run` builds it, makes a bundle and starts it in an emulator.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a kernel. `cargo xtask run` starts it on an emulated machine.");
    std::process::exit(2);
}
