//! The firmware that a guest calls: pure functions from a call's registers to what it means, and
//! from an outcome to the registers. Backends use them; the VM serves what they decode.

#![forbid(unsafe_code)]

pub mod sbi;
