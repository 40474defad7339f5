//! One machine for the tests of a file, which take turns on it.

use std::sync::{Mutex, MutexGuard};

use axvm::{config::AxVMConfig, vcpu::AxVCpuExitReason};
use axvm_testkit::{MockHal, Step, TestVm, VM, booted};

pub const HALT: axerrno::AxResult<AxVCpuExitReason> = Ok(AxVCpuExitReason::Halt);

static TURN: Mutex<()> = Mutex::new(());

/// A booted VM on a machine that nobody else uses while the guard lives.
#[track_caller]
pub fn start<H: MockHal>(config: AxVMConfig) -> (TestVm<H>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let machine = H::machine();
    machine.fail_never();
    machine.set_time(0);
    for vcpu in 0..4 {
        machine.program(VM, vcpu).clear();
        machine.set_irq_busy(VM, vcpu, false);
    }
    let vm = booted::<H>(config);
    machine.take_trace();
    machine.take_kicks();
    machine.take_wakes();
    machine.take_timers();
    (vm, turn)
}

/// Runs vCPU 0 through some steps, to its halt.
#[track_caller]
pub fn play<H: MockHal>(vm: &TestVm<H>, steps: impl IntoIterator<Item = Step>) {
    H::machine().program(VM, 0).extend(steps);
    assert_eq!(vm.run_vcpu(0), HALT);
}

/// A register of vCPU 0.
#[track_caller]
pub fn reg<H: MockHal>(vm: &TestVm<H>, reg: usize) -> u64 {
    vm.vcpu_state(0).unwrap().regs[reg]
}

/// Sets a register of vCPU 0.
pub fn preset(reg: usize, value: u64) -> Step {
    Step::call(move |guest| guest.regs[reg] = value)
}
