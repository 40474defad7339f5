//! The files that axvisor ships: what each says, written out here by hand.

use axvm::{
    config::{
        EmulatedDeviceConfig, PassThroughDeviceConfig, VMInterruptMode, VMType, VmMemConfig,
        VmMemMappingType::{self, MapAlloc, MapIdentical, MapLazy, MapLazyHuge, MapReserved},
        toml::{ImageFiles, ImageLocation, VmFile},
    },
    mm::MappingFlags,
};
use axvm_testkit::gpa_range;

macro_rules! file {
    ($name:literal) => {
        read(include_str!(concat!("../data/axvisor-vms/", $name, ".toml")))
    };
}

#[track_caller]
fn read(text: &str) -> VmFile {
    let file = VmFile::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.config.validate(), Ok(()));
    assert_eq!(file.config.vm_type, VMType::Rtos);
    assert_eq!(file.config.id, 1);
    assert_eq!(file.config.interrupt_mode, VMInterruptMode::NoIrq);
    assert_eq!((file.config.emu_devices.len(), file.excluded_devices.len()), (0, 0));
    assert_eq!(file.config.pass_through_addresses, []);
    assert_eq!(file.config.image.cmdline, None);
    assert_eq!((&file.images.disk_path, &file.images.ramdisk_path), (&None, &None));
    file
}

/// The one region of memory.
#[track_caller]
fn region(file: &VmFile, gpa: usize, size: usize, flags: usize, map_type: VmMemMappingType) {
    assert_eq!(file.config.memory_regions, [VmMemConfig { gpa, size, flags, map_type }]);
    let rwx = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    assert_eq!(file.config.memory(rwx).collect::<Vec<_>>(), [gpa_range(gpa, size)]);
}

/// The physical devices: identical addresses, interrupt 1.
#[track_caller]
fn devices(file: &VmFile, expected: &[(&str, usize, usize)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|&(name, base, length)| PassThroughDeviceConfig {
            name: name.into(),
            base_gpa: base,
            base_hpa: base,
            length,
            irq_id: 1,
        })
        .collect();
    assert_eq!(file.config.pass_through_devices, expected);
}

/// How many vCPUs there are, and on which physical CPUs each may run.
#[track_caller]
fn affinities(file: &VmFile, sets: &[usize]) {
    let found: Vec<_> =
        (0..file.config.cpu_num).map(|vcpu| file.config.vcpu_affinity(vcpu)).collect();
    assert_eq!(found, sets.iter().map(|&set| Some(set)).collect::<Vec<_>>());
}

/// Entry, kernel, firmware, device tree.
#[track_caller]
fn addresses(file: &VmFile, entry: usize, kernel: usize, bios: Option<usize>, dtb: Option<usize>) {
    let image = &file.config.image;
    assert_eq!((image.entry_point, image.kernel_load_gpa), (entry.into(), kernel.into()));
    assert_eq!(image.bios_load_gpa, bios.map(Into::into));
    assert_eq!(image.dtb_load_gpa, dtb.map(Into::into));
    assert_eq!(image.ramdisk_load_gpa, None);
}

/// The physical devices of QEMU's `virt` for Arm.
const ARM_VIRT: &[(&str, usize, usize)] = &[
    ("intc@8000000", 0x800_0000, 0x5_0000),
    ("pl011@9000000", 0x900_0000, 0x1000),
    ("pl031@9010000", 0x901_0000, 0x1000),
    ("pl061@9030000", 0x903_0000, 0x1000),
    ("virtio_mmio", 0xa00_0000, 0x4000),
];

const RISCV_VIRT: &[(&str, usize, usize)] =
    &[("PLIC@c000000", 0xc00_0000, 0x21_0000), ("UART@10000000", 0x1000_0000, 0x1000)];

const PC: &[(&str, usize, usize)] = &[
    ("IO APIC", 0xfec0_0000, 0x1000),
    ("Local APIC", 0xfee0_0000, 0x1000),
    ("HPET", 0xfed0_0000, 0x1000),
];

#[test]
fn arceos_aarch64_smp() {
    let file = file!("arceos-aarch64-smp");
    assert_eq!(file.config.name, "arceos");
    affinities(&file, &[1, 2]);
    region(&file, 0x4000_0000, 0x100_0000, 7, MapAlloc);
    devices(&file, ARM_VIRT);
    addresses(&file, 0x4008_0000, 0x4008_0000, None, None);
    let kernel_path = "arceos-aarch64-smp.bin".into();
    assert_eq!(file.images, ImageFiles { kernel_path, ..ImageFiles::default() });
}

