//! Runs the tests, one after the other, whatever becomes of each.

#[cfg(target_arch = "riscv64")]
use crate::riscv64::ROOMS;
use axvm_guests::{arch, println, report::Summary};

axvm_guests::entry!(main);

fn main() {
    println!("guest-tests on {} harts", arch::machine::harts());
    let mut summary = Summary::default();
    for (name, test) in ROOMS.iter().copied().flatten() {
        arch::quiet();
        let outcome = arch::cpu::protect(*test);
        arch::quiet();
        println!("{}", summary.count(name, &outcome));
    }
    println!("{summary}");
}
