//! One HAL type for all these tests, so that the crate is compiled three times and not three hundred
//! times: which machine it stands for is a matter of the thread.

use std::{
    cell::Cell,
    thread::{Scope, ScopedJoinHandle},
};

use axvm_testkit::{Machine, MachineConfig, MockHal, on_pcpu};

thread_local! {
    static MACHINE: Cell<Option<&'static Machine>> = const { Cell::new(None) };
}

/// The HAL of the machine of this thread's test.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl MockHal for Host {
    fn machine() -> &'static Machine {
        MACHINE.get().expect("start or spawn: this thread is of no test")
    }
}

axvm_testkit::forward_hal!(Host);

/// Gives this thread, a test's, a machine of its own.
pub fn start(vmid_bits: u32) {
    let config = MachineConfig { arena: 32 << 20, vmid_bits, ..MachineConfig::DEFAULT };
    // Leaked: scripted vCPUs refer to it for ever.
    MACHINE.set(Some(Box::leak(Box::new(Machine::new(config)))));
}

/// A thread that is physical CPU `pcpu` of this thread's machine.
pub fn spawn<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    pcpu: usize,
    act: impl FnOnce() -> R + Send + 'scope,
) -> ScopedJoinHandle<'scope, R> {
    let machine = MACHINE.get();
    scope.spawn(move || {
        MACHINE.set(machine);
        on_pcpu(pcpu, act)
    })
}
