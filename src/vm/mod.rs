//! Virtual machines: what [`AxVM`] is made of, how it is created, and what a host asks of it.
//!
//! `lifecycle` holds the states, `control` boots, ends and resets, `run` is the exit loop, `serve`
//! what it does for the guest (`cpus` what concerns other vCPUs, `console` the firmware's console),
//! `memory` is access to guest memory.

#![forbid(unsafe_code)]

mod console;
mod control;
mod cpus;
mod lifecycle;
#[cfg(all(test, loom))]
mod loom_tests;
mod memory;
mod run;
mod serve;

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};

use axerrno::{AxError, AxResult, ax_err};

pub use lifecycle::{EndReason, VMStatus};

use self::lifecycle::Lifecycle;
use crate::{
    arch::NativeVCpu,
    config::{AxVMConfig, VmMemMappingType, pass_through_ranges},
    device::{AxVmDevices, BaseDeviceOps, CharBackend, Dummy, EmuDeviceType},
    hal::AxVMHal,
    irq::{DirectIrq, InterruptController, IrqInput, MAX_IRQS, VcpuNotifier},
    mm::{
        ADDRESS_LIMIT, AddrSpace, GpaRange, HostPhysAddr, MappingFlags, Origin, PageSize, Source,
    },
    sync::{
        Mutex,
        atomic::{Ordering, fence},
    },
    vcpu::{
        Attention, AxArchVCpu, AxVCpu, AxVCpuRef, BoundVCpu, CpuMask, ExitKind, VCpuState,
        VcpuEvent, VcpuSpec,
    },
};

/// A shared VM.
pub type AxVMRef<H, A = NativeVCpu<H>> = Arc<AxVM<H, A>>;

/// What loads the guest's images, at first and after each reset.
type Loader<H, A> = Arc<dyn Fn(&AxVM<H, A>) -> AxResult + Send + Sync>;

/// A virtual machine.
///
/// Every method may be called from any physical CPU. A vCPU is run by one caller at a time;
/// different vCPUs share no lock on the way from exit to entry, but that of a device, an
/// interrupt or a page that they touch together.
pub struct AxVM<H: AxVMHal, A: AxArchVCpu = NativeVCpu<H>> {
    config: AxVMConfig,
    lifecycle: Lifecycle,
    core: Arc<Core<H, A>>,
    devices: AxVmDevices,
    irq: Arc<dyn InterruptController<A::IrqHw>>,
    /// The memory of the configuration, for `reset`.
    plan: Vec<(GpaRange, MappingFlags, Source)>,
    loader: Mutex<Option<Loader<H, A>>>,
    /// What the guest prints by calls to its firmware goes here.
    console: spin::Once<Mutex<Arc<dyn CharBackend>>>,
}

/// What runs: the vCPUs and their memory.
struct Core<H: AxVMHal, A: AxArchVCpu> {
    id: usize,
    vcpus: Box<[AxVCpuRef<A>]>,
    space: AddrSpace<H, A::Npt, A::Tlb>,
}

impl<H: AxVMHal, A: AxArchVCpu> Core<H, A> {
    /// Has a vCPU look up: at once if it is in a guest, before its next entry otherwise.
    fn poke(&self, vcpu: usize, reasons: u32) {
        let Some(target) = self.vcpus.get(vcpu) else { return };
        if target.attention.raise(reasons) {
            H::wake_vcpu(self.id, vcpu);
        }
        // The reason before the look: a vCPU on its way in looks the other way round.
        fence(Ordering::SeqCst);
        if let Some(pcpu) = self.space.tlb.inside(vcpu) {
            H::kick_pcpu(pcpu);
        }
    }
}

/// The controller's way to the vCPUs. It does not keep the VM's memory alive: a host may keep an
/// interrupt line longer than the VM.
struct Doorbell<H: AxVMHal, A: AxArchVCpu>(Weak<Core<H, A>>);

