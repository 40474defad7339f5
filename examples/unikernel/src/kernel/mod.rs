//! The kernel: what needs a machine.
//!
//! `arch` is what differs between machines; `uart`, `console` and `memory` are what they have;
//! `cpu` and `sched` share the CPUs among the vCPUs; `load`, `vms` and `stats` are about the VMs;
//! `hal` is what the library is given of all this.

mod arch;
mod console;
mod cpu;
mod hal;
mod load;
mod memory;
mod sched;
mod stats;
mod uart;
mod vms;

use alloc::string::String;
use core::panic::PanicInfo;

use unikernel::{
    options::Options,
    tree::{PhysRange, Tree},
};

use console::say;

/// The first CPU comes here from its architecture's boot code, with `used` in use already.
fn boot<const N: usize>(cpu_id: usize, tree: Tree<'_>, used: [PhysRange; N]) -> ! {
    arch::init_machine(tree);
    let bundle = tree.initrd();
    memory::init(tree.memory(), tree.reserved().chain(used).chain(bundle.clone()));

    let options = Options::parse(tree.bootargs(), |word| say!("boot argument {word}: unknown"));
    console::init_log(options.log);
    cpu::init(arch::cpu_ids(tree), cpu_id);
    cpu::this().begin();
    arch::init_input(tree, cpu_id);

    let guests = bundle.ok_or_else(|| String::from("there is no bundle (-initrd)"));
    let guests = guests.and_then(|range| load::read(bytes(range))).unwrap_or_else(|error| {
        say!("{error}");
        end(1)
    });
    cpu::start_others();
    console::init_focus(guests.len());
    vms::start(guests, options);
    sched::run(cpu::this())
}

/// The other CPUs come here, each on a stack of its own.
extern "C" fn secondary() -> ! {
    cpu::this().begin();
    sched::run(cpu::this())
}

/// Memory that the boot loader filled, and that nobody changes.
fn bytes(range: PhysRange) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(range.start as usize);
    // SAFETY: the device tree says that the bundle is there; its frames were taken from the
    // allocator.
    unsafe { core::slice::from_raw_parts(start, (range.end - range.start) as usize) }
}

/// Ends the machine, when everything is on the console.
fn end(status: u8) -> ! {
    console::drain();
    arch::power_off(status)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::seize();
    say!("host {info}");
    end(1)
}
