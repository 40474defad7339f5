//! A RISC-V machine with the hypervisor extension and SBI firmware, as QEMU's `virt`.

mod csr;
mod entry;
mod plic;
mod sbi;
mod trap;

use core::{
    arch::asm,
    mem::MaybeUninit,
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicUsize, Ordering},
};

use dtoolkit::fdt::Fdt;
use spin::Once;
use unikernel::{
    clock::Clock,
    queue::NEVER,
    tree::{PhysRange, Tree},
};

use crate::kernel::{
    console,
    cpu::{Cpu, Stack, prepare_stack},
    uart::Uart,
};

/// What the device tree calls a 16550.
const UART: &str = "ns16550a";

/// What is found once, and the same for all harts.
struct Machine {
    clock: Clock,
    frequency: u64,
    /// Whether `stimecmp` is there, so that setting the timer needs no call.
    sstc: bool,
}

static MACHINE: Once<Machine> = Once::new();

/// The register that ends the emulator (SiFive's test finisher); 0: there is none.
static FINISHER: AtomicUsize = AtomicUsize::new(0);

/// The boot hart comes here, on its stack, with .bss cleared.
extern "C" fn boot(hart: usize, dtb: *const u8) -> ! {
    // SAFETY: SBI firmware passes the address of a device tree, which stays where it is.
    let Ok(fdt) = (unsafe { Fdt::from_raw(dtb) }) else { halt() };
    let dtb = dtb.addr() as u64..dtb.addr() as u64 + fdt.data().len() as u64;
    crate::kernel::boot(hart, Tree::new(fdt), [dtb, image()])
}

/// The RAM from where the kernel was linked down to the firmware, and the kernel itself.
fn image() -> PhysRange {
    unsafe extern "C" {
        static __image_end: u8;
    }
    0..(&raw const __image_end).addr() as u64
}

/// Finds console, power switch and clock.
pub fn init_machine(tree: Tree<'_>) {
    if let Some(device) = tree.device("sifive,test0") {
        FINISHER.store(device.registers.start as usize, Ordering::Relaxed);
    }
    if let Some(device) = tree.device(UART) {
        // SAFETY: the device tree says so, and nobody else has looked.
        console::init(unsafe { Uart::new(device.registers.start as usize) });
    }
    let frequency = tree.timebase().expect("the device tree has a timebase-frequency").into();
    let clock = Clock::new(frequency).expect("it is not 0");
    let sstc = tree.cpus().all(|cpu| cpu.has_extension("sstc"));
    MACHINE.call_once(|| Machine { clock, frequency, sstc });
}

/// Has the console's interrupt come to this CPU, and tells what kind of machine it is.
pub fn init_input(tree: Tree<'_>, hart: usize) {
    if let Some(uart) = tree.device(UART) {
        plic::init(tree, hart, &uart);
    }
    let isa = tree.cpus().next().map(|cpu| cpu.isa()).unwrap_or_default();
    log::info!("harts are {isa}; the timer is {}", if machine().sstc { "Sstc" } else { "SBI" });
    if !tree.cpus().all(|cpu| cpu.has_extension("h")) {
        log::warn!("the harts have no hypervisor extension");
    }
}

fn machine() -> &'static Machine {
    MACHINE.get().expect("init_machine comes first")
}

/// Prepares this hart: its traps, its interrupts.
pub fn init_cpu() {
    set_timer(NEVER);
    trap::init();
}

/// The ids of the harts.
pub fn cpu_ids(tree: Tree<'_>) -> impl Iterator<Item = usize> {
    tree.cpus().filter_map(|cpu| usize::try_from(cpu.id()?).ok())
}

/// Has a hart begin at [`crate::kernel::secondary`], on the given stack, and waits for it.
///
/// # Errors
/// The firmware's code (SBI 1.0 §9.1); -1 when the hart does not come in time.
pub fn start_cpu(cpu: &'static Cpu, stack: &'static mut MaybeUninit<Stack>) -> Result<(), isize> {
    const PATIENCE: u64 = 1_000_000_000;
    let top = prepare_stack(stack, cpu);
    let entry = entry::secondary_entry as *const () as usize;
    // SAFETY: the entry sets up what Rust code needs, from a stack that is only this hart's.
    let start = || unsafe { sbi::start_hart(cpu.id, entry, top) };
    start()?;
    let limit = now().saturating_add(PATIENCE);
    while !cpu.is_up() {
        if now() > limit {
            return Err(-1);
        }
        // It came to the wrong place (see `_start`).
        if sbi::is_stopped(cpu.id) {
            start()?;
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Sets what [`this_cpu`] returns on this hart: `tp` is ours, and the same in traps. A guest has
/// its own.
pub fn set_this_cpu(cpu: &'static Cpu) {
    // SAFETY: compiled code does not use `tp`, as there are no thread-local variables.
    unsafe { asm!("mv tp, {}", in(reg) &raw const *cpu, options(nomem, nostack)) };
}

/// What was set for this hart; null at first.
pub fn this_cpu() -> *const Cpu {
    let cpu;
    // SAFETY: a register is read.
    unsafe { asm!("mv {}, tp", out(reg) cpu, options(nomem, nostack, preserves_flags)) };
    cpu
}

/// Nanoseconds of the clock that all harts share.
pub fn now() -> u64 {
    machine().clock.nanos(csr::read!("time") as u64)
}

/// Ticks of that clock in a second.
pub fn counter_frequency() -> u64 {
    machine().frequency
}

/// Has one timer interrupt come at a time of that clock, [`NEVER`] for none. One that is pending
/// is not any more.
pub fn set_timer(deadline: u64) {
    let machine = machine();
    let ticks = if deadline == NEVER { u64::MAX } else { machine.clock.ticks(deadline) };
    if machine.sstc {
        // SAFETY: an interrupt, later. The number is that of `stimecmp` (Sstc 1.0 §3.1).
        unsafe { csr::write!("w", "0x14d", ticks) };
    } else {
        sbi::set_timer(ticks);
    }
}

/// Interrupts a hart.
pub fn interrupt(hart: usize) {
    sbi::send_ipi(hart);
}

/// Sleeps until an interrupt is pending. It may be masked: whoever looks for work, finds none
/// and waits with interrupts masked misses none (Privileged 1.12 §3.3.3).
pub fn wait_for_interrupt() {
    // SAFETY: the hart stops for a while.
    unsafe { asm!("wfi", options(nomem, nostack)) };
}

/// Takes the interrupts that are pending: traps come between the two instructions (Privileged
/// 1.12 §3.1.9: right after the write that lets them).
pub fn open_interrupts() {
    const SIE: usize = 1 << 1;
    // SAFETY: the handler keeps all registers, and takes no lock that is held here.
    unsafe {
        csr::write!("s", "sstatus", SIE);
        csr::write!("c", "sstatus", SIE);
    }
}

/// Ends the machine; 0 is success.
pub fn power_off(status: u8) -> ! {
    let finisher = FINISHER.load(Ordering::Relaxed);
    if finisher != 0 {
        let word = if status == 0 { 0x5555 } else { 0x3333 | u32::from(status) << 16 };
        // SAFETY: the register of the test finisher; this ends everything.
        unsafe { with_exposed_provenance_mut::<u32>(finisher).write_volatile(word) };
    }
    halt()
}

fn halt() -> ! {
    loop {
        wait_for_interrupt();
    }
}