impl<H: AxVMHal, A: AxArchVCpu> VcpuNotifier for Doorbell<H, A> {
    fn notify(&self, vcpu: usize) {
        let Some(core) = self.0.upgrade() else { return };
        if let Some(target) = core.vcpus.get(vcpu) {
            target.stats().count(VcpuEvent::InterruptInjected);
        }
        core.poke(vcpu, Attention::IRQ);
    }
}

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// Creates a VM: vCPUs, address space, memory, devices. Interrupts are injected directly,
    /// without an emulated interrupt controller.
    ///
    /// # Errors
    /// `InvalidInput` or `AlreadyExists` for the configuration, as
    /// [`validate`](AxVMConfig::validate) says, which names field and value in the log;
    /// `Unsupported` for an emulated device that the crate does not have; `NoMemory`. Nothing is
    /// left behind then.
    pub fn new(config: AxVMConfig) -> AxResult<AxVMRef<H, A>> {
        let cpus = config.cpu_num;
        Self::assemble(config, &[], |notifier| {
            Ok(Arc::new(DirectIrq::new(cpus, MAX_IRQS, A::IRQ_PRIORITY, notifier)?))
        })
    }

    /// As [`new`](Self::new), with an interrupt controller of the caller's, who also adds its
    /// registers to the devices. It is given what to call when it made something pending for a
    /// vCPU.
    ///
    /// # Errors
    /// As [`new`](Self::new), and those of `controller`.
    pub fn with_controller(
        config: AxVMConfig,
        controller: impl FnOnce(
            Arc<dyn VcpuNotifier>,
        ) -> AxResult<Arc<dyn InterruptController<A::IrqHw>>>,
    ) -> AxResult<AxVMRef<H, A>> {
        Self::assemble(config, &[EmuDeviceType::InterruptController], controller)
    }

    /// As [`with_controller`](Self::with_controller); devices of the kinds in `made_elsewhere` are
    /// the caller's to make.
    pub(crate) fn assemble(
        config: AxVMConfig,
        made_elsewhere: &[EmuDeviceType],
        controller: impl FnOnce(
            Arc<dyn VcpuNotifier>,
        ) -> AxResult<Arc<dyn InterruptController<A::IrqHw>>>,
    ) -> AxResult<AxVMRef<H, A>> {
        config.validate().inspect_err(|error| log::error!("VM {}: {error}", config.id))?;
        let plan = memory_plan(&config)?;
        let space = Self::build_space(&config, &plan)?;
        let devices = Self::build_devices(&config, made_elsewhere)?;
        let vcpus = Self::build_vcpus(&config, space.page_table_root())?;
        let core = Arc::new(Core { id: config.id, vcpus, space });
        let irq = controller(Arc::new(Doorbell(Arc::downgrade(&core))))?;
        Ok(Arc::new(Self {
            config,
            lifecycle: Lifecycle::new(),
            core,
            devices,
            irq,
            plan,
            loader: Mutex::new(None),
            console: spin::Once::new(),
        }))
    }

    fn build_space(
        config: &AxVMConfig,
        plan: &[(GpaRange, MappingFlags, Source)],
    ) -> AxResult<AddrSpace<H, A::Npt, A::Tlb>> {
        let geometry = A::npt_geometry()?;
        let size = ADDRESS_LIMIT.min(1 << geometry.input_bits().min(47));
        let space = AddrSpace::new_empty(geometry, A::max_leaf(), 0.into(), size, config.cpu_num)?;
        for &(range, flags, source) in plan {
            space.add(range.start(), range.size(), flags, source, Origin::Config)?;
        }
        Ok(space)
    }

    fn build_devices(
        config: &AxVMConfig,
        made_elsewhere: &[EmuDeviceType],
    ) -> AxResult<AxVmDevices> {
        let devices = AxVmDevices::with_relax(H::relax);
        for device in &config.emu_devices {
            let range = GpaRange::new(device.base_gpa.into(), device.length);
            match (EmuDeviceType::try_from(device.emu_type), range) {
                (Ok(EmuDeviceType::Dummy), Some(range)) => {
                    devices.add_mmio_dev(Arc::new(Dummy::new(range)))?;
                }
                (Ok(EmuDeviceType::IvcChannel), Some(range)) => devices.set_ivc_window(range)?,
                (Ok(kind), _) if made_elsewhere.contains(&kind) => {}
                _ => {
                    let (name, kind) = (&device.name, device.emu_type);
                    let what = format_args!("emu_devices: {name}: emu_type = {kind:#x}");
                    return ax_err!(Unsupported, what);
                }
            }
        }
        Ok(devices)
    }

    fn build_vcpus(config: &AxVMConfig, root: HostPhysAddr) -> AxResult<Box<[AxVCpuRef<A>]>> {
        (0..config.cpu_num)
            .map(|vcpu_id| {
                let vcpu = AxVCpu::new(VcpuSpec {
                    vm_id: config.id,
                    vcpu_id,
                    guest_cpu_id: config.guest_cpu_id(vcpu_id),
                    boot_arg: config.image.dtb_load_gpa,
                    interrupt_mode: config.interrupt_mode,
                })?;
                vcpu.setup(config.image.entry_point, root)?;
                Ok(Arc::new(vcpu))
            })
            .collect()
    }

    /// The VM's id.
    pub fn id(&self) -> usize {
        self.config.id
    }

    /// What it was created from.
    pub fn config(&self) -> &AxVMConfig {
        &self.config
    }

    /// A vCPU by index.
    pub fn vcpu(&self, vcpu_id: usize) -> Option<AxVCpuRef<A>> {
        self.core.vcpus.get(vcpu_id).cloned()
    }

    /// The number of vCPUs.
    pub fn vcpu_num(&self) -> usize {
        self.core.vcpus.len()
    }

    /// All vCPUs, by index.
    pub fn vcpu_list(&self) -> &[AxVCpuRef<A>] {
        &self.core.vcpus
    }

    /// The root of the nested page table.
    pub fn ept_root(&self) -> HostPhysAddr {
        self.core.space.page_table_root()
    }

    /// The devices. Add memory-mapped ones through
    /// [`add_mmio_device`](Self::add_mmio_device), which looks at memory too.
    pub fn get_devices(&self) -> &AxVmDevices {
        &self.devices
    }

    /// Adds a memory-mapped device.
    ///
    /// # Errors
    /// `AlreadyExists` when its range overlaps a device or a region of memory.
    pub fn add_mmio_device(&self, device: Arc<dyn BaseDeviceOps<GpaRange>>) -> AxResult {
        let range = device.address_range();
        let free = || match self.core.space.overlaps_region(range) {
            true => ax_err!(AlreadyExists, format_args!("{range:?} overlaps guest memory")),
            false => Ok(()),
        };
        free()?;
        self.devices.add_mmio_dev(device)?;
        // Memory that was mapped meanwhile has looked before the device was there: look again.
        free().or_else(|error| self.devices.remove_mmio_dev(range.start()).and(Err(error)))
    }

    /// The interrupt controller's inputs, for [`IrqLine`](crate::irq::IrqLine)s of devices.
    pub fn irq_input(&self) -> Arc<dyn IrqInput> {
        self.irq.clone()
    }

    /// Injects an interrupt into vCPUs, from any CPU: an Arm INTID, an x86 vector, a RISC-V
    /// interrupt number. It is queued, and the vCPUs are kicked.
    ///
    /// # Errors
    /// `NotFound` when a target does not exist, and `InvalidInput` for no target: nobody gets it
    /// then. `InvalidInput` for a number that the interrupt controller does not have for a vCPU;
    /// those before it in the set get it.
    pub fn inject_interrupt_to_vcpu(&self, targets: impl Into<CpuMask>, irq: usize) -> AxResult {
        let targets = targets.into();
        if targets.is_empty() {
            return ax_err!(InvalidInput, "no vCPU is named");
        }
        if !targets.minus(CpuMask::first(self.vcpu_num())).is_empty() {
            let what = format_args!("VM {} has no vCPU of {targets:?}", self.id());
            return ax_err!(NotFound, what);
        }
        for vcpu in targets.iter() {
            self.irq.inject(vcpu, irq)?;
        }
        Ok(())
    }

    /// When a vCPU's timers next want it to run, in nanoseconds of the host's clock, as of its
    /// last run; 0 when they want it now.
    pub fn next_deadline(&self, vcpu_id: usize) -> Option<u64> {
        let deadline = self.core.vcpus.get(vcpu_id)?.deadline.load(Ordering::Relaxed);
        (deadline != u64::MAX).then_some(deadline)
    }

    /// Whether something waits for a vCPU that halted, so that running it makes sense.
    ///
    /// A host that puts a halted vCPU to sleep marks it asleep first and asks then, as
    /// [`AxVMHal::wake_vcpu`] may be called before `run_vcpu` has returned.
    pub fn has_work(&self, vcpu_id: usize) -> bool {
        let wanted = |vcpu: &AxVCpuRef<A>| vcpu.attention.wants_run();
        self.core.vcpus.get(vcpu_id).is_some_and(wanted) || self.irq.pending(vcpu_id)
    }

    /// Exits of one kind, of all vCPUs.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        let all = self.core.vcpus.iter();
        all.fold(0, |sum, vcpu| sum.wrapping_add(vcpu.stats().exits(kind)))
    }

    /// Events of one kind, of all vCPUs.
    pub fn events(&self, event: VcpuEvent) -> u64 {
        let all = self.core.vcpus.iter();
        all.fold(0, |sum, vcpu| sum.wrapping_add(vcpu.stats().events(event)))
    }

    /// Reads the whole state of a vCPU.
    ///
    /// # Errors
    /// `InvalidInput` for no such vCPU; `BadState` while it is bound, or when virtualization is
    /// off on this CPU.
    pub fn vcpu_state(&self, vcpu_id: usize) -> AxResult<A::State> {
        self.with_bound(vcpu_id, |_, bound, _| Ok(bound.arch().state()))
    }

    /// Replaces the whole state of a vCPU. An access that was handed to the host wants no answer
    /// any more.
    ///
    /// # Errors
    /// As [`vcpu_state`](Self::vcpu_state); `InvalidInput` also for a state that the hardware
    /// cannot hold.
    pub fn set_vcpu_state(&self, vcpu_id: usize, state: &A::State) -> AxResult {
        self.with_bound(vcpu_id, |vcpu, bound, _| {
            bound.arch().set_state(state)?;
            vcpu.answer.forget();
            Ok(())
        })
    }

    /// Binds a vCPU to this physical CPU while `act` runs, which gets the CPU's number too.
    #[inline]
    fn with_bound<R>(
        &self,
        vcpu_id: usize,
        act: impl FnOnce(&AxVCpu<A>, &mut BoundVCpu<'_, A>, usize) -> AxResult<R>,
    ) -> AxResult<R> {
        let vcpu = self.vcpu_ref(vcpu_id)?;
        let pcpu = H::current_pcpu_id();
        if !A::hardware().is_enabled(pcpu) {
            return ax_err!(BadState, format_args!("virtualization is off on CPU {pcpu}"));
        }
        let result = vcpu.bind().and_then(|mut bound| {
            let result = act(vcpu, &mut bound, pcpu);
            bound.unbind().and(result)
        });
        // After a failed bind too: for a moment it looked bound to whoever shut down.
        self.terminate_if_empty();
        self.core.space.reap();
        result
    }

    fn vcpu_ref(&self, vcpu_id: usize) -> AxResult<&AxVCpuRef<A>> {
        let Some(vcpu) = self.core.vcpus.get(vcpu_id) else {
            return ax_err!(InvalidInput, format_args!("VM {} has no vCPU {vcpu_id}", self.id()));
        };
        Ok(vcpu)
    }

    /// Whether some vCPU is bound to a physical CPU.
    fn any_vcpu_bound(&self) -> bool {
        let bound = |state| matches!(state, VCpuState::Ready | VCpuState::Running);
        self.core.vcpus.iter().any(|vcpu| bound(vcpu.state()))
    }
}

/// What the configuration says of memory.
fn memory_plan(config: &AxVMConfig) -> AxResult<Vec<(GpaRange, MappingFlags, Source)>> {
    let memory = config.memory_regions.iter().map(|region| {
        let range = GpaRange::new(region.gpa.into(), region.size).ok_or(AxError::InvalidInput)?;
        let source = match region.map_type {
            VmMemMappingType::MapAlloc => Source::Eager,
            VmMemMappingType::MapLazy => Source::Lazy(PageSize::Size4K),
            VmMemMappingType::MapLazyHuge => Source::Lazy(PageSize::Size2M),
            VmMemMappingType::MapIdentical => Source::Identical,
            VmMemMappingType::MapReserved => Source::Linear(region.gpa.into()),
        };
        Ok((range, MappingFlags::from_bits_truncate(region.flags), source))
    });
    let device = MappingFlags::READ.union(MappingFlags::WRITE).union(MappingFlags::DEVICE);
    let devices = pass_through_ranges(config)?;
    let devices = devices.into_iter().map(|d| Ok((d.range, device, Source::Linear(d.hpa))));
    memory.chain(devices).collect()
}
