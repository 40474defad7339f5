//! The RISC-V machine room on harts in software: a VM with PLIC, UART and images, from a
//! configuration.

mod console;
mod errors;
#[path = "../boot/files.rs"]
mod files;
mod guest;
mod images;
mod support;