#[test]
fn arceos_riscv64() {
    let file = file!("arceos-riscv64");
    assert_eq!(file.config.name, "arceos");
    affinities(&file, &[1]);
    region(&file, 0x8000_0000, 0x100_0000, 0xf, MapAlloc);
    devices(&file, RISCV_VIRT);
    addresses(&file, 0x8020_0000, 0x8020_0000, None, None);
    assert_eq!(file.images.kernel_path, "arceos-riscv64.bin");
    assert_eq!(file.images.image_location, Some(ImageLocation::FileSystem));
}

#[test]
fn arceos_x86_64() {
    let file = file!("arceos-x86_64");
    assert_eq!(file.config.name, "arceos");
    affinities(&file, &[1]);
    region(&file, 0, 0x100_0000, 7, MapAlloc);
    devices(&file, PC);
    addresses(&file, 0x8000, 0x20_0000, Some(0x8000), None);
    assert_eq!(file.images.kernel_path, "arceos-x86_64.bin");
    assert_eq!(file.images.bios_path.as_deref(), Some("axvm-bios.bin"));
    assert_eq!(file.images.image_location, Some(ImageLocation::FileSystem));
}

#[test]
fn linux_a1000_aarch64_smp8() {
    let file = file!("linux-a1000-aarch64-smp8");
    assert_eq!(file.config.name, "linux-a1000");
    affinities(&file, &[1, 2, 4, 8, 16, 32, 64, 128]);
    let ids: Vec<_> = (0..8).map(|vcpu| file.config.guest_cpu_id(vcpu)).collect();
    assert_eq!(ids, [0, 0x100, 0x200, 0x300, 0x400, 0x500, 0x600, 0x700]);
    region(&file, 0x8000_0000, 0x7000_0000, 7, MapIdentical);
    // Everything below memory, up to its first byte.
    devices(&file, &[("most-devices", 0, 0x8000_0000)]);
    addresses(&file, 0x8100_0000, 0x8100_0000, None, Some(0x82e0_0000));
    assert_eq!(file.images.kernel_path, "path/to/kernel");
    assert_eq!(file.images.dtb_path.as_deref(), Some("path/to/dtb"));
    assert_eq!(file.images.image_location, Some(ImageLocation::Memory));
}

#[test]
fn linux_qemu_aarch64() {
    let file = file!("linux-qemu-aarch64");
    assert_eq!(file.config.name, "linux-qemu");
    affinities(&file, &[1]);
    region(&file, 0x8000_0000, 0x4000_0000, 7, MapIdentical);
    devices(&file, ARM_VIRT);
    addresses(&file, 0x8008_0000, 0x8008_0000, None, Some(0x8000_0000));
    assert_eq!(file.images.kernel_path, "linux-6.6.62.bin");
    assert_eq!(file.images.dtb_path.as_deref(), Some("linux-qemu.dtb"));
    assert_eq!(file.images.image_location, Some(ImageLocation::Memory));
}

#[test]
fn nimbos_riscv64() {
    let file = file!("nimbos-riscv64");
    assert_eq!(file.config.name, "nimbos");
    affinities(&file, &[1]);
    region(&file, 0x9000_0000, 0x100_0000, 0xf, MapAlloc);
    devices(&file, RISCV_VIRT);
    addresses(&file, 0x9020_0000, 0x9020_0000, None, None);
    assert_eq!(file.images.kernel_path, "nimbos-riscv64.bin");
    assert_eq!(file.images.image_location, Some(ImageLocation::FileSystem));
}

#[test]
fn nimbos_x86_64() {
    let file = file!("nimbos-x86_64");
    assert_eq!(file.config.name, "nimbos");
    affinities(&file, &[1]);
    region(&file, 0, 0x100_0000, 7, MapAlloc);
    devices(&file, PC);
    addresses(&file, 0x8000, 0x20_0000, Some(0x8000), None);
    assert_eq!(file.images.kernel_path, "nimbos-x86_64.bin");
    assert_eq!(file.images.bios_path.as_deref(), Some("axvm-bios.bin"));
    assert_eq!(file.images.image_location, Some(ImageLocation::FileSystem));
}

#[test]
fn starry_aarch64() {
    let file = file!("starry-aarch64");
    assert_eq!(file.config.name, "starry");
    affinities(&file, &[1]);
    region(&file, 0x4000_0000, 0x100_0000, 7, MapAlloc);
    devices(&file, ARM_VIRT);
    addresses(&file, 0x4008_0000, 0x4008_0000, None, Some(0x4000_0000));
    assert_eq!(file.images.kernel_path, "starry-aarch64.bin");
    assert_eq!(file.images.dtb_path.as_deref(), Some("starry-aarch64.bin"));
    assert_eq!(file.images.image_location, Some(ImageLocation::FileSystem));
}

