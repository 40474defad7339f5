//! The vCPU object: its state, and ownership as a value.

use alloc::sync::Arc;

use axerrno::{AxError, AxResult};

use super::{
    AxArchVCpu, Completion, VcpuExit, VcpuSpec, attention::Attention, pending::PendingAnswer,
    power::Power, stats::VcpuStats,
};
use crate::{
    mm::{GuestPhysAddr, HostPhysAddr},
    sync::{
        MutPtr, UnsafeCell,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

/// A shared vCPU.
pub type AxVCpuRef<A> = Arc<AxVCpu<A>>;

/// The states of a vCPU: Created → Free (by `setup`) → Ready (bound) → Running → Ready → Free
/// (unbound).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VCpuState {
    /// Its hardware would not let go of it; only a reset of the VM helps.
    Invalid = 0,
    /// Not set up yet.
    Created = 1,
    /// Nobody's.
    Free = 2,
    /// Bound to a physical CPU.
    Ready = 3,
    /// In the guest.
    Running = 4,
}

impl VCpuState {
    const fn from_u8(state: u8) -> Self {
        match state {
            1 => Self::Created,
            2 => Self::Free,
            3 => Self::Ready,
            4 => Self::Running,
            _ => Self::Invalid,
        }
    }
}

/// A vCPU. Anyone may look at its state and counters. The backend inside is the VM's: it is reached
/// only through the guard that `bind` returns, of which there is one at a time.
pub struct AxVCpu<A: AxArchVCpu> {
    spec: VcpuSpec,
    state: AtomicU8,
    pub(crate) attention: Attention,
    pub(crate) power: Power,
    pub(crate) answer: PendingAnswer,
    /// When its timers next want it to run, as of its last run; `u64::MAX` for never.
    pub(crate) deadline: AtomicU64,
    pub(crate) stats: VcpuStats,
    arch: UnsafeCell<A>,
}

// SAFETY: the only field that is not `Sync` is `arch`. It is reached through a `Claim`, which
// exists at most once (the compare-and-set on `state`); what moves between threads is `A: Send`.
unsafe impl<A: AxArchVCpu> Sync for AxVCpu<A> {}

impl<A: AxArchVCpu> AxVCpu<A> {
    /// Creates a vCPU; vCPU 0 is switched on, the others wait to be started.
    ///
    /// # Errors
    /// Those of [`AxArchVCpu::new`].
    pub(crate) fn new(spec: VcpuSpec) -> AxResult<Self> {
        let arch = A::new(spec.vm_id, spec.vcpu_id, A::CreateConfig::from(&spec))?;
        Ok(Self {
            state: AtomicU8::new(VCpuState::Created as u8),
            attention: Attention::new(),
            power: Power::new(spec.vcpu_id == 0),
            answer: PendingAnswer::new(),
            deadline: AtomicU64::new(u64::MAX),
            stats: VcpuStats::default(),
            arch: UnsafeCell::new(arch),
            spec,
        })
    }

    /// Gives the vCPU its entry point and page table: Created → Free.
    ///
    /// # Errors
    /// `BadState` unless Created; those of the backend. The state is unchanged then.
    pub(crate) fn setup(&self, entry: GuestPhysAddr, root: HostPhysAddr) -> AxResult {
        let mut claim = self.claim(VCpuState::Created)?;
        Self::prepare(claim.arch(), &self.spec, entry, root)?;
        claim.release_to(VCpuState::Free);
        Ok(())
    }

    fn prepare(
        arch: &mut A,
        spec: &VcpuSpec,
        entry: GuestPhysAddr,
        root: HostPhysAddr,
    ) -> AxResult {
        arch.set_entry(entry)?;
        arch.set_ept_root(root)?;
        arch.setup(A::SetupConfig::from(spec))
    }

    /// A backend as at creation, to put in this vCPU's place.
    pub(crate) fn fresh(&self, entry: GuestPhysAddr, root: HostPhysAddr) -> AxResult<A> {
        let create = A::CreateConfig::from(&self.spec);
        let mut arch = A::new(self.spec.vm_id, self.spec.vcpu_id, create)?;
        Self::prepare(&mut arch, &self.spec, entry, root)?;
        Ok(arch)
    }

    /// Its index in the VM.
    pub fn id(&self) -> usize {
        self.spec.vcpu_id
    }

    /// The VM it belongs to.
    pub fn vm_id(&self) -> usize {
        self.spec.vm_id
    }

    /// Whether it is the one that boots: vCPU 0.
    pub fn is_bsp(&self) -> bool {
        self.spec.vcpu_id == 0
    }

    /// What it was created from.
    pub fn spec(&self) -> &VcpuSpec {
        &self.spec
    }

    /// Its state at this moment.
    pub fn state(&self) -> VCpuState {
        VCpuState::from_u8(self.state.load(Ordering::Acquire))
    }

    /// Whether it is switched on: started, and not gone off again.
    pub fn is_on(&self) -> bool {
        self.power.is_on()
    }

    /// Its counters.
    pub fn stats(&self) -> &VcpuStats {
        &self.stats
    }

    /// Forgets all that was wanted of it: the VM is reset.
    pub(crate) fn restart(&self) {
        self.power.set(self.is_bsp());
        self.attention.take();
        // What was fetched is of the old images.
        self.attention.raise_quietly(Attention::FENCE_INSTRUCTIONS);
        self.answer.forget();
        self.deadline.store(u64::MAX, Ordering::Relaxed);
    }

    /// Binds the vCPU to this physical CPU: Free → Ready. Dropping the guard unbinds it.
    ///
    /// # Errors
    /// `BadState` unless Free, and nothing is changed; those of the backend.
    pub(crate) fn bind(&self) -> AxResult<BoundVCpu<'_, A>> {
        let mut claim = self.claim(VCpuState::Free)?;
        claim.arch().bind()?;
        Ok(BoundVCpu { claim, bound: true })
    }

    /// Takes the backend into exclusive hands, from the given state.
    pub(crate) fn claim(&self, from: VCpuState) -> AxResult<Claim<'_, A>> {
        self.state
            .compare_exchange(
                from as u8,
                VCpuState::Ready as u8,
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .map_err(|_| AxError::BadState)?;
        Ok(Claim { arch: self.arch.get_mut(), release: Release { vcpu: self, to: from } })
    }
}

