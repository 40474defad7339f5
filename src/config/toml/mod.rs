//! Reads axvisor's configuration files of VMs (`vm*.toml`, in their form of mid-2025).
//!
//! | section | fields |
//! | --- | --- |
//! | `[base]` | `id`, `name`, `vm_type` (0 host, 1 RTOS, 2 Linux), `cpu_num`, `phys_cpu_ids`?, `phys_cpu_sets`? |
//! | `[kernel]` | `entry_point`, `kernel_path`, `kernel_load_addr`, `memory_regions`, and optionally `image_location`, `bios_path` with `bios_load_addr`, `dtb_path`, `dtb_load_addr`, `ramdisk_path`, `ramdisk_load_addr`, `disk_path`, `cmdline` |
//! | `[devices]` | all optional, as is the section: `emu_devices`, `passthrough_devices`, `passthrough_addresses`, `excluded_devices`, `interrupt_mode` (`"no_irq"`, `"emu"`, `"passthrough"`) |
//!
//! A memory region is `[gpa, size, flags, map_type]`; its flags are those of
//! [`MappingFlags`](crate::mm::MappingFlags) (1 read, 2 write, 4 execute, 8 user, which means nothing
//! here, 16 device); its map types are 0 allocated, 1 identical, 2 reserved and, beyond axvisor's, 3
//! lazy, 4 lazy by 2 MiB. An emulated device is `[name, base_gpa, length, irq_id, emu_type,
//! [parameter, …]]`, a physical one `[name, base_gpa, base_hpa, length, irq_id]`, an address range
//! `[base_gpa, length]`. An excluded device is a string or a list of strings.

mod error;
mod read;

use alloc::{boxed::Box, string::String, vec, vec::Vec};

pub use error::{Place, Problem, TomlError};

use self::read::{Document, Read, Section, Value};
use super::{
    AxVMConfig, ConfigError, ConfigField, EmulatedDeviceConfig, PassThroughDeviceConfig,
    VMImageConfig, VMInterruptMode, VMType, VmMemConfig, VmMemMappingType,
};

/// Where the files of a guest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLocation {
    /// In memory, brought by whatever loaded the host.
    Memory,
    /// In the host's file system.
    FileSystem,
}

/// The files of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFiles {
    /// The kernel.
    pub kernel_path: String,
    /// The firmware.
    pub bios_path: Option<String>,
    /// The device tree.
    pub dtb_path: Option<String>,
    /// The initial RAM disk.
    pub ramdisk_path: Option<String>,
    /// A disk.
    pub disk_path: Option<String>,
    /// Where they are, if the file says it.
    pub image_location: Option<ImageLocation>,
}

/// What a file says of a VM.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VmFile {
    /// The VM; valid, as [`AxVMConfig::validate`] says.
    pub config: AxVMConfig,
    /// Its files.
    pub images: ImageFiles,
    /// Devices that it is not to see, by the paths of their nodes in the host's device tree; this
    /// crate makes no use of them.
    pub excluded_devices: Vec<Vec<String>>,
}

const SECTIONS: &[&str] = &["base", "kernel", "devices"];
const BASE: &[&str] = &["id", "name", "vm_type", "cpu_num", "phys_cpu_ids", "phys_cpu_sets"];
const KERNEL: &[&str] = &[
    "entry_point",
    "kernel_path",
    "kernel_load_addr",
    "bios_path",
    "bios_load_addr",
    "dtb_path",
    "dtb_load_addr",
    "ramdisk_path",
    "ramdisk_load_addr",
    "image_location",
    "cmdline",
    "disk_path",
    "memory_regions",
];
const DEVICES: &[&str] = &[
    "emu_devices",
    "passthrough_devices",
    "interrupt_mode",
    "excluded_devices",
    "passthrough_addresses",
];
const REGION: [&str; 4] = ["gpa", "size", "flags", "map_type"];
const EMULATED: [&str; 6] = ["name", "base_gpa", "length", "irq_id", "emu_type", "cfg_list"];
const PASS_THROUGH: [&str; 5] = ["name", "base_gpa", "base_hpa", "length", "irq_id"];
const ADDRESSES: [&str; 2] = ["base_gpa", "length"];

