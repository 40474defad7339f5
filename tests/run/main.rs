//! What `run_vcpu` serves, what it returns, and what it counts.

mod console;
mod controller;
mod fence;
mod forward;
mod halt;
mod irq;
mod mmio;
mod nothing;
mod ports;
mod power;
mod status;
mod support;
mod suspend;
mod trace;
