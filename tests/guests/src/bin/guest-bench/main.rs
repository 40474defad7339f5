//! Measures what exits cost a guest. `cargo xtask bench exits` boots it, and reads the lines that
//! begin with `@bench`; it powers the machine off at the end.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
mod riscv64;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest. `cargo xtask bench exits` boots it in a VM.");
    std::process::exit(2);
}
