//! Configurations: what is refused, by which name, and what the guest gets of the rest.

use axerrno::{AxError, AxErrorKind};
use axvm::{
    config::{
        AxVMConfig, EmulatedDeviceConfig, ForwardConfig, PassThroughDeviceConfig, VmMemConfig,
        VmMemMappingType,
    },
    mm::{HostPhysAddr, MappingFlags},
    vcpu::AccessWidth,
    vm::AxVM,
};
use axvm_testkit::{LogCapture, MockHal, Step, VM, X86Like, booted, mock_hal, test_config};

const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);
const LIMIT: usize = 0x7fff_ffff_f000;

mock_hal!(struct Refusing { arena: 4 << 20 });

/// That a configuration is refused by field, value and kind: by `validate`, and in the log of
/// `new`, which leaves nothing behind.
#[track_caller]
fn refused(config: AxVMConfig, field: &str, value: &str, kind: AxErrorKind) {
    let error = config.validate().expect_err(field);
    assert_eq!((error.field.to_string(), error.value.to_string()), (field.into(), value.into()));
    assert_eq!(error.kind, kind);
    let text = error.to_string();
    assert!(text.contains(field) && text.contains(value) && !error.rule.is_empty(), "{text}");
    let log = LogCapture::start();
    let made = AxVM::<Refusing, X86Like<Refusing>>::new(config);
    assert_eq!(made.err(), Some(AxError::from(kind)));
    log.assert_mentions(&[field, value]);
    Refusing::machine().assert_balanced();
}

#[track_caller]
fn invalid(config: AxVMConfig, field: &str, value: &str) {
    refused(config, field, value, AxErrorKind::InvalidInput);
}

fn memory(gpa: usize, size: usize) -> AxVMConfig {
    test_config(1).with_memory(gpa, size, RW, VmMemMappingType::MapAlloc)
}

fn device(base_gpa: usize, base_hpa: usize, length: usize) -> PassThroughDeviceConfig {
    PassThroughDeviceConfig { name: "dev".into(), base_gpa, base_hpa, length, irq_id: 0 }
}

fn pass_through(base_gpa: usize, base_hpa: usize, length: usize) -> AxVMConfig {
    test_config(1).with_pass_through(device(base_gpa, base_hpa, length))
}

fn emulated(base_gpa: usize, length: usize, emu_type: usize) -> AxVMConfig {
    let name = "emu".into();
    let device = EmulatedDeviceConfig { name, base_gpa, length, emu_type, ..Default::default() };
    test_config(1).with_emu_device(device)
}

#[test]
fn lists_of_cpus_must_fit_the_number_of_vcpus() {
    invalid(test_config(0), "cpu_num", "0");
    invalid(test_config(65), "cpu_num", "65");
    for count in [0, 1, 3, 65] {
        let mut config = test_config(2);
        config.phys_cpu_ids = Some((0..count).collect());
        invalid(config.clone(), "phys_cpu_ids", &count.to_string());
        config.phys_cpu_ids = None;
        config.phys_cpu_sets = Some(vec![1; count]);
        invalid(config, "phys_cpu_sets", &count.to_string());
    }
    let mut config = test_config(3);
    config.phys_cpu_ids = Some(vec![0x100, 0x200, 0x100]);
    invalid(config.clone(), "phys_cpu_ids[2]", "0x100");
    config.phys_cpu_ids = Some(vec![0x100, 0x200, 0x300]);
    config.phys_cpu_sets = Some(vec![1, 0, 4]);
    invalid(config.clone(), "phys_cpu_sets[1]", "0x0");
    config.phys_cpu_sets = Some(vec![1, 2, 4]);
    assert_eq!(config.validate(), Ok(()));
    assert_eq!((config.guest_cpu_id(2), config.vcpu_affinity(2)), (0x300, Some(4)));
    assert_eq!((test_config(64).validate(), test_config(1).vcpu_affinity(0)), (Ok(()), None));
}

#[test]
fn a_region_has_whole_pages_known_flags_and_room() {
    invalid(memory(0x10_0800, 0x1000), "memory_regions[1].gpa", "0x100800");
    invalid(memory(0x10_0000, 0x1001), "memory_regions[1].size", "0x1001");
    invalid(memory(0x10_0000, 0), "memory_regions[1].size", "0x0");
    invalid(memory(LIMIT - 0x1000, 0x2000), "memory_regions[1].size", "0x2000");
    invalid(memory(0x1000, usize::MAX & !0xfff), "memory_regions[1].size", "0xfffffffffffff000");
    invalid(memory(LIMIT, 0x1000), "memory_regions[1].gpa", "0x7ffffffff000");
    for flags in [0, 2, 1 << 20, usize::MAX] {
        let mut config = test_config(1);
        let map_type = VmMemMappingType::MapAlloc;
        config.memory_regions.push(VmMemConfig { gpa: 0x10_0000, size: 0x1000, flags, map_type });
        invalid(config, "memory_regions[1].flags", &format!("{flags:#x}"));
    }
}

#[test]
fn a_physical_device_has_a_length_room_and_one_offset() {
    let field = |name: &str| format!("pass_through_devices[0].{name}");
    invalid(pass_through(0x900_0000, 0xfe00_0000, 0), &field("length"), "0x0");
    invalid(pass_through(0x900_0010, 0xfe00_0020, 4), &field("base_hpa"), "0xfe000020");
    invalid(pass_through(LIMIT - 0x1000, 0, 0x1001), &field("length"), "0x1001");
    invalid(pass_through(LIMIT, 0, 1), &field("base_gpa"), "0x7ffffffff000");
    let far = usize::MAX & !0xfff;
    invalid(pass_through(0x900_0000, far, 0x2000), &field("base_hpa"), "0xfffffffffffff000");
    let mut config = test_config(1);
    config.pass_through_addresses = vec![(0x900_0000, 0x1000), (0x910_0000, 0)];
    invalid(config, "pass_through_addresses[1].length", "0x0");
}

