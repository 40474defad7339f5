//! The VMs of the bundle: how they begin, what the host does for them, and how they end.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use axerrno::AxResult;
use axvm::{
    AxVCpuExitReason::{self, *},
    machine::Machine,
    vcpu::VcpuExit,
    vm::{EndReason, VMStatus},
};
use spin::{Mutex, Once};
use unikernel::{
    options::Options,
    queue::{NEVER, place},
};

use super::{
    arch,
    console::{VmConsole, drain, say},
    cpu::{self, Cpu},
    hal::Host,
    load::Guest,
    sched::{self, Task},
    stats,
};

static VMS: Once<Vec<Vm>> = Once::new();

static TRACING: AtomicBool = AtomicBool::new(false);

/// How many have not ended yet.
static LEFT: AtomicUsize = AtomicUsize::new(0);
/// Whether one ended otherwise than by its own power-off.
static FAILED: AtomicBool = AtomicBool::new(false);

/// A VM and what the host knows of it.
pub struct Vm {
    index: usize,
    machine: Machine<Host>,
    console: Arc<VmConsole>,
    options: Options,
    /// The CPU of each vCPU; empty until it boots.
    homes: Once<Vec<&'static Cpu>>,
    /// How many of its vCPUs run, wait for their turn or sleep. Switched-off ones do not count.
    active: AtomicUsize,
    reboots: AtomicUsize,
    booted_at: AtomicU64,
    /// Why the host ended it.
    failure: Mutex<Option<String>>,
}

/// What the scheduler does with a vCPU next.
pub enum Then {
    /// It goes on.
    Again,
    /// An interrupt is pending for this CPU; then it goes on.
    Interrupted,
    /// It has nothing to do until it is woken, or its deadline has come.
    Sleep,
    /// It does not run any more.
    Gone,
}

/// How a VM ended.
enum End {
    PoweredOff,
    ShutDown,
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::ShutDown => f.write_str("shut down"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Whether each exit is to be shown.
#[inline(always)]
pub fn is_tracing() -> bool {
    TRACING.load(Ordering::Relaxed)
}

/// All VMs that could be created, by index.
pub fn all() -> &'static [Vm] {
    VMS.get().map(Vec::as_slice).unwrap_or_default()
}

/// The VM with that id.
pub fn by_id(id: usize) -> Option<&'static Vm> {
    all().iter().find(|vm| vm.id() == id)
}

/// Creates and boots the guests. From then on the scheduler runs them; the machine is switched
/// off when the last one has ended.
pub fn start(guests: Vec<Guest>, options: Options) {
    let several = guests.len() > 1;
    LEFT.store(guests.len(), Ordering::Release);
    TRACING.store(options.trace, Ordering::Relaxed);
    let mut vms = Vec::new();
    let mut refused = Vec::new();
    for guest in guests {
        let name = String::from(guest.name());
        let console = VmConsole::new(vms.len(), guest.name(), several);
        match guest.create(console.clone()) {
            Ok(machine) => vms.push(Vm::new(vms.len(), machine, console, options)),
            Err(error) => refused.push((name, error)),
        }
    }
    let vms = VMS.call_once(|| vms);
    for vm in vms {
        if let Err(why) = vm.boot() {
            vm.end(End::Failed(why));
        }
    }
    for (name, error) in refused {
        let end = End::Failed(format!("it cannot be created: {error}"));
        ended(&name, &end, 0, 0);
    }
}

/// The last line of a VM, and after the last VM the end of the machine.
fn ended(name: &str, end: &End, exits: u64, ms: u64) {
    say!("vm {name}: {end}, {exits} exits, {ms} ms");
    if !matches!(end, End::PoweredOff) {
        FAILED.store(true, Ordering::Relaxed);
    }
    if LEFT.fetch_sub(1, Ordering::AcqRel) == 1 {
        drain();
        arch::power_off(FAILED.load(Ordering::Relaxed).into());
    }
}

