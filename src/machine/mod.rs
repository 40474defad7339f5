//! Whole machines: a VM with an interrupt controller, a console and a device tree, from a
//! configuration and the guest's images. A host that wants another machine puts the same parts
//! together by itself.

#![forbid(unsafe_code)]

pub mod riscv_virt;

use alloc::{sync::Arc, vec::Vec};

use crate::{
    arch::NativeVCpu, device::serial::Uart16550, hal::AxVMHal, mm::GpaRange, vcpu::AxArchVCpu,
    vm::AxVMRef,
};

/// A guest's images. They are copied into its memory now and at each reset, so they live as long
/// as the VM.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// The kernel, in a format that [`boot`](crate::boot) knows.
    pub kernel: &'static [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'static [u8]>,
    /// A device tree to be used instead of the generated one, unchanged.
    pub dtb: Option<&'static [u8]>,
}

/// A VM and its consoles.
pub struct Machine<H: AxVMHal, A: AxArchVCpu = NativeVCpu<H>> {
    /// The VM: created, its images loaded, not booted.
    pub vm: AxVMRef<H, A>,
    serial: Vec<Arc<Uart16550<GpaRange>>>,
}

impl<H: AxVMHal, A: AxArchVCpu> Machine<H, A> {
    /// Says that the console's backend has input; callable from an interrupt handler.
    pub fn notify_input(&self) {
        self.serial.iter().for_each(|port| port.notify_input());
    }
}

/// The machine of the target architecture.
///
/// # Errors
/// See [`riscv_virt::new_vm`].
#[cfg(all(target_arch = "riscv64", target_os = "none"))]
pub fn new_vm<H: AxVMHal>(
    config: crate::config::AxVMConfig,
    images: Images,
    console: Arc<dyn crate::device::CharBackend>,
) -> axerrno::AxResult<Machine<H>> {
    riscv_virt::new_vm(config, images, console)
}
