//! The life of a VM: creating, booting, ending, resetting and dropping it; what is refused, and
//! what an error leaves behind.

mod allocations;
mod cycles;
mod ends;
mod errors;
mod fences;
mod reset;
mod states;
mod threads;
