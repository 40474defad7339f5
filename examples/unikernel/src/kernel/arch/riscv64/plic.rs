//! The host's interrupt controller (RISC-V PLIC specification 1.0.0). One interrupt is used, that
//! of the console, and by one hart.

use core::ptr::with_exposed_provenance_mut;

use spin::Once;
use unikernel::tree::{Device, Tree};

use crate::kernel::console;

/// What the device tree calls a PLIC.
const COMPATIBLE: &str = "riscv,plic0";

/// Offsets: priorities by source, enable bits by context and source, threshold and claim by context.
const ENABLE: usize = 0x2000;
const CONTEXT: usize = 0x20_0000;

static PLIC: Once<Plic> = Once::new();

struct Plic {
    base: usize,
    context: usize,
    console: u32,
}

impl Plic {
    fn register(&self, offset: usize) -> *mut u32 {
        with_exposed_provenance_mut(self.base + offset)
    }

    fn threshold(&self) -> *mut u32 {
        self.register(CONTEXT + 0x1000 * self.context)
    }

    fn claim(&self) -> *mut u32 {
        self.register(CONTEXT + 0x1000 * self.context + 4)
    }
}

/// Has the console's interrupt come to this hart. Without a PLIC, or an interrupt of the console,
/// nothing can be typed.
pub(super) fn init(tree: Tree<'_>, hart: usize, console: &Device) {
    let (Some(device), Some(context), Some(irq)) =
        (tree.device(COMPATIBLE), tree.plic_context(COMPATIBLE, hart as u64), console.irq)
    else {
        log::warn!("no interrupt for the console: nothing can be typed");
        return;
    };
    let base = device.registers.start as usize;
    let plic = PLIC.call_once(|| Plic { base, context, console: irq });
    let (word, bit) = (irq as usize / 32, irq % 32);
    // SAFETY: registers of the PLIC; nobody else uses it yet.
    unsafe {
        plic.register(4 * irq as usize).write_volatile(1);
        plic.register(ENABLE + 0x80 * context + 4 * word).write_volatile(1 << bit);
        plic.threshold().write_volatile(0);
    }
}

/// Serves what is pending for this hart.
pub(super) fn serve() {
    let Some(plic) = PLIC.get() else { return };
    loop {
        // SAFETY: a register of the PLIC; reading it claims the interrupt, and only this hart,
        // whose context it is, does that.
        let irq = unsafe { plic.claim().read_volatile() };
        if irq == 0 {
            return;
        }
        if irq == plic.console {
            console::typed();
        }
        // SAFETY: writing completes what was claimed.
        unsafe { plic.claim().write_volatile(irq) };
    }
}
