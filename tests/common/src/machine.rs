//! One made-up computer: see [`Machine`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axerrno::AxError;
use axvm::{
    mm::{HostPhysAddr, HostVirtAddr, PageSize},
    vcpu::{Hardware, MAX_PCPUS},
};

use crate::{
    ARENA_BASE, Arena, Call, Event, HostRegions, Lock, Program, Record, soft_tlb::Tlbs,
    trace::Failures,
};

/// How long the kit waits for another thread before it calls the test hung.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What `mock_hal!` can be told.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig {
    /// The bytes of the frame arena, committed when used.
    pub arena: usize,
    /// The width of a VMID, 0 to 16.
    pub vmid_bits: u32,
    /// What `AxVMHal::counter_frequency` tells, in Hz; 0: nothing.
    pub counter_hz: u64,
}

impl MachineConfig {
    /// 256 MiB, 8 bits, and no word of the counter.
    pub const DEFAULT: Self = Self { arena: 256 << 20, vmid_bits: 8, counter_hz: 0 };
}

/// What is known of one physical CPU.
#[derive(Default)]
struct Pcpu {
    kicked: AtomicBool,
    /// The deadline of its timer; `u64::MAX` when it is not armed.
    timer: AtomicU64,
    bound: Mutex<Option<(usize, usize)>>,
    in_guest: AtomicBool,
}

type InjectHook = Arc<dyn Fn(usize, usize, usize) -> axerrno::AxResult + Send + Sync>;

/// One made-up computer, behind one HAL marker type: memory, clock, physical CPUs with their
/// TLBs, and recorders for what the crate asks of its host. A test reaches everything here.
pub struct Machine {
    arena: Arena,
    regions: HostRegions,
    tlb: Tlbs,
    hardware: Hardware,
    config: MachineConfig,
    clock: AtomicU64,
    clock_step: AtomicU64,
    pcpus: Vec<Pcpu>,
    kicks: Mutex<Vec<usize>>,
    wakes: Mutex<Vec<(usize, usize)>>,
    timers: Mutex<Vec<(usize, u64)>>,
    injections: Mutex<Vec<(usize, usize, usize)>>,
    inject_hook: Mutex<Option<InjectHook>>,
    programs: Mutex<HashMap<(usize, usize), Program>>,
    busy: Mutex<HashMap<(usize, usize), bool>>,
    trace: Mutex<Vec<Record>>,
    tracing: AtomicBool,
    pub(crate) failures: Failures,
    support: AtomicBool,
    lenient: AtomicBool,
    released: AtomicBool,
    times_guests: AtomicBool,
    input_bits: AtomicU32,
    max_leaf: Mutex<PageSize>,
}

impl Machine {
    /// A machine that is as new.
    pub fn new(config: MachineConfig) -> Self {
        Self {
            arena: Arena::new(config.arena),
            regions: HostRegions::new(ARENA_BASE + config.arena),
            tlb: Tlbs::default(),
            hardware: Hardware::new(config.vmid_bits),
            config,
            clock: AtomicU64::new(0),
            clock_step: AtomicU64::new(0),
            pcpus: (0..MAX_PCPUS)
                .map(|_| Pcpu { timer: AtomicU64::new(u64::MAX), ..Pcpu::default() })
                .collect(),
            kicks: Mutex::default(),
            wakes: Mutex::default(),
            timers: Mutex::default(),
            injections: Mutex::default(),
            inject_hook: Mutex::default(),
            programs: Mutex::default(),
            busy: Mutex::default(),
            trace: Mutex::default(),
            tracing: AtomicBool::new(true),
            failures: Failures::default(),
            support: AtomicBool::new(true),
            lenient: AtomicBool::new(false),
            released: AtomicBool::new(false),
            times_guests: AtomicBool::new(false),
            input_bits: AtomicU32::new(0),
            max_leaf: Mutex::new(PageSize::Size1G),
        }
    }

    /// The frames.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The rest of the host's memory.
    pub fn regions(&self) -> &HostRegions {
        &self.regions
    }

    /// The TLBs.
    pub fn tlb(&self) -> &Tlbs {
        &self.tlb
    }

    /// The backend's physical CPUs and VMIDs.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// What the machine was built with.
    pub fn config(&self) -> MachineConfig {
        self.config
    }

    /// Panics when the crate holds a frame or a range, or has written to a freed frame.
    #[track_caller]
    pub fn assert_balanced(&self) {
        self.arena.assert_balanced();
        self.regions.assert_balanced();
    }

