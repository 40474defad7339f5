//! Stand-in for what the library brings.

use alloc::{string::String, sync::Arc};

use axerrno::AxResult;
use axvm::{AxVM, AxVMConfig, AxVMHal, AxVMRef, device::CharBackend};

pub struct Images {
    pub kernel: &'static [u8],
    pub initrd: Option<&'static [u8]>,
    pub dtb: Option<&'static [u8]>,
}

pub struct Machine<H: AxVMHal> {
    pub vm: AxVMRef<H>,
}

impl<H: AxVMHal> Machine<H> {
    pub fn notify_input(&self) {
        let _ = self.vm.inject_interrupt_to_vcpu(0, 1);
    }
}

pub fn new_vm<H: AxVMHal>(
    config: AxVMConfig,
    images: Images,
    console: Arc<dyn CharBackend>,
) -> AxResult<Machine<H>> {
    let vm = AxVM::new(config)?;
    let _ = (images.initrd, images.dtb);
    vm.load_images(move |vm| vm.memory().write(0x8020_0000.into(), images.kernel))?;
    vm.set_firmware_console(console)?;
    Ok(Machine { vm })
}

pub struct ImageFiles {
    pub kernel_path: String,
    pub ramdisk_path: Option<String>,
    pub dtb_path: Option<String>,
}

pub struct VmFile {
    pub config: AxVMConfig,
    pub images: ImageFiles,
}

impl VmFile {
    /// id name cpus kernel
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut next = |what: &str| words.next().ok_or(alloc::format!("line 1: no {what}"));
        let id = next("id")?.parse().map_err(|_| String::from("line 1: id: not a number"))?;
        let name = next("name")?;
        let cpus = next("cpus")?.parse().map_err(|_| String::from("line 1: cpus"))?;
        let config = AxVMConfig::new(id, name)
            .with_cpus(cpus)
            .with_ram(0x8000_0000, 64 << 20)
            .with_entry(0x8020_0000);
        let kernel_path = next("kernel")?.into();
        let mut config = config;
        if let Ok(sets) = next("sets") {
            config.phys_cpu_sets = Some(sets.split(',').map(|s| s.parse().unwrap()).collect());
        }
        Ok(Self { config, images: ImageFiles { kernel_path, ramdisk_path: None, dtb_path: None } })
    }
}
