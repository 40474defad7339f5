//! RISC-V: a hart in S-mode on a machine laid out as QEMU's `virt`.

pub mod cpu;
pub mod csr;
mod entry;
pub mod harts;
pub mod insn;
pub mod machine;
pub mod memory;
pub mod plic;
pub mod sbi;
pub mod time;
pub mod trap;
pub mod uart;

unsafe extern "Rust" {
    /// What the program is: `entry!` makes it.
    safe fn guest_main();
}

/// The first hart, with its id and the device tree.
extern "C" fn boot(hart: u64, dtb: *const u8) -> ! {
    cpu::begin(hart, 0);
    // SAFETY: the boot protocol: a1 is the device tree, which stays where it is; nothing writes it.
    unsafe { machine::read(hart, dtb) };
    quiet();
    guest_main();
    sbi::power_off()
}

/// Puts the hart and the devices back to where a test finds them: no interrupts, no translation,
/// no floating point, devices silent.
pub fn quiet() {
    csr::clear!("sstatus", csr::SIE | csr::FS | csr::SUM);
    csr::write!("sie", 0u64);
    csr::write!("satp", 0u64);
    memory::fence_translations();
    csr::clear!("sip", csr::SSI);
    time::Source::best().set(u64::MAX);
    uart::quiet();
    plic::quiet();
    cpu::this().forget();
}