    /// The clock, in nanoseconds.
    pub fn time(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    /// Sets the clock.
    pub fn set_time(&self, nanos: u64) {
        self.clock.store(nanos, SeqCst);
    }

    /// Lets time pass.
    pub fn advance(&self, nanos: u64) {
        self.clock.fetch_add(nanos, SeqCst);
    }

    /// How far time goes with each look at the clock that the crate takes; 0 at first.
    pub fn set_clock_step(&self, nanos: u64) {
        self.clock_step.store(nanos, SeqCst);
    }

    /// Whether `has_hardware_support` says yes; it does at first.
    pub fn set_hardware_support(&self, support: bool) {
        self.support.store(support, SeqCst);
    }

    /// The size of guest-physical addresses, for which the page table has its shape.
    pub fn set_input_bits(&self, bits: u32) {
        self.input_bits.store(bits, SeqCst);
    }

    /// The largest leaf that the hardware takes; 1 GiB at first.
    pub fn set_max_leaf(&self, size: PageSize) {
        *self.max_leaf.locked() = size;
    }

    /// Whether the hardware delivers guests' timers by itself, as RISC-V's Sstc does, so that
    /// none needs the host's while the guest runs; it does not at first.
    pub fn set_times_guests(&self, does: bool) {
        self.times_guests.store(does, SeqCst);
    }

    /// Whether an answer that the exit does not ask for is an error, as `AxArchVCpu::complete`
    /// documents, and not a panic, as is the default.
    pub fn set_lenient(&self, lenient: bool) {
        self.lenient.store(lenient, SeqCst);
    }

    /// Makes the next call of this kind fail, once.
    pub fn fail_next(&self, call: Call, error: impl Into<AxError>) {
        self.fail_nth(call, 1, error);
    }

    /// Makes the `n`-th call of this kind from now, counted from 1, fail, once.
    pub fn fail_nth(&self, call: Call, n: u64, error: impl Into<AxError>) {
        self.failures.set(call, n, error.into());
    }

    /// Forgets the failures that were set and did not come.
    pub fn fail_never(&self) {
        self.failures.clear();
    }

    /// The physical CPUs that were kicked since the last call, in order.
    pub fn take_kicks(&self) -> Vec<usize> {
        std::mem::take(&mut self.kicks.locked())
    }

    /// The vCPUs (VM and index) that were woken since the last call, in order.
    pub fn take_wakes(&self) -> Vec<(usize, usize)> {
        std::mem::take(&mut self.wakes.locked())
    }

    /// The timers (physical CPU and deadline) that were armed since the last call, in order.
    pub fn take_timers(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut self.timers.locked())
    }

    /// The calls of `AxVMHal::inject_irq_to_vcpu` since the last call: the crate makes none.
    pub fn take_injections(&self) -> Vec<(usize, usize, usize)> {
        std::mem::take(&mut self.injections.locked())
    }

    /// What `AxVMHal::inject_irq_to_vcpu` does; at first it knows no vCPU.
    pub fn on_inject(
        &self,
        hook: impl Fn(usize, usize, usize) -> axerrno::AxResult + Send + Sync + 'static,
    ) {
        *self.inject_hook.locked() = Some(Arc::new(hook));
    }

    /// Everything that happened to vCPUs since the last call.
    pub fn take_trace(&self) -> Vec<Record> {
        std::mem::take(&mut self.trace.locked())
    }

    /// The same, without forgetting it.
    pub fn trace(&self) -> Vec<Record> {
        self.trace.locked().clone()
    }

    /// What happened to one vCPU.
    pub fn events(&self, vm: usize, vcpu: usize) -> Vec<Event> {
        let trace = self.trace.locked();
        let own = trace.iter().filter(|record| (record.vm, record.vcpu) == (vm, vcpu));
        own.map(|record| record.event).collect()
    }

    /// Whether events and TLB calls are recorded. Tests with many runs switch it off.
    pub fn set_tracing(&self, tracing: bool) {
        self.tracing.store(tracing, SeqCst);
        self.tlb.set_logging(tracing);
    }

    /// The program of a vCPU, which may not exist yet.
    pub fn program(&self, vm: usize, vcpu: usize) -> Program {
        self.programs.locked().entry((vm, vcpu)).or_default().clone()
    }

    /// Makes a vCPU refuse interrupts, as one with interrupts masked does, or take them again.
    pub fn set_irq_busy(&self, vm: usize, vcpu: usize, busy: bool) {
        self.busy.locked().insert((vm, vcpu), busy);
    }

    /// The vCPU that is bound to a physical CPU.
    pub fn bound_on(&self, pcpu: usize) -> Option<(usize, usize)> {
        *self.pcpus[pcpu].bound.locked()
    }

    /// The physical CPU that a vCPU is bound to.
    pub fn residence(&self, vm: usize, vcpu: usize) -> Option<usize> {
        (0..MAX_PCPUS).find(|&pcpu| self.bound_on(pcpu) == Some((vm, vcpu)))
    }

    /// Whether a physical CPU is in a guest.
    pub fn in_guest(&self, pcpu: usize) -> bool {
        self.pcpus[pcpu].in_guest.load(SeqCst)
    }

    /// Waits until a vCPU is in the guest, on whatever physical CPU.
    #[track_caller]
    pub fn wait_in_guest(&self, vm: usize, vcpu: usize) {
        self.wait_until("the vCPU to enter the guest", || {
            self.residence(vm, vcpu).is_some_and(|pcpu| self.in_guest(pcpu))
        });
    }

