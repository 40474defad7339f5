//! What guests of ours share: the start of the machine, its console, and how tests report.
//!
//! A guest is a program on the bare machine that axvm, or an emulator without it, boots. It is a
//! test's means, and owns its machine: it may access whatever address it likes, to see what
//! happens. What it does to itself shows as a test that fails. One folder holds all that an
//! architecture needs; a program says `entry!(function)` and calls what it finds in `arch`.

#![no_std]

#[cfg(target_os = "none")]
mod console;
pub mod report;
#[cfg(all(target_os = "none", target_arch = "riscv64"))]
pub mod riscv64;

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
pub use riscv64 as arch;

#[cfg(target_os = "none")]
pub use console::print;

/// Prints a line on the console.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! println {
    ($($words:tt)*) => {
        $crate::print(format_args!("{}\n", format_args!($($words)*)))
    };
}

/// Names the function, of no argument, that the machine's first CPU executes; when it returns, the
/// machine is powered off.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the library declares it so, and no other has the name.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() {
            $main()
        }
    };
}
