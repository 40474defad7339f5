//! A machine like QEMU's `virt`, and what its guest does.

use std::sync::{Arc, Mutex, mpsc};

use axvm::{
    arch::riscv64::{Frame, RiscvVCpu, Trap},
    config::{AxVMConfig, EmulatedDeviceConfig, VmMemMappingType},
    device::{CharBackend, EmuDeviceType},
    machine::{Images, Machine, riscv_virt},
    mm::MappingFlags,
    vcpu::AxVCpuExitReason,
};
use axvm_testkit::{
    Guest, MockHal, MockHart, enable_pcpus, exception, guest_page_fault, interrupt, mock_hal,
    mock_hart,
};

mock_hal!(pub struct Hal { counter_hz: 10_000_000 });
mock_hart!(pub struct Hart on Hal {});

pub const RAM: usize = 0x8000_0000;
pub const RAM_SIZE: usize = 64 << 20;
pub const PLIC: u64 = 0xc00_0000;
pub const UART: u64 = 0x1000_0000;
pub const UART_IRQ: usize = 10;
/// Where a kernel's Image goes: behind where firmware would be.
pub const KERNEL: usize = RAM + 0x20_0000;

pub type Virt<P = Hart, H = Hal> = Machine<H, RiscvVCpu<H, P>>;

/// The other end of the console.
#[derive(Default)]
pub struct Terminal {
    printed: Mutex<Vec<u8>>,
    typed: Mutex<Vec<u8>>,
}

impl Terminal {
    /// What was printed since the last call.
    pub fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.printed.lock().unwrap())).unwrap()
    }

    pub fn type_in(&self, text: &str) {
        self.typed.lock().unwrap().extend(text.bytes());
    }
}

impl CharBackend for Terminal {
    fn write(&self, bytes: &[u8]) {
        self.printed.lock().unwrap().extend(bytes);
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().unwrap();
        let len = buf.len().min(typed.len());
        buf[..len].iter_mut().zip(typed.drain(..len)).for_each(|(to, from)| *to = from);
        len
    }
}

pub fn device(name: &str, kind: EmuDeviceType, base: u64, length: usize) -> EmulatedDeviceConfig {
    EmulatedDeviceConfig {
        name: name.into(),
        base_gpa: base as usize,
        length,
        irq_id: 0,
        emu_type: kind as usize,
        cfg_list: Vec::new(),
    }
}

/// A VM with memory alone.
pub fn bare(cpus: usize) -> AxVMConfig {
    let rwx = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    let mut config = AxVMConfig::new(1, "virt").with_cpus(cpus).with_memory(
        RAM,
        RAM_SIZE,
        rwx,
        VmMemMappingType::MapLazy,
    );
    config.image.kernel_load_gpa = KERNEL.into();
    config.with_entry(KERNEL)
}

/// The same with PLIC and UART.
pub fn config(cpus: usize) -> AxVMConfig {
    let uart = device("uart", EmuDeviceType::Console, UART, 0x100);
    bare(cpus)
        .with_emu_device(device("plic", EmuDeviceType::InterruptController, PLIC, 0x60_0000))
        .with_emu_device(EmulatedDeviceConfig { irq_id: UART_IRQ, ..uart })
}

/// Some code without a header.
pub fn flat() -> Images {
    Images { kernel: &[0x73; 4096], initrd: None, dtb: None }
}

/// A booted machine on this thread's harts.
#[track_caller]
pub fn booted_on<H: MockHal, P: MockHart>(
    config: AxVMConfig,
    images: Images,
) -> (Virt<P, H>, Arc<Terminal>) {
    enable_pcpus::<RiscvVCpu<H, P>>(2);
    let terminal = Arc::new(Terminal::default());
    let machine = riscv_virt::new_vm(config, images, terminal.clone()).unwrap();
    machine.vm.boot().unwrap();
    (machine, terminal)
}

#[track_caller]
pub fn booted(config: AxVMConfig) -> (Virt, Arc<Terminal>) {
    booted_on(config, flat())
}

/// Has a vCPU do something, and then look at its registers when it runs again; it comes out for
/// a physical interrupt.
#[track_caller]
pub fn act<H: MockHal, P: MockHart>(
    machine: &Virt<P, H>,
    vcpu: usize,
    act: impl FnOnce(&mut Guest<'_>) -> Trap + Send + 'static,
) -> Frame {
    P::with(|cpu| cpu.script(act));
    look(machine, vcpu)
}

/// Has a vCPU do something that brings it out of `run_vcpu`: why.
#[track_caller]
pub fn once<H: MockHal, P: MockHart>(
    machine: &Virt<P, H>,
    vcpu: usize,
    act: impl FnOnce(&mut Guest<'_>) -> Trap + Send + 'static,
) -> AxVCpuExitReason {
    P::with(|cpu| cpu.script(act));
    machine.vm.run_vcpu(vcpu).unwrap()
}

/// A vCPU's registers at an entry.
#[track_caller]
pub fn look<H: MockHal, P: MockHart>(machine: &Virt<P, H>, vcpu: usize) -> Frame {
    let (tell, told) = mpsc::channel();
    P::with(|cpu| {
        cpu.script(move |guest| {
            tell.send(guest.frame.clone()).unwrap();
            interrupt(5)
        });
    });
    let out = AxVCpuExitReason::ExternalInterrupt { vector: 5 };
    assert_eq!(machine.vm.run_vcpu(vcpu), Ok(out));
    assert!(P::with(|cpu| cpu.is_done()));
    told.recv().unwrap()
}

/// Stores a byte (`sb a2`) or a word (`sw a2`).
#[track_caller]
pub fn store(machine: &Virt, gpa: u64, value: u64, byte: bool) {
    act(machine, 0, move |guest| {
        guest.set_reg(12, value);
        guest_page_fault(23, gpa, if byte { 0x00c0_0023 } else { 0x00c0_2023 })
    });
}

/// Loads a byte (`lbu a0`) or a word (`lwu a0`).
#[track_caller]
pub fn load(machine: &Virt, gpa: u64, byte: bool) -> u64 {
    let insn = if byte { 0x4503 } else { 0x6503 };
    act(machine, 0, move |_| guest_page_fault(21, gpa, insn)).gprs[10]
}

/// Calls the firmware; a0 and a1 afterwards.
#[track_caller]
pub fn ecall(machine: &Virt, vcpu: usize, call: [u64; 5]) -> (u64, u64) {
    let frame = act(machine, vcpu, move |guest| calling(guest, call));
    (frame.gprs[10], frame.gprs[11])
}

/// The guest makes a call: a7, a6, a0, a1, a2.
pub fn calling(guest: &mut Guest<'_>, call: [u64; 5]) -> Trap {
    for (reg, value) in [17, 16, 10, 11, 12].into_iter().zip(call) {
        guest.set_reg(reg, value);
    }
    exception(10, 0)
}
