//! Tests what a guest may rely on: that the machine in which axvm puts it behaves as the manuals
//! say. `cargo xtask test` boots it; it powers the machine off at the end.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
mod riscv64;
#[cfg(target_os = "none")]
mod runner;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest. `cargo xtask test` boots it in a VM.");
    std::process::exit(2);
}