impl VmFile {
    /// Reads a file and checks the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong: text that is not TOML, an unknown, missing or wrong field, or
    /// a value that [`AxVMConfig::validate`] refuses; each with its line.
    pub fn parse(text: &str) -> Result<Self, TomlError<'_>> {
        let document = Document::parse(text, SECTIONS)?;
        let need =
            |name, fields| document.section(name, fields)?.ok_or_else(|| document.missing(name));
        let mut config = base(&need("base", BASE)?)?;
        let images = kernel(&need("kernel", KERNEL)?, &mut config)?;
        let devices_section = document.section("devices", DEVICES)?;
        let excluded_devices = match devices_section {
            Some(section) => devices(&section, &mut config)?,
            None => Vec::new(),
        };
        match config.validate() {
            Ok(()) => Ok(Self { config, images, excluded_devices }),
            Err(error) => Err(refused(&document, error)),
        }
    }
}

fn base<'t>(section: &Section<'_, 't>) -> Read<'t, AxVMConfig> {
    let vm_type = section.need("vm_type")?;
    let numbers = |name| match section.get(name) {
        Some(list) => list.each(Value::number).map(Some),
        None => Ok(None),
    };
    Ok(AxVMConfig {
        id: section.need("id")?.number()?,
        name: section.need("name")?.owned()?,
        vm_type: match vm_type.number()? {
            0 => VMType::Host,
            1 => VMType::Rtos,
            2 => VMType::Linux,
            _ => return Err(vm_type.wrong("expected 0 (host), 1 (RTOS) or 2 (Linux)")),
        },
        cpu_num: section.need("cpu_num")?.number()?,
        phys_cpu_ids: numbers("phys_cpu_ids")?,
        phys_cpu_sets: numbers("phys_cpu_sets")?,
        ..AxVMConfig::default()
    })
}

fn kernel<'t>(section: &Section<'_, 't>, config: &mut AxVMConfig) -> Read<'t, ImageFiles> {
    let path = |name| section.get(name).map(Value::owned).transpose();
    let address = |name| match section.get(name) {
        Some(value) => value.number().map(|addr| Some(addr.into())),
        None => Ok(None),
    };
    config.image = VMImageConfig {
        entry_point: section.need("entry_point")?.number()?.into(),
        kernel_load_gpa: section.need("kernel_load_addr")?.number()?.into(),
        bios_load_gpa: address("bios_load_addr")?,
        dtb_load_gpa: address("dtb_load_addr")?,
        ramdisk_load_gpa: address("ramdisk_load_addr")?,
        cmdline: path("cmdline")?,
    };
    config.memory_regions = section.need("memory_regions")?.each(region)?;
    let files = ImageFiles {
        kernel_path: section.need("kernel_path")?.owned()?,
        bios_path: path("bios_path")?,
        dtb_path: path("dtb_path")?,
        ramdisk_path: path("ramdisk_path")?,
        disk_path: path("disk_path")?,
        image_location: section.get("image_location").map(image_location).transpose()?,
    };
    // Firmware tells its place nowhere else.
    if files.bios_path.is_some() {
        section.need("bios_load_addr")?;
    }
    Ok(files)
}

fn image_location<'t>(value: Value<'_, 't>) -> Read<'t, ImageLocation> {
    match value.string()? {
        "memory" => Ok(ImageLocation::Memory),
        "fs" => Ok(ImageLocation::FileSystem),
        _ => Err(value.wrong("expected \"memory\" or \"fs\"")),
    }
}

