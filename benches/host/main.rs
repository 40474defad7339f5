//! Instructions per operation, ours and the peers', for `cargo xtask bench host`.
//!
//! A file per subject; each has its `OPS`, rows of the table with their limits, and a `run`.
//! To add a case: make the [`report::Op`], and call
//! its `run`, `each` or `value` with [`report::OURS`], beside the peers, on the same inputs.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod callgrind;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod devices;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod frames;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod guest_memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod machine;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod paging;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod report;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod vm;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() {
    if !callgrind::is_running() {
        eprintln!("not under valgrind: nothing is counted; run `cargo xtask bench host`");
    }
    report::declare(&[paging::OPS, guest_memory::OPS, devices::OPS, vm::OPS]);
    report::calibrate();
    paging::run();
    guest_memory::run();
    devices::run();
    vm::run();
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("the bench counts with callgrind on x86-64 Linux only");
    std::process::exit(1);
}