    /// Waits for something that another thread does; panics when it takes too long.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "testkit: waited too long for {what}");
            std::thread::yield_now();
        }
    }

    /// Ends every `SpinUntilKicked`, now and later: the way out of a test that failed.
    pub fn release_spinners(&self) {
        self.released.store(true, SeqCst);
    }

    /// Where physical memory is for the host.
    ///
    /// # Panics
    /// When there is no memory at `pa`.
    #[track_caller]
    pub fn phys_to_virt(&self, pa: HostPhysAddr) -> HostVirtAddr {
        let found = self.arena.phys_to_virt(pa).or_else(|| self.regions.phys_to_virt(pa));
        found.unwrap_or_else(|| panic!("phys_to_virt({pa:#x}): there is no memory"))
    }

    /// The opposite of [`phys_to_virt`](Self::phys_to_virt).
    ///
    /// # Panics
    /// When `va` is no address of physical memory.
    #[track_caller]
    pub fn virt_to_phys(&self, va: HostVirtAddr) -> HostPhysAddr {
        let found = self.arena.virt_to_phys(va).or_else(|| self.regions.virt_to_phys(va));
        found.unwrap_or_else(|| panic!("virt_to_phys({va:#x}): not physical memory"))
    }

    /// A number for whoever owns the memory at `pa` now; another one once it was freed and handed
    /// out again; none while it is free.
    pub fn owner(&self, pa: HostPhysAddr) -> Option<u64> {
        if self.arena.contains(pa) {
            self.arena.generation(pa).map(u64::from)
        } else {
            self.regions.serial(pa)
        }
    }
}

/// What the HAL and the vCPUs tell the machine.
impl Machine {
    pub(crate) fn look_at_clock(&self) -> u64 {
        self.clock.fetch_add(self.clock_step.load(SeqCst), SeqCst)
    }

    pub(crate) fn kick(&self, pcpu: usize) {
        self.kicks.locked().push(pcpu);
        self.pcpus[pcpu].kicked.store(true, SeqCst);
    }

    pub(crate) fn wake(&self, vm: usize, vcpu: usize) {
        self.wakes.locked().push((vm, vcpu));
    }

    pub(crate) fn arm_timer(&self, pcpu: usize, deadline: u64) {
        self.timers.locked().push((pcpu, deadline));
        self.pcpus[pcpu].timer.store(deadline, SeqCst);
    }

    pub(crate) fn injection(&self, vm: usize, vcpu: usize, irq: usize) -> axerrno::AxResult {
        self.injections.locked().push((vm, vcpu, irq));
        // Not under the lock: the hook calls into a VM.
        let hook = self.inject_hook.locked().clone();
        match hook {
            Some(hook) => hook(vm, vcpu, irq),
            None => Err(axerrno::AxErrorKind::NotFound.into()),
        }
    }

    /// Takes the physical interrupt that is pending, if one is.
    pub(crate) fn acknowledge(&self, pcpu: usize) -> Option<u64> {
        let cpu = &self.pcpus[pcpu];
        if cpu.kicked.swap(false, SeqCst) {
            return Some(crate::KICK_VECTOR);
        }
        if cpu.timer.load(SeqCst) <= self.time() {
            cpu.timer.store(u64::MAX, SeqCst);
            return Some(crate::TIMER_VECTOR);
        }
        None
    }

    pub(crate) fn bind(&self, pcpu: usize, vm: usize, vcpu: usize) {
        let mut bound = self.pcpus[pcpu].bound.locked();
        assert!(bound.is_none(), "contract: pCPU {pcpu} is bound to {:?} already", *bound);
        *bound = Some((vm, vcpu));
    }

    pub(crate) fn unbind(&self, pcpu: usize) {
        *self.pcpus[pcpu].bound.locked() = None;
    }

    pub(crate) fn set_in_guest(&self, pcpu: usize, inside: bool) {
        self.pcpus[pcpu].in_guest.store(inside, SeqCst);
    }

    pub(crate) fn record(&self, vm: usize, vcpu: usize, pcpu: usize, event: Event) {
        if self.tracing.load(SeqCst) {
            self.trace.locked().push(Record { vm, vcpu, pcpu, event });
        }
    }

    pub(crate) fn irq_busy(&self, vm: usize, vcpu: usize) -> bool {
        self.busy.locked().get(&(vm, vcpu)).copied().unwrap_or(false)
    }

    pub(crate) fn supported(&self) -> bool {
        self.support.load(SeqCst)
    }

    pub(crate) fn times_guests(&self) -> bool {
        self.times_guests.load(SeqCst)
    }

    pub(crate) fn is_lenient(&self) -> bool {
        self.lenient.load(SeqCst)
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(SeqCst)
    }

    pub(crate) fn max_leaf(&self) -> PageSize {
        *self.max_leaf.locked()
    }

    pub(crate) fn input_bits(&self) -> Option<u32> {
        Some(self.input_bits.load(SeqCst)).filter(|&bits| bits != 0)
    }
}
