//! What differs between machines. Each architecture provides the same few functions; everything
//! else of the unikernel is written once.
//!
//! | function | what it does |
//! | --- | --- |
//! | `init_machine` | finds console, clock and power switch |
//! | `init_input` | has the console's interrupt come to this CPU |
//! | `init_cpu` | prepares the CPU that calls it: its vectors, its interrupts |
//! | `cpu_ids` | the machine's names for its CPUs |
//! | `start_cpu` | has a CPU begin at [`crate::kernel::secondary`], and waits for it |
//! | `set_this_cpu`, `this_cpu` | a pointer that each CPU has for itself |
//! | `now`, `counter_frequency` | nanoseconds of a clock that all CPUs share; its ticks per second |
//! | `set_timer` | one interrupt on this CPU at a time of that clock |
//! | `interrupt` | an interrupt on another CPU |
//! | `wait_for_interrupt` | sleeps until an interrupt is pending, masked or not |
//! | `open_interrupts` | takes what is pending |
//! | `power_off` | ends the machine with an exit status |
//!
//! Interrupts are masked everywhere but in `open_interrupts`, which is called with no lock held:
//! that is why interrupt handlers may take any lock, and nothing else need think of them.

#[cfg(target_arch = "riscv64")]
mod riscv64;
#[cfg(target_arch = "riscv64")]
pub use riscv64::*;

#[cfg(not(target_arch = "riscv64"))]
compile_error!("the unikernel has no boot code for this architecture yet");
