//! The machine's CPUs. They have an index here, from 0 without gaps, in the order of the machine's
//! description; and an id of the machine's.

use alloc::{boxed::Box, vec::Vec};
use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

use axerrno::{AxError, AxResult};
use axvm::{AxVMPerCpu, NativeVCpu};
use spin::{Mutex, Once};
use unikernel::queue::{NEVER, RunQueue};

use crate::kernel::{arch, hal::Host, sched::Task};

/// The size of a CPU's stack in bytes.
pub const STACK_SIZE: usize = 128 << 10;

static CPUS: Once<Vec<Cpu>> = Once::new();

/// One CPU.
pub struct Cpu {
    /// Its index.
    pub index: usize,
    /// The machine's name for it: hart id, MPIDR affinity.
    pub id: usize,
    /// What it is to run.
    pub queue: Mutex<RunQueue<Task>>,
    /// Whether it has begun.
    is_up: AtomicBool,
    /// Virtualization on it, if it can run guests.
    virtualization: Mutex<Option<AxVMPerCpu<NativeVCpu<Host>>>>,
    /// When its timer must interrupt what it runs, in nanoseconds: for the scheduler, and for
    /// the guest.
    deadline: AtomicU64,
    guest_deadline: AtomicU64,
    /// When the turn of what it runs is over.
    slice_end: AtomicU64,
    /// What it runs, for the library: VM id and vCPU.
    current: (AtomicUsize, AtomicUsize),
}

impl Cpu {
    fn new(index: usize, id: usize) -> Self {
        Self {
            index,
            id,
            queue: Mutex::new(RunQueue::new()),
            is_up: AtomicBool::new(false),
            virtualization: Mutex::new(None),
            deadline: AtomicU64::new(NEVER),
            guest_deadline: AtomicU64::new(NEVER),
            slice_end: AtomicU64::new(NEVER),
            current: (AtomicUsize::new(0), AtomicUsize::new(0)),
        }
    }

    /// Prepares it, which is this CPU, to take interrupts and run guests.
    pub fn begin(&self) {
        arch::init_cpu();
        let virtualization = AxVMPerCpu::new(self.index).and_then(|mut cpu| {
            cpu.hardware_enable()?;
            Ok(cpu)
        });
        match virtualization {
            Ok(virtualization) => *self.virtualization.lock() = Some(virtualization),
            Err(error) => log::warn!("CPU {} runs no guests: {error}", self.id),
        }
        self.is_up.store(true, Ordering::Release);
    }

    /// Whether it has begun.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    /// Whether it can run guests.
    pub fn is_ready(&self) -> bool {
        self.virtualization.lock().as_ref().is_some_and(AxVMPerCpu::is_enabled)
    }

    /// Switches virtualization off on it, which is this CPU, and on again. No vCPU runs on it.
    ///
    /// # Errors
    /// Those of the library.
    pub fn retake(&self) -> AxResult {
        let mut virtualization = self.virtualization.lock();
        let cpu = virtualization.as_mut().ok_or(AxError::BadState)?;
        cpu.hardware_disable()?;
        cpu.hardware_enable()
    }

    /// Begins a turn on this CPU, or a wait (`slice_end` is [`NEVER`] then), with its timer set to
    /// `deadline`.
    pub fn begin_turn(&self, slice_end: u64, deadline: u64) {
        self.slice_end.store(slice_end, Ordering::Relaxed);
        self.deadline.store(deadline, Ordering::Relaxed);
        self.set_guest_deadline(NEVER);
    }

    /// Another task waits on this CPU since its turn began: the turn has an end now.
    pub fn limit_turn(&self) {
        self.deadline.fetch_min(self.slice_end.load(Ordering::Relaxed), Ordering::Relaxed);
        self.set_guest_deadline(self.guest_deadline.load(Ordering::Relaxed));
    }

    /// Has this CPU's timer come when the guest that is about to run needs it, if not before.
    pub fn set_guest_deadline(&self, deadline: u64) {
        self.guest_deadline.store(deadline, Ordering::Relaxed);
        arch::set_timer(deadline.min(self.deadline.load(Ordering::Relaxed)));
    }

    /// Sets what this CPU runs.
    pub fn set_current(&self, vm_id: usize, vcpu: usize) {
        self.current.0.store(vm_id, Ordering::Relaxed);
        self.current.1.store(vcpu, Ordering::Relaxed);
    }

    /// What this CPU runs: VM id and vCPU.
    pub fn current(&self) -> (usize, usize) {
        (self.current.0.load(Ordering::Relaxed), self.current.1.load(Ordering::Relaxed))
    }
}

/// All CPUs, by index.
pub fn all() -> &'static [Cpu] {
    CPUS.get().map(Vec::as_slice).unwrap_or_default()
}

/// This CPU.
pub fn this() -> &'static Cpu {
    // SAFETY: null until `init`, or `start_cpu`, set it to an entry of `CPUS`, which stays.
    unsafe { arch::this_cpu().as_ref() }.expect("the CPUs are known")
}

/// Makes the table, of which the entry with `this` id is this CPU's.
pub fn init(ids: impl Iterator<Item = usize>, this: usize) {
    let numbered = ids.enumerate().take(axvm::vcpu::MAX_PCPUS);
    let cpus = CPUS.call_once(|| numbered.map(|(index, id)| Cpu::new(index, id)).collect());
    let this = cpus.iter().find(|cpu| cpu.id == this);
    arch::set_this_cpu(this.expect("the machine's description has this CPU"));
}

/// Starts the other CPUs, and waits until each is there. One that does not come is not used.
pub fn start_others() {
    for cpu in all().iter().filter(|cpu| cpu.index != this().index) {
        if let Err(code) = arch::start_cpu(cpu, Box::leak(Box::new_uninit())) {
            log::error!("CPU {} does not start: firmware code {code}", cpu.id);
        }
    }
}

/// A CPU's stack. It has no guard page, as there is no page table.
#[repr(C, align(16))]
pub struct Stack([u8; STACK_SIZE]);

/// Puts what [`this`] is to return on top of a stack, for the CPU to find, with the stack's
/// address after it; returns that.
pub fn prepare_stack(stack: &'static mut MaybeUninit<Stack>, cpu: &'static Cpu) -> usize {
    // SAFETY: 16 bytes below the end is inside.
    let top = unsafe { stack.as_mut_ptr().cast::<u8>().add(STACK_SIZE - 16) };
    // SAFETY: nobody else has the stack, and its end is aligned to 16 bytes.
    unsafe { top.cast::<[usize; 2]>().write([(&raw const *cpu).expose_provenance(), top.addr()]) };
    // Before the firmware tells the other CPU.
    fence(Ordering::SeqCst);
    top.expose_provenance()
}
