//! What `run_vcpu` serves, what it returns, and what it counts.

mod controller;
mod forward;
mod halt;
mod irq;
mod mmio;
mod nothing;
mod ports;
mod power;
mod support;