#[test]
fn what_overlaps_is_named_and_exists_already() {
    let exists = AxErrorKind::AlreadyExists;
    refused(memory(0x7000, 0x2000), "memory_regions[1]", "GPA:0x7000..0x9000", exists);
    refused(
        pass_through(0x7ff0, 0xfe00_0ff0, 1),
        "pass_through_devices[0]",
        "GPA:0x7000..0x8000",
        exists,
    );
    // At another offset, in a page of the first.
    let two = pass_through(0x900_0000, 0xfe00_0000, 0x10).with_pass_through(device(
        0x900_0800,
        0xff00_0800,
        0x10,
    ));
    refused(two, "pass_through_devices[1]", "GPA:0x9000000..0x9001000", exists);
    let mut config = test_config(1);
    config.pass_through_addresses = vec![(0x900_0000, 8), (0x4000, 8)];
    refused(config, "pass_through_addresses[1]", "GPA:0x4000..0x5000", exists);
    refused(emulated(0x4800, 0x100, 0), "emu_devices[0]", "GPA:0x4800..0x4900", exists);
}

#[test]
fn emulated_devices_and_forwarded_ranges_make_sense() {
    invalid(emulated(0x900_0000, 0x100, 0x77), "emu_devices[0].emu_type", "0x77");
    invalid(emulated(LIMIT - 8, 0x100, 0), "emu_devices[0].length", "0x100");
    invalid(emulated(0x900_0800, 0x1000, 0xa), "emu_devices[0].base_gpa", "0x9000800");
    invalid(emulated(0x900_0000, 0x800, 0xa), "emu_devices[0].length", "0x800");
    let forward = |ports, sys_regs| {
        test_config(1).with_forward(ForwardConfig { mmio: vec![], ports, sys_regs })
    };
    invalid(forward(vec![(1, 2), (0x64, 0x60)], vec![]), "forward.ports[1]", "0x64");
    invalid(forward(vec![], vec![(9, 8)]), "forward.sys_regs[0]", "0x9");
}

#[test]
fn a_kind_of_device_that_the_crate_lacks_is_unsupported_and_its_parameters_never_panic() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let log = LogCapture::start();
    for kind in [0x1, 0x2, 0x20, 0x21, 0x22, 0x30, 0xe1, 0xe2, 0xe3] {
        let config = emulated(0x900_0000, 0x1000, kind);
        let made = AxVM::<Hal, X86Like<Hal>>::new(config);
        assert_eq!(made.err(), Some(AxError::Unsupported), "{kind:#x}");
        log.assert_mentions(&["emu_type", &format!("{kind:#x}")]);
    }
    Hal::machine().assert_balanced();
}

#[test]
fn identical_memory_that_the_host_does_not_have_is_no_memory() {
    let config =
        test_config(1).with_memory(0x5000_0000, 0x2000, RW, VmMemMappingType::MapIdentical);
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().regions().fail_after(1);
    let made = AxVM::<Hal, X86Like<Hal>>::new(config.clone());
    assert_eq!(made.err(), Some(AxError::NoMemory));
    Hal::machine().assert_balanced();
    Hal::machine().regions().fail_never();
    let vm = AxVM::<Hal, X86Like<Hal>>::new(config).unwrap();
    assert_eq!(vm.memory().translate(0x5000_1008.into()), Some(0x5000_1008.into()));
    assert_eq!(Hal::machine().regions().taken(), [(0x5000_0000, 0x2000)]);
}

#[test]
fn every_byte_of_a_physical_device_is_where_the_configuration_says() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let machine = Hal::machine();
    machine.regions().add_device(0xfe00_0000, 0x4000);
    // Two pages by its tail; two devices in one page; ranges that touch.
    let mut config = pass_through(0x900_0ff0, 0xfe00_0ff0, 0x20)
        .with_pass_through(device(0x900_1800, 0xfe00_1800, 0x10))
        .with_pass_through(device(0x900_2004, 0xfe00_2004, 1));
    config.pass_through_addresses = vec![(0xfe00_3ffc, 4)];
    let vm = booted::<Hal>(config);
    let host = |gpa: usize| vm.memory().translate(gpa.into()).map(HostPhysAddr::as_usize);
    for gpa in [0x900_0ff0, 0x900_1000, 0x900_100f, 0x900_1800, 0x900_180f, 0x900_2004] {
        assert_eq!(host(gpa), Some(gpa - 0x900_0000 + 0xfe00_0000), "{gpa:#x}");
    }
    assert_eq!(host(0xfe00_3ffc), Some(0xfe00_3ffc));
    for gpa in [0x8ff_ffff, 0x900_3000, 0xfe00_0000, 0xfe00_2fff, 0xfe00_4000] {
        assert_eq!(host(gpa), None, "{gpa:#x}");
    }
    machine.program(VM, 0).extend([
        Step::store(0x900_1008, AccessWidth::Dword, 0x1234),
        Step::load(0x900_1008, AccessWidth::Dword, 1),
    ]);
    vm.run_vcpu(0).unwrap();
    assert_eq!(vm.vcpu_state(0).unwrap().regs[1], 0x1234);
    // Registers are no memory: a copy by the host stays away.
    assert_eq!(vm.read_from_guest_of::<u8>(0x900_1008.into()), Err(AxError::InvalidInput));
    drop(vm);
    machine.assert_balanced();
}
