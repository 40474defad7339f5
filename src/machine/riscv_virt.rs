//! The RISC-V machine, in the layout of QEMU's `virt`: PLIC and 16550 where the configuration puts
//! them, SBI for firmware, a generated device tree.

use alloc::{sync::Arc, vec::Vec};
use core::fmt;

use axerrno::{AxError, AxResult, ax_err};

use super::{Images, Machine};
use crate::{
    arch::riscv64::{Features, Hart, RiscvVCpu},
    boot::{
        self, ImageError, ImageFormat, KernelImage, PlacementError, Plan, Request,
        fdt::{Chosen, FdtError, Isa, Mmu, Plic, RiscvMachine, Uart},
    },
    config::AxVMConfig,
    device::{CharBackend, EmuDeviceType, serial::Uart16550},
    hal::AxVMHal,
    irq::{DirectIrq, InterruptController, IrqLine, MAX_IRQS, Priority, Trigger, VPlic, vplic},
    mm::{GpaRange, GuestPhysAddr, MappingFlags},
    vm::AxVM,
};

/// The PLIC's sources, unless the first number in its `cfg_list` says otherwise; as QEMU's.
pub const SOURCES: u32 = 95;

/// The clock of the serial port in Hz, which nothing depends on; as QEMU's.
pub const UART_CLOCK: u32 = 3_686_400;

/// What every guest may use: RV64GC with what that has come to mean, and `time` (Zicntr) of the
/// counters. Sstc is added where the hart has it.
const EXTENSIONS: [&str; 9] = ["i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei"];

/// Creates a VM and loads its images.
///
/// Of the configuration's emulated devices, an interrupt controller (kind 0x1, a PLIC of
/// [`vplic::WINDOW_SIZE`] bytes) and a console (kind 0x2, a 16550) are made here; the console's bytes,
/// and those of the firmware's console, are those of `console`. The kernel goes where the
/// configuration says, but an ELF program where its file says; what the configuration gives no
/// address for goes where there is room.
///
/// # Errors
/// `InvalidInput` and `AlreadyExists` as [`AxVM::new`], and for images that are malformed or do
/// not fit; `Unsupported` for other devices, and where the host has no hypervisor extension;
/// `BadState` when the host does not tell how fast `time` ticks and virtualization is not enabled
/// yet, which would measure it; `NoMemory`. The log says what is wrong.
pub fn new_vm<H: AxVMHal, P: Hart>(
    mut config: AxVMConfig,
    images: Images,
    console: Arc<dyn CharBackend>,
) -> AxResult<Machine<H, RiscvVCpu<H, P>>> {
    config.validate().inspect_err(|error| log::error!("VM {}: {error}", config.id))?;
    let Some(features) = P::machine().probe(&mut P::default()) else {
        return ax_err!(Unsupported, "the hart has no hypervisor extension");
    };
    let Some(timebase) = P::machine().known_frequency::<H>() else {
        return ax_err!(BadState, "how fast `time` ticks is not known yet");
    };
    let devices = Devices::find(&config)?;
    let (plan, dtb) = place(&config, images, &devices, features, timebase)
        .inspect_err(|error| log::error!("VM {}: {error}", config.id))?;
    config.image.kernel_load_gpa = plan.kernel().span().start();
    config.image.entry_point = plan.entry();
    config.image.dtb_load_gpa = plan.dtb().map(GpaRange::start);
    config.image.ramdisk_load_gpa = plan.initrd().map(GpaRange::start);
    let machine = build(config, devices, console)?;
    machine.vm.load_images(move |vm| boot::load(vm.memory(), &plan, &dtb))?;
    Ok(machine)
}

/// Finds a place for everything, and makes the device tree that says so.
fn place(
    config: &AxVMConfig,
    images: Images,
    devices: &Devices,
    features: Features,
    timebase: u64,
) -> Result<(Plan<'static>, Vec<u8>), NoPlace> {
    let kernel = KernelImage::parse(images.kernel, boot::Machine::Riscv64, None)?;
    let elf = kernel.format() == ImageFormat::Elf;
    let ram = ram(config);
    let harts: Vec<u64> = (0..config.cpu_num).map(|vcpu| config.guest_cpu_id(vcpu)).collect();
    let mut extensions = EXTENSIONS.to_vec();
    extensions.extend(features.sstc.then_some("sstc"));
    let tree = RiscvMachine {
        harts: &harts,
        timebase: u32::try_from(timebase).map_err(|_| NoPlace::Timebase(timebase))?,
        isa: Isa { base: "rv64i", extensions: &extensions },
        mmu: match features.satp_mode {
            8 => Mmu::Sv39,
            9 => Mmu::Sv48,
            _ => Mmu::Sv57,
        },
        memory: &ram,
        reserved: &[],
        plic: devices.plic,
        uarts: devices.uart.as_slice(),
        chosen: Chosen { bootargs: config.image.cmdline.as_deref(), ..Chosen::default() },
    };
    let dtb = |initrd| match images.dtb {
        Some(dtb) => Ok(dtb.to_vec()),
        None => RiscvMachine { chosen: Chosen { initrd, ..tree.chosen }, ..tree }.device_tree(),
    };
    let plan = Plan::new(&Request {
        kernel_at: (!elf).then_some(config.image.kernel_load_gpa),
        entry: (!elf).then_some(config.image.entry_point),
        initrd: images.initrd,
        initrd_at: config.image.ramdisk_load_gpa,
        // Its length does not depend on where the initial RAM disk is.
        dtb_room: dtb(images.initrd.and(ram.first().copied()))?.len(),
        dtb_at: config.image.dtb_load_gpa,
        ..Request::new(&ram, kernel)
    })?;
    Ok((plan, dtb(plan.initrd())?))
}

