//! One machine for the tests of a file, which take turns on it.

use std::sync::{Mutex, MutexGuard};

use axerrno::AxResult;
use axvm::{
    config::AxVMConfig,
    vcpu::{AxVCpuExitReason, CpuUpError, VcpuExit},
};
use axvm_testkit::{MockHal, Step, TestVm, VM, booted, cpu_up_code, on_pcpu, test_config};

pub const HALT: AxResult<AxVCpuExitReason> = Ok(AxVCpuExitReason::Halt);

static TURN: Mutex<()> = Mutex::new(());

/// A booted VM on a machine that nobody else uses while the guard lives.
#[track_caller]
pub fn start<H: MockHal>(config: AxVMConfig) -> (TestVm<H>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let machine = H::machine();
    machine.fail_never();
    machine.set_time(0);
    machine.set_times_guests(false);
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

/// The start of a vCPU by the guest's name for it.
pub fn up(target_cpu: u64) -> VcpuExit {
    VcpuExit::CpuUp { target_cpu, entry_point: 0x5000.into(), arg: 0x77 }
}

/// Guest names that are no indices: MPIDR affinities, a few of a cluster.
pub fn named() -> AxVMConfig {
    let mut config = test_config(4);
    config.phys_cpu_ids = Some(vec![0x100, 0x101, 0x200, 0xffff_ffff_0000]);
    config
}

/// vCPU 0 starts another, which does not run yet.
#[track_caller]
pub fn start_vcpu<H: MockHal>(vm: &TestVm<H>, name: u64, index: u64) {
    H::machine().program(VM, 0).push(Step::Exit(up(name)));
    let reason =
        AxVCpuExitReason::CpuUp { target_cpu: index, entry_point: 0x5000.into(), arg: 0x77 };
    assert_eq!(vm.run_vcpu(0), Ok(reason));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(vm, 0), cpu_up_code(Ok::<(), CpuUpError>(())));
}

/// Runs a vCPU on the physical CPU of its number, where no other runs.
pub fn run_at_home<H: MockHal>(vm: &TestVm<H>, vcpu: usize) -> AxResult<AxVCpuExitReason> {
    on_pcpu(vcpu, || vm.run_vcpu(vcpu))
}

/// Switches vCPUs on that have the names 1 and so on, and has each come home, once: what it has to
/// forget there is forgotten then.
#[track_caller]
pub fn start_at_home<H: MockHal>(vm: &TestVm<H>, vcpus: std::ops::Range<usize>) {
    for vcpu in vcpus {
        start_vcpu(vm, vcpu as u64, vcpu as u64);
        assert_eq!(run_at_home(vm, vcpu), HALT);
    }
}

/// What register 0 holds after an exit of vCPU 0 that the VM answers.
#[track_caller]
pub fn ask<H: MockHal>(vm: &TestVm<H>, exit: VcpuExit) -> u64 {
    play(vm, [Step::Exit(exit)]);
    reg(vm, 0)
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