#[test]
fn every_field_that_there_is_reaches_the_configuration() {
    let text = r#"
        [base]
        id = 3
        name = "all"
        vm_type = 2
        cpu_num = 2
        phys_cpu_ids = [0x80, 0x81]
        phys_cpu_sets = [0b01, 0b10]

        [kernel]
        entry_point = 0x8020_0000
        kernel_path = "k"
        kernel_load_addr = 0x8020_0000
        bios_path = "b"
        bios_load_addr = 0x8000_0000
        dtb_path = "d"
        dtb_load_addr = 0x8300_0000
        ramdisk_path = "r"
        ramdisk_load_addr = 0x8400_0000
        image_location = "memory"
        cmdline = "console=ttyS0 quiet"
        disk_path = "disk"
        memory_regions = [
            [0x8000_0000, 0x10_0000, 0x7, 0],
            [0x8010_0000, 0x10_0000, 0x7, 1],
            [0x8020_0000, 0x10_0000, 0x3, 2],
            [0x8030_0000, 0x10_0000, 0x1, 3],
            [0x8040_0000, 0x10_0000, 0xf, 4],
            [0x8050_0000, 0x1000, 0x13, 4],
        ]

        [devices]
        emu_devices = [["ivc", 0x9000_0000, 0x1000, 0, 0xA, [1, 0x10]]]
        passthrough_devices = [["uart", 0x1000_0000, 0x2000_0000, 0x100, 10]]
        passthrough_addresses = [[0x3000_0000, 0x1000]]
        excluded_devices = [["/soc/a", "/soc/b"], "/soc/c"]
        interrupt_mode = "passthrough"
    "#;
    let file = VmFile::parse(text).unwrap();
    let config = file.config;
    assert_eq!((config.id, &config.name[..], config.vm_type), (3, "all", VMType::Linux));
    assert_eq!(
        (config.cpu_num, config.guest_cpu_id(1), config.vcpu_affinity(1)),
        (2, 0x81, Some(2))
    );
    let image = &config.image;
    assert_eq!(
        (image.entry_point, image.kernel_load_gpa),
        (0x8020_0000.into(), 0x8020_0000.into())
    );
    assert_eq!(image.bios_load_gpa, Some(0x8000_0000.into()));
    assert_eq!(image.dtb_load_gpa, Some(0x8300_0000.into()));
    assert_eq!(image.ramdisk_load_gpa, Some(0x8400_0000.into()));
    assert_eq!(image.cmdline.as_deref(), Some("console=ttyS0 quiet"));
    let types: Vec<_> = config.memory_regions.iter().map(|region| region.map_type).collect();
    assert_eq!(types, [MapAlloc, MapIdentical, MapReserved, MapLazy, MapLazyHuge, MapLazyHuge]);
    // Memory that may be written: not what is read-only, nor a device.
    let writable: Vec<_> = config.memory(MappingFlags::WRITE).map(|range| range.start()).collect();
    let expected = [0x8000_0000, 0x8010_0000, 0x8020_0000, 0x8040_0000];
    assert_eq!(writable, expected.map(Into::into));
    let ivc = EmulatedDeviceConfig {
        name: "ivc".into(),
        base_gpa: 0x9000_0000,
        length: 0x1000,
        irq_id: 0,
        emu_type: 0xa,
        cfg_list: vec![1, 0x10],
    };
    assert_eq!(config.emu_devices, [ivc]);
    let uart = PassThroughDeviceConfig {
        name: "uart".into(),
        base_gpa: 0x1000_0000,
        base_hpa: 0x2000_0000,
        length: 0x100,
        irq_id: 10,
    };
    assert_eq!(config.pass_through_devices, [uart]);
    assert_eq!(config.pass_through_addresses, [(0x3000_0000, 0x1000)]);
    assert_eq!(config.interrupt_mode, VMInterruptMode::Passthrough);
    assert_eq!(file.excluded_devices, [vec!["/soc/a", "/soc/b"], vec!["/soc/c"]]);
    let images = ImageFiles {
        kernel_path: "k".into(),
        bios_path: Some("b".into()),
        dtb_path: Some("d".into()),
        ramdisk_path: Some("r".into()),
        disk_path: Some("disk".into()),
        image_location: Some(ImageLocation::Memory),
    };
    assert_eq!(file.images, images);
}