/// Creates the VM of a configuration that is complete, and its devices.
fn build<H: AxVMHal, P: Hart>(
    config: AxVMConfig,
    Devices { plic, uart }: Devices,
    console: Arc<dyn CharBackend>,
) -> AxResult<Machine<H, RiscvVCpu<H, P>>> {
    type Controller<H, P> = Arc<dyn InterruptController<RiscvVCpu<H, P>>>;
    let made_here = [EmuDeviceType::InterruptController, EmuDeviceType::Console];
    let (mut registers, cpus) = (None, config.cpu_num);
    let vm = AxVM::assemble(config, &made_here, |notifier| {
        let Some(Plic { range, sources }) = plic else {
            let direct = DirectIrq::new(cpus, MAX_IRQS, Priority::LowestFirst, notifier)?;
            return Ok(Arc::new(direct) as Controller<H, P>);
        };
        let plic = Arc::new(VPlic::new(range.start(), sources, cpus, notifier)?);
        registers = Some(plic.clone());
        Ok(plic as Controller<H, P>)
    })?;
    if let Some(plic) = registers {
        vm.add_mmio_device(plic)?;
    }
    let mut serial = Vec::new();
    if let Some(Uart { range, irq, .. }) = uart {
        let line = IrqLine::new(vm.irq_input(), irq as usize, Trigger::Level);
        let port = Arc::new(Uart16550::new(range.start(), 0, line, console.clone())?);
        vm.add_mmio_device(port.clone())?;
        serial.push(port);
    }
    vm.set_firmware_console(console)?;
    Ok(Machine { vm, serial })
}

/// The emulated devices that the configuration asks for.
#[derive(Clone, Copy, Default)]
struct Devices {
    plic: Option<Plic>,
    uart: Option<Uart>,
}

impl Devices {
    fn find(config: &AxVMConfig) -> AxResult<Self> {
        let mut devices = Self::default();
        for device in &config.emu_devices {
            let wrong = |what: &str| log::error!("emu_devices: {}: {what}", device.name);
            let base = GuestPhysAddr::from_usize(device.base_gpa);
            let Some(range) = GpaRange::new(base, device.length) else { continue };
            match EmuDeviceType::try_from(device.emu_type) {
                Ok(EmuDeviceType::InterruptController) if devices.plic.is_none() => {
                    let sources = device.cfg_list.first().map_or(Ok(SOURCES), |&n| n.try_into());
                    let (Ok(sources), vplic::WINDOW_SIZE) = (sources, device.length) else {
                        wrong("a PLIC has a length of 0x600000 and up to 1023 sources");
                        return Err(AxError::InvalidInput);
                    };
                    devices.plic = Some(Plic { range, sources });
                }
                Ok(EmuDeviceType::Console) if devices.uart.is_none() => {
                    let Ok(irq) = device.irq_id.try_into() else {
                        wrong("irq_id is no source of a PLIC");
                        return Err(AxError::InvalidInput);
                    };
                    devices.uart = Some(Uart { range, irq, clock: UART_CLOCK });
                }
                Ok(EmuDeviceType::InterruptController | EmuDeviceType::Console) => {
                    wrong("the machine has one of its kind");
                    return Err(AxError::Unsupported);
                }
                // The VM makes those that it knows, and refuses the rest.
                _ => {}
            }
        }
        Ok(devices)
    }
}

/// Why there is no place for the guest's images.
enum NoPlace {
    Image(ImageError),
    Placement(PlacementError),
    Tree(FdtError),
    /// A device tree has 32 bits for it.
    Timebase(u64),
}

impl From<ImageError> for NoPlace {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<PlacementError> for NoPlace {
    fn from(error: PlacementError) -> Self {
        Self::Placement(error)
    }
}

impl From<FdtError> for NoPlace {
    fn from(error: FdtError) -> Self {
        Self::Tree(error)
    }
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Placement(error) => error.fmt(f),
            Self::Tree(error) => error.fmt(f),
            Self::Timebase(hz) => write!(f, "`time` ticks at {hz} Hz, which is beyond 32 bits"),
        }
    }
}

impl From<NoPlace> for AxError {
    fn from(error: NoPlace) -> Self {
        match error {
            NoPlace::Image(error) => error.into(),
            NoPlace::Placement(error) => error.into(),
            NoPlace::Tree(error) => error.into(),
            NoPlace::Timebase(_) => Self::InvalidInput,
        }
    }
}

/// What of the guest's memory is RAM that it can write.
fn ram(config: &AxVMConfig) -> Vec<GpaRange> {
    let writable = MappingFlags::READ | MappingFlags::WRITE;
    let regions = config.memory_regions.iter().filter(|region| {
        let flags = MappingFlags::from_bits_truncate(region.flags);
        flags.contains(writable) && !flags.contains(MappingFlags::DEVICE)
    });
    regions.filter_map(|region| GpaRange::new(region.gpa.into(), region.size)).collect()
}
