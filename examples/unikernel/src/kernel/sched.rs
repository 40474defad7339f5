//! The scheduler: each CPU takes turns among the vCPUs that live on it, and sleeps when none can
//! run.
//!
//! Interrupts stay masked while a CPU decides. One that comes meanwhile is pending, and ends the
//! guest that is entered, or the wait, at once: no wake-up is lost in between.

use unikernel::queue::{NEVER, SLICE};

use super::{
    arch,
    cpu::{self, Cpu},
    vms::{self, Then, Vm},
};

/// A vCPU as the scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The VM's index.
    pub vm: usize,
    /// The vCPU's index in it.
    pub vcpu: usize,
}

/// Makes a task run on its CPU, in its turn.
pub fn start(home: &Cpu, task: Task) {
    let quiet = home.queue.lock().push(task);
    tell(home, quiet);
}

/// Ends a task's sleep.
pub fn wake(home: &Cpu, task: Task) {
    let quiet = home.queue.lock().wake(task);
    tell(home, quiet);
}

/// Has a CPU see its queue, if it would not do so by itself.
fn tell(home: &Cpu, quiet: bool) {
    match quiet {
        false => {}
        // It may be about to enter a guest that nothing would end.
        true if home.index == cpu::this().index => home.limit_turn(),
        true => arch::interrupt(home.id),
    }
}

/// Runs what there is to run, for ever.
pub fn run(cpu: &Cpu) -> ! {
    loop {
        let next = cpu.queue.lock().pop(arch::now());
        match next.and_then(|task| Some((task, vms::all().get(task.vm)?))) {
            Some((task, vm)) => take_turn(cpu, task, vm),
            None => wait(cpu),
        }
    }
}

/// Waits for an interrupt: somebody has work, or the timer of a sleeping vCPU is due.
fn wait(cpu: &Cpu) {
    let deadline = cpu.queue.lock().timer(NEVER);
    cpu.begin_turn(NEVER, deadline);
    arch::wait_for_interrupt();
    arch::open_interrupts();
}

/// Runs a task until its turn is over, or it does not want to run any more.
fn take_turn(cpu: &Cpu, task: Task, vm: &Vm) {
    let slice_end = arch::now().saturating_add(SLICE);
    cpu.set_current(vm.id(), task.vcpu);
    loop {
        let deadline = cpu.queue.lock().timer(slice_end);
        cpu.begin_turn(slice_end, deadline);
        match vm.run(task.vcpu) {
            Then::Again => {}
            Then::Interrupted => arch::open_interrupts(),
            Then::Sleep => return sleep(cpu, task, vm),
            Then::Gone => return vm.leave(),
        }
        let mut queue = cpu.queue.lock();
        if queue.must_yield(arch::now(), slice_end) {
            // This CPU looks next.
            let _ = queue.push(task);
            return;
        }
    }
}

/// First asleep, then the look: who wakes it looks the other way round.
fn sleep(cpu: &Cpu, task: Task, vm: &Vm) {
    let deadline = vm.deadline(task.vcpu);
    cpu.queue.lock().sleep(task, deadline);
    if vm.has_work(task.vcpu) {
        // This CPU looks next.
        let _ = cpu.queue.lock().wake(task);
    }
}
