//! The RISC-V backend on harts in software: what it makes of each exit, what it switches when, and
//! how often it touches the hart.

mod calls;
mod complete;
mod csrs;
mod enable;
mod exceptions;
mod exits;
mod fetch;
mod fp;
mod mmio;
mod state;
mod support;
mod timer;
mod traffic;