/// Exclusive use of a vCPU's backend, not bound to a physical CPU.
pub(crate) struct Claim<'a, A: AxArchVCpu> {
    // Fields drop in this order: the pointer is gone before another may have it.
    arch: MutPtr<A>,
    release: Release<'a, A>,
}

struct Release<'a, A: AxArchVCpu> {
    vcpu: &'a AxVCpu<A>,
    to: VCpuState,
}

impl<A: AxArchVCpu> Drop for Release<'_, A> {
    fn drop(&mut self) {
        self.vcpu.state.store(self.to as u8, Ordering::Release);
    }
}

impl<A: AxArchVCpu> Claim<'_, A> {
    /// The backend.
    pub(crate) fn arch(&mut self) -> &mut A {
        // SAFETY: this claim is the only one (the compare-and-set in `AxVCpu::claim`), and
        // `&mut self` makes this the only reference that comes from it.
        unsafe { self.arch.deref() }
    }

    /// Sets the state that the vCPU will be in when the claim ends.
    pub(crate) fn release_to(&mut self, state: VCpuState) {
        self.release.to = state;
    }
}

/// A vCPU bound to this physical CPU; the value is the ownership. Dropping it unbinds.
pub(crate) struct BoundVCpu<'a, A: AxArchVCpu> {
    claim: Claim<'a, A>,
    bound: bool,
}

impl<A: AxArchVCpu> BoundVCpu<'_, A> {
    /// The backend.
    pub(crate) fn arch(&mut self) -> &mut A {
        self.claim.arch()
    }

    /// Runs the guest until it exits: Ready → Running → Ready.
    ///
    /// # Errors
    /// Those of [`AxArchVCpu::run`].
    #[inline]
    pub(crate) fn run(&mut self) -> AxResult<VcpuExit> {
        let state = &self.claim.release.vcpu.state;
        state.store(VCpuState::Running as u8, Ordering::Relaxed);
        let exit = self.claim.arch().run();
        state.store(VCpuState::Ready as u8, Ordering::Relaxed);
        exit
    }

    /// Finishes the instruction of the last exit; see [`AxArchVCpu::complete`].
    ///
    /// # Errors
    /// Those of [`AxArchVCpu::complete`].
    #[inline]
    pub(crate) fn complete(&mut self, done: Completion) -> AxResult<Option<VcpuExit>> {
        self.claim.arch().complete(done)
    }

    /// Unbinds: Ready → Free.
    ///
    /// # Errors
    /// Those of the backend; the vCPU is Invalid then, until the VM is reset.
    pub(crate) fn unbind(mut self) -> AxResult {
        self.release()
    }

    fn release(&mut self) -> AxResult {
        if !core::mem::take(&mut self.bound) {
            return Ok(());
        }
        self.claim.arch().unbind().inspect_err(|error| {
            let AxVCpu { spec, .. } = self.claim.release.vcpu;
            log::error!("VM {} vCPU {}: unbind failed: {error}", spec.vm_id, spec.vcpu_id);
            self.claim.release_to(VCpuState::Invalid);
        })
    }
}

impl<A: AxArchVCpu> Drop for BoundVCpu<'_, A> {
    fn drop(&mut self) {
        // Logged there, and the vCPU's state tells.
        let _ = self.release();
    }
}
