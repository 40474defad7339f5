//! The tests of a RISC-V machine, room by room.

mod atomics;
mod calls;
mod exceptions;
mod float;
mod forms;
mod harts;
mod interrupts;
mod memory;
mod mmio;
mod registers;
mod shootdown;
mod timer;
mod walks;

use axvm_guests::{
    arch::sbi,
    report::{Failure, Outcome, Test},
};

/// All tests, in the order in which they build on each other.
pub const ROOMS: &[&[Test]] = &[
    exceptions::TESTS,
    mmio::TESTS,
    atomics::TESTS,
    walks::TESTS,
    timer::TESTS,
    calls::TESTS,
    interrupts::TESTS,
    harts::TESTS,
    shootdown::TESTS,
    memory::TESTS,
    registers::TESTS,
    float::TESTS,
];

/// The test is of what axvm promises, and other machines may do otherwise.
fn axvm_only() -> Outcome {
    if sbi::is_axvm() { Ok(()) } else { Err(Failure::Skipped("not under axvm")) }
}