fn region<'t>(entry: Value<'_, 't>) -> Read<'t, VmMemConfig> {
    let [gpa, size, flags, map_type] = entry.elements(&REGION)?;
    Ok(VmMemConfig {
        gpa: gpa.number()?,
        size: size.number()?,
        flags: flags.number()?,
        map_type: match map_type.number()? {
            0 => VmMemMappingType::MapAlloc,
            1 => VmMemMappingType::MapIdentical,
            2 => VmMemMappingType::MapReserved,
            3 => VmMemMappingType::MapLazy,
            4 => VmMemMappingType::MapLazyHuge,
            _ => {
                let types = "expected 0 (allocated), 1 (identical), 2 (reserved), 3 (lazy) or 4 \
                             (lazy by 2 MiB)";
                return Err(map_type.wrong(types));
            }
        },
    })
}

/// Adds the devices; those that are excluded are returned.
fn devices<'t>(section: &Section<'_, 't>, config: &mut AxVMConfig) -> Read<'t, Vec<Vec<String>>> {
    if let Some(list) = section.get("emu_devices") {
        config.emu_devices = list.each(emulated)?;
    }
    if let Some(list) = section.get("passthrough_devices") {
        config.pass_through_devices = list.each(pass_through)?;
    }
    if let Some(list) = section.get("passthrough_addresses") {
        config.pass_through_addresses = list.each(|entry| {
            let [base, length] = entry.elements(&ADDRESSES)?;
            Ok((base.number()?, length.number()?))
        })?;
    }
    if let Some(mode) = section.get("interrupt_mode") {
        config.interrupt_mode = match mode.string()? {
            "no_irq" => VMInterruptMode::NoIrq,
            "emu" => VMInterruptMode::Emulated,
            "passthrough" => VMInterruptMode::Passthrough,
            _ => return Err(mode.wrong("expected \"no_irq\", \"emu\" or \"passthrough\"")),
        };
    }
    match section.get("excluded_devices") {
        Some(list) => list.each(|entry| {
            if entry.is_string() { Ok(vec![entry.owned()?]) } else { entry.each(Value::owned) }
        }),
        None => Ok(Vec::new()),
    }
}

fn emulated<'t>(entry: Value<'_, 't>) -> Read<'t, EmulatedDeviceConfig> {
    let [name, base_gpa, length, irq_id, emu_type, cfg_list] = entry.elements(&EMULATED)?;
    Ok(EmulatedDeviceConfig {
        name: name.owned()?,
        base_gpa: base_gpa.number()?,
        length: length.number()?,
        irq_id: irq_id.number()?,
        emu_type: emu_type.number()?,
        cfg_list: cfg_list.each(Value::number)?,
    })
}

fn pass_through<'t>(entry: Value<'_, 't>) -> Read<'t, PassThroughDeviceConfig> {
    let [name, base_gpa, base_hpa, length, irq_id] = entry.elements(&PASS_THROUGH)?;
    Ok(PassThroughDeviceConfig {
        name: name.owned()?,
        base_gpa: base_gpa.number()?,
        base_hpa: base_hpa.number()?,
        length: length.number()?,
        irq_id: irq_id.number()?,
    })
}

/// Says where the file has the value that the configuration's check refuses.
fn refused<'t>(document: &Document<'t>, error: ConfigError) -> TomlError<'t> {
    let ConfigField { entry, name } = error.field;
    let (list, entry) = entry.unzip();
    let (section, field, elements): (_, _, &[_]) = match list.unwrap_or(name) {
        "memory_regions" => ("kernel", "memory_regions", &REGION),
        "emu_devices" => ("devices", "emu_devices", &EMULATED),
        "pass_through_devices" => ("devices", "passthrough_devices", &PASS_THROUGH),
        "pass_through_addresses" => ("devices", "passthrough_addresses", &ADDRESSES),
        field => ("base", field, &[]),
    };
    // The configuration says "base" where the file has a guest's base.
    let index = elements
        .iter()
        .position(|&element| element == name || element == "base_gpa" && name == "base");
    let element = index.and_then(|index| elements.get(index)).copied().unwrap_or_default();
    let place = Place { section, field, entry, element };
    document.error(place, index, Problem::Config(Box::new(error)))
}