impl Vm {
    fn new(
        index: usize,
        machine: Machine<Host>,
        console: Arc<VmConsole>,
        options: Options,
    ) -> Self {
        Self {
            index,
            machine,
            console,
            options,
            homes: Once::new(),
            active: AtomicUsize::new(0),
            reboots: AtomicUsize::new(0),
            booted_at: AtomicU64::new(arch::now()),
            failure: Mutex::new(None),
        }
    }

    /// Its id, from its configuration.
    pub fn id(&self) -> usize {
        self.machine.vm.id()
    }

    /// Its name, from its configuration.
    pub fn name(&self) -> &str {
        &self.machine.vm.config().name
    }

    /// The CPU that a vCPU lives on.
    pub fn home(&self, vcpu: usize) -> Option<&'static Cpu> {
        self.homes.get()?.get(vcpu).copied()
    }

    fn boot(&self) -> Result<(), String> {
        self.homes.try_call_once(|| self.find_homes())?;
        self.machine.vm.boot().map_err(|error| format!("{error}"))?;
        self.start_vcpu(0);
        Ok(())
    }

    /// Spreads the vCPUs over the CPUs, as the configuration allows.
    fn find_homes(&self) -> Result<Vec<&'static Cpu>, String> {
        let mut loads: Vec<Option<usize>> = cpu::all().iter().map(load).collect();
        let config = self.machine.vm.config();
        let home = |vcpu| {
            let allowed = config.vcpu_affinity(vcpu);
            let index = place(&loads, allowed).ok_or_else(|| match allowed {
                Some(set) => format!("no CPU of the set {set:#x} can run vCPU {vcpu}"),
                None => String::from("no CPU of this machine can run guests"),
            })?;
            loads[index] = loads[index].map(|load| load + 1);
            Ok(&cpu::all()[index])
        };
        (0..self.machine.vm.vcpu_num()).map(home).collect()
    }

    /// Has a vCPU run: it is switched on.
    fn start_vcpu(&self, vcpu: usize) {
        if let Some(home) = self.home(vcpu) {
            self.active.fetch_add(1, Ordering::Relaxed);
            sched::start(home, Task { vm: self.index, vcpu });
        }
    }

    /// Ends a vCPU's sleep.
    pub fn wake(&self, vcpu: usize) {
        if let Some(home) = self.home(vcpu) {
            sched::wake(home, Task { vm: self.index, vcpu });
        }
    }

    /// When a sleeping vCPU must run again at the latest.
    pub fn deadline(&self, vcpu: usize) -> u64 {
        self.machine.vm.next_deadline(vcpu).unwrap_or(NEVER)
    }

    /// Whether something waits for a vCPU that sleeps.
    pub fn has_work(&self, vcpu: usize) -> bool {
        self.machine.vm.has_work(vcpu)
    }

    /// Injects an interrupt.
    ///
    /// # Errors
    /// `NotFound` for no such vCPU; `InvalidInput` for no such interrupt.
    pub fn inject(&self, vcpu: usize, irq: usize) -> AxResult {
        self.machine.vm.inject_interrupt_to_vcpu(vcpu, irq)
    }

    /// Something was typed for it.
    pub fn typed(&self, byte: u8) {
        self.console.push(byte);
        self.machine.notify_input();
    }

    /// Runs a vCPU until only this host can go on, and does what it can.
    pub fn run(&self, vcpu: usize) -> Then {
        let running = || self.machine.vm.status() == VMStatus::Running;
        // The VM may have ended while this vCPU was out.
        if !running() {
            return Then::Gone;
        }
        match self.machine.vm.run_vcpu(vcpu) {
            Ok(reason) => self.serve(vcpu, reason),
            Err(_) if !running() => Then::Gone,
            Err(error) => self.fail(format!("vCPU {vcpu}: {error}")),
        }
    }

    /// A line for an exit.
    pub fn trace(&self, vcpu: usize, exit: &VcpuExit) {
        say!("trace {}/{vcpu} on CPU {}: {exit:x?}", self.name(), cpu::this().index);
    }

    fn serve(&self, vcpu: usize, reason: AxVCpuExitReason) -> Then {
        /// SBI's error for a call that nobody knows, and that of others.
        const NOT_SUPPORTED: u64 = -2_i64 as u64;
        match reason {
            ExternalInterrupt { .. } => Then::Interrupted,
            Halt => {
                self.console.flush();
                Then::Sleep
            }
            CpuUp { target_cpu, .. } => {
                self.start_vcpu(target_cpu as usize);
                Then::Again
            }
            CpuDown | SystemDown | SystemReset => Then::Gone,
            // This host serves no device of its own: all ones, as on a bus where nobody answers.
            MmioRead { .. } | IoRead { .. } | SysRegRead { .. } => self.answer(vcpu, u64::MAX),
            MmioWrite { .. } | IoWrite { .. } | SysRegWrite { .. } => self.answer(vcpu, 0),
            Hypercall { .. } => self.answer(vcpu, NOT_SUPPORTED),
            FailEntry { hardware_entry_failure_reason: code } => {
                self.fail(format!("vCPU {vcpu}: the hardware refused to enter, code {code:#x}"))
            }
            other => self.fail(format!("vCPU {vcpu}: unexpected exit {other:?}")),
        }
    }

    fn answer(&self, vcpu: usize, value: u64) -> Then {
        match self.machine.vm.complete(vcpu, value) {
            Ok(()) => Then::Again,
            Err(error) => self.fail(format!("vCPU {vcpu}: its answer: {error}")),
        }
    }

    /// Ends the VM, which cannot go on; the first reason is the one that is told.
    fn fail(&self, why: String) -> Then {
        self.failure.lock().get_or_insert(why);
        // Somebody else may have been faster.
        let _ = self.machine.vm.shutdown();
        Then::Gone
    }

    /// A vCPU does not run any more. After the last one the VM has ended, or begins again.
    pub fn leave(&self) {
        if self.active.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let failure = self.failure.lock().take();
        let end = match (failure, self.machine.vm.end_reason()) {
            (Some(why), _) => End::Failed(why),
            (None, Some(EndReason::Reset)) => match self.reboot() {
                Ok(()) => return,
                Err(error) => End::Failed(format!("reset: {error}")),
            },
            (None, Some(EndReason::PowerOff)) => End::PoweredOff,
            (None, Some(EndReason::Host)) => End::ShutDown,
            (None, Some(EndReason::Failed)) => End::Failed("the hardware refused it".into()),
            (None, None) => End::Failed("it has switched off every vCPU".into()),
        };
        self.end(end);
    }

    fn reboot(&self) -> AxResult {
        if self.options.retake {
            cpu::this().retake()?;
        }
        self.machine.vm.reset()?;
        self.machine.vm.boot()?;
        self.reboots.fetch_add(1, Ordering::Relaxed);
        self.start_vcpu(0);
        Ok(())
    }

    fn end(&self, end: End) {
        self.console.flush();
        if self.options.stats {
            stats::print(&self.machine.vm, self.reboots.load(Ordering::Relaxed));
        }
        let vcpus = self.machine.vm.vcpu_list().iter();
        let exits = vcpus.map(|vcpu| vcpu.stats().total_exits()).sum();
        let nanos = arch::now().saturating_sub(self.booted_at.load(Ordering::Relaxed));
        ended(self.name(), &end, exits, nanos / 1_000_000);
    }
}

/// How many vCPUs live on a CPU; none when it can run no guests.
fn load(cpu: &Cpu) -> Option<usize> {
    let vcpus = all().iter().filter_map(|vm| vm.homes.get()).flatten();
    cpu.is_ready().then(|| vcpus.filter(|home| home.index == cpu.index).count())
}
