//! What a host is handed: an archive of a configuration in axvisor's format and the images that
//! it names.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::Guest;
use super::archive::Archive;
use crate::arch::Arch;

/// The guest's number.
const ID: u32 = 1;
/// vm_type of Linux; also for other guests that are no real-time ones.
const LINUX: u32 = 2;
/// Flags of a region of RAM: read, write, execute.
const RWX: u32 = 0b111;
/// map_type of memory that is populated as it is touched: ours, beyond axvisor's.
const LAZY: u32 = 3;
/// Names of the images in the bundle.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

#[derive(Serialize)]
struct Config<'a> {
    base: Base<'a>,
    kernel: Kernel<'a>,
    devices: Devices<'a>,
}

#[derive(Serialize)]
struct Base<'a> {
    id: u32,
    name: &'a str,
    vm_type: u32,
    cpu_num: u32,
}

#[derive(Serialize)]
struct Kernel<'a> {
    entry_point: u64,
    kernel_path: &'a str,
    kernel_load_addr: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramdisk_path: Option<&'a str>,
    cmdline: &'a str,
    memory_regions: [(u64, u64, u32, u32); 1],
}

/// Name, base, length, interrupt, kind, and nothing that the kind wants to know.
type Device<'a> = (&'a str, u64, u64, u32, u32, [u64; 0]);

#[derive(Serialize)]
struct Devices<'a> {
    emu_devices: Vec<Device<'a>>,
    passthrough_devices: [(); 0],
    interrupt_mode: &'a str,
}

/// The configuration of the guest's VM.
fn config(arch: &Arch, guest: &Guest) -> Result<String> {
    let layout = &arch.guest;
    let devices = layout.devices.iter();
    let config = Config {
        base: Base { id: ID, name: &guest.name, vm_type: LINUX, cpu_num: guest.vcpus },
        kernel: Kernel {
            entry_point: layout.load,
            kernel_path: KERNEL,
            kernel_load_addr: layout.load,
            ramdisk_path: guest.initrd.is_some().then_some(INITRD),
            cmdline: &guest.cmdline,
            memory_regions: [(layout.ram, guest.memory, RWX, LAZY)],
        },
        devices: Devices {
            emu_devices: devices
                .map(|device| {
                    (device.name, device.base, device.length, device.irq, device.kind, [])
                })
                .collect(),
            passthrough_devices: [],
            interrupt_mode: "emu",
        },
    };
    toml::to_string(&config).context("the guest's configuration")
}

/// Writes the guest's bundle to a file that lasts as long as the value.
pub(crate) fn write(arch: &Arch, guest: &Guest) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::with_suffix(".cpio").context("cannot make a temporary file")?;
    let mut archive = Archive::new(&mut file);
    archive.file("vm0.toml", 0o644, config(arch, guest)?.as_bytes())?;
    for (name, image) in [(KERNEL, Some(&guest.kernel)), (INITRD, guest.initrd.as_ref())] {
        if let Some(image) = image {
            let content = fs::read(image).with_context(|| image.display().to_string())?;
            archive.file(name, 0o644, &content)?;
        }
    }
    archive.finish()?.flush()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_axvisors() -> Result<()> {
        let guest = Guest {
            name: "linux".to_owned(),
            kernel: "k".into(),
            initrd: Some("i".into()),
            cmdline: r#"console=ttyS0 dyndbg="file a.c +p" back\slash"#.to_owned(),
            vcpus: 2,
            memory: 256 << 20,
        };
        let text = config(&crate::arch::ALL[0], &guest)?;
        for line in [
            "[base]",
            "id = 1",
            "name = \"linux\"",
            "vm_type = 2",
            "cpu_num = 2",
            "[kernel]",
            "entry_point = 2149580800",
            "kernel_path = \"kernel\"",
            "kernel_load_addr = 2149580800",
            "ramdisk_path = \"initrd\"",
            "cmdline = 'console=ttyS0 dyndbg=\"file a.c +p\" back\\slash'",
            "memory_regions = [[2147483648, 268435456, 7, 3]]",
            "[devices]",
            "emu_devices = [[\"plic\", 201326592, 6291456, 0, 1, []], \
             [\"uart\", 268435456, 256, 10, 2, []]]",
            "passthrough_devices = []",
            "interrupt_mode = \"emu\"",
        ] {
            assert!(text.lines().any(|written| written == line), "no {line} in\n{text}");
        }
        let flat = Guest { initrd: None, ..guest };
        assert!(!config(&crate::arch::ALL[0], &flat)?.contains("ramdisk_path"));
        Ok(())
    }
}
