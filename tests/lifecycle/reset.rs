//! A reset makes everything as at creation.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axerrno::{AxError, AxErrorKind};
use axvm::{
    config::VmMemMappingType,
    mm::{HostPhysAddr, MappingFlags},
    vcpu::{AccessWidth, AxVCpuExitReason, Port, VcpuExit},
    vm::VMStatus,
};
use axvm_testkit::{
    Event, MockHal, RAM, RAM_SIZE, Step, TestDevice, TestVm, VM, booted, created, gpa_range,
    mock_hal, test_config,
};

const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

fn again<H: MockHal>(vm: &TestVm<H>) {
    let _ = vm.shutdown();
    assert_eq!(vm.reset(), Ok(()));
    assert_eq!(vm.status(), VMStatus::Created);
}

#[test]
fn memory_is_zero_and_loaded_again() {
    mock_hal!(struct Hal { arena: 16 << 20 });
    let config = test_config(1)
        .with_memory(0x10_0000, 0x2000, RW, VmMemMappingType::MapLazy)
        .with_memory(0x20_0000, 0x20_0000, RW, VmMemMappingType::MapLazyHuge)
        .with_memory(0x50_0000, 0x2000, RW, VmMemMappingType::MapIdentical);
    let vm = created::<Hal>(config);
    let loads = Arc::new(AtomicUsize::new(0));
    let count = loads.clone();
    vm.load_images(move |vm| {
        count.fetch_add(1, SeqCst);
        vm.write_to_guest_of((RAM + 8).into(), &0x1234_5678u32)
    })
    .unwrap();
    assert_eq!(loads.load(SeqCst), 1);
    let places = [RAM, RAM + RAM_SIZE - 8, 0x10_1000, 0x20_0008, 0x3f_fff8, 0x50_0000];
    for round in 1..4 {
        for gpa in places {
            assert_eq!(vm.read_from_guest_of::<u64>(gpa.into()), Ok(0), "{gpa:#x}, round {round}");
        }
        assert_eq!(vm.read_from_guest_of::<u32>((RAM + 8).into()), Ok(0x1234_5678));
        vm.boot().unwrap();
        let program = Hal::machine().program(VM, 0);
        program.extend(places.map(|gpa| Step::store(gpa, AccessWidth::Qword, u64::MAX)));
        program.push(Step::store(RAM + 8, AccessWidth::Dword, 0));
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        again(&vm);
        assert_eq!(loads.load(SeqCst), round + 1);
    }
    drop(vm);
    Hal::machine().assert_balanced();
}

#[test]
fn memory_that_the_host_set_aside_keeps_its_contents() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().regions().add_device(0x60_0000, 0x1000);
    let config = test_config(1).with_memory(0x60_0000, 0x1000, RW, VmMemMappingType::MapReserved);
    let vm = created::<Hal>(config);
    vm.write_to_guest_of(0x60_0010.into(), &7u8).unwrap();
    again(&vm);
    assert_eq!(vm.read_from_guest_of::<u8>(0x60_0010.into()), Ok(7));
}

#[test]
fn vcpus_begin_anew() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let mut config = test_config(2);
    config.image.dtb_load_gpa = Some((RAM + 0x1000).into());
    let vm = created::<Hal>(config);
    let fresh = vm.vcpu_state(0).unwrap();
    assert_eq!((fresh.pc, fresh.regs[0]), (RAM as u64, RAM as u64 + 0x1000));
    vm.boot().unwrap();
    let program = Hal::machine().program(VM, 0);
    let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: 0x5000.into(), arg: 1 };
    program.push(Step::Exit(up));
    program.push(Step::call(|guest| {
        guest.regs.fill(9);
        *guest.deadline = Some(1 << 40);
    }));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { .. })));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(vm.run_vcpu(1), Ok(AxVCpuExitReason::Halt));
    assert!(vm.vcpu(1).unwrap().is_on());
    assert_eq!(vm.next_deadline(0), Some(1 << 40));
    vm.inject_interrupt_to_vcpu(0, 40).unwrap();
    vm.inject_interrupt_to_vcpu(1, 41).unwrap();
    again(&vm);
    assert_eq!(vm.vcpu_state(0).unwrap(), fresh);
    assert!(vm.vcpu(0).unwrap().is_on() && !vm.vcpu(1).unwrap().is_on());
    assert!(!vm.has_work(0));
    assert_eq!(vm.next_deadline(0), None);
    vm.boot().unwrap();
    Hal::machine().take_trace();
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(vm.run_vcpu(1), Err(AxError::BadState));
    assert!(!Hal::machine().events(VM, 0).contains(&Event::IrqTaken(40)));
}

#[test]
fn an_answer_that_was_awaited_is_not_any_more() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    for answered in [false, true] {
        Hal::machine().program(VM, 0).push(Step::Exit(VcpuExit::Hypercall { nr: 1, args: [0; 6] }));
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { .. })));
        if answered {
            vm.complete(0, 3).unwrap();
        }
        again(&vm);
        assert_eq!(vm.complete(0, 3), Err(AxError::BadState));
        vm.boot().unwrap();
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    }
}

#[test]
fn devices_of_every_kind_are_reset_and_stay() {
    use axvm::{
        device::{PortRange, SysRegRange},
        vcpu::SysRegAddr,
    };
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let mmio = TestDevice::new(gpa_range(0x900_0000, 0x100), 0x51);
    let port = TestDevice::new(PortRange::new(Port(0x3f8), Port(0x3ff)).unwrap(), 1);
    let reg = TestDevice::new(SysRegRange::new(SysRegAddr(7), SysRegAddr(7)).unwrap(), 1);
    vm.add_mmio_device(mmio.clone()).unwrap();
    vm.get_devices().add_port_dev(port.clone()).unwrap();
    vm.get_devices().add_sys_reg_dev(reg.clone()).unwrap();
    again(&vm);
    assert_eq!((mmio.resets(), port.resets(), reg.resets()), (1, 1, 1));
    vm.boot().unwrap();
    Hal::machine().program(VM, 0).push(Step::load(0x900_0010, AccessWidth::Byte, 2));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(vm.vcpu_state(0).unwrap().regs[2], 0x51);
}

#[test]
fn what_the_host_mapped_goes_and_what_it_unmapped_or_protected_comes_back() {
    mock_hal!(struct Hal { arena: 16 << 20 });
    let machine = Hal::machine();
    machine.regions().add_device(0x2_0000_0000, 0x10_0000);
    let config = test_config(1)
        .with_memory(0x10_0000, 0x4000, RW, VmMemMappingType::MapLazy)
        .with_memory(0x20_0000, 0x20_0000, RW, VmMemMappingType::MapAlloc)
        .with_memory(0x50_0000, 0x4000, RW, VmMemMappingType::MapIdentical);
    let vm = created::<Hal>(config);
    let frames = machine.arena().allocated();
    let host = HostPhysAddr::from_usize(0x2_0000_0000);
    for round in 0..10 {
        vm.map_region(0x80_0000.into(), host, 0x3000, RW).unwrap();
        vm.unmap_region(RAM.into(), RAM_SIZE).unwrap();
        vm.unmap_region(0x10_1000.into(), 0x1000).unwrap();
        vm.unmap_region(0x20_0000.into(), 0x1000).unwrap();
        // Part of it, or whole.
        vm.unmap_region(0x50_1000.into(), if round % 2 == 0 { 0x1000 } else { 0x3000 }).unwrap();
        if round % 3 == 0 {
            vm.unmap_region(0x50_0000.into(), 0x1000).unwrap();
        }
        vm.memory().protect(0x10_2000.into(), 0x1000, MappingFlags::READ).unwrap();
        again(&vm);
        let inside =
            [RAM, RAM + RAM_SIZE - 1, 0x10_1000, 0x10_2000, 0x20_0000, 0x50_0000, 0x50_1000];
        for gpa in inside {
            assert_eq!(vm.write_to_guest_of(gpa.into(), &1u8), Ok(()), "{gpa:#x}");
        }
        let gone = vm.read_from_guest_of::<u8>(0x80_0000.into());
        assert_eq!(gone, Err(AxError::InvalidInput));
        assert_eq!(vm.memory().translate(0x50_1000.into()), Some(HostPhysAddr::from(0x50_1000)));
        // Taken again page by page where the host had given it all back.
        let taken = machine.regions().taken();
        assert_eq!(taken.iter().map(|&(_, size)| size).sum::<usize>(), 0x4000);
        assert_eq!(taken[0].0, 0x50_0000);
        again(&vm);
        // Lazy memory is not there yet, and the large leaf may be small pages now.
        assert!(machine.arena().allocated() <= frames + 2, "round {round}");
    }
    drop(vm);
    machine.assert_balanced();
}

#[test]
fn host_memory_in_the_place_of_configured_memory_forbids_the_reset_and_stays() {
    mock_hal!(struct Hal { arena: 16 << 20 });
    Hal::machine().regions().add_device(0x2_0000_0000, 0x1000);
    let vm = created::<Hal>(test_config(1));
    vm.write_to_guest_of((RAM + 0x1000).into(), &7u8).unwrap();
    vm.unmap_region(RAM.into(), 0x1000).unwrap();
    let host = HostPhysAddr::from_usize(0x2_0000_0000);
    vm.map_region(RAM.into(), host, 0x1000, RW).unwrap();
    assert_eq!(vm.reset(), Err(AxError::AlreadyExists));
    assert_eq!(vm.status(), VMStatus::Created);
    assert_eq!(vm.memory().translate(RAM.into()), Some(host));
    assert_eq!(vm.read_from_guest_of::<u8>((RAM + 0x1000).into()), Ok(7));
    vm.unmap_region(RAM.into(), 0x1000).unwrap();
    again(&vm);
    assert_eq!(vm.read_from_guest_of::<u8>((RAM + 0x1000).into()), Ok(0));
}

#[test]
fn a_device_in_the_place_of_memory_forbids_the_reset() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    vm.unmap_region(RAM.into(), 0x1000).unwrap();
    vm.write_to_guest_of((RAM + 0x1000).into(), &5u8).unwrap();
    vm.add_mmio_device(TestDevice::new(gpa_range(RAM, 0x100), 1)).unwrap();
    assert_eq!(vm.reset(), Err(AxErrorKind::AlreadyExists.into()));
    assert_eq!(vm.status(), VMStatus::Created);
    assert_eq!(vm.read_from_guest_of::<u8>((RAM + 0x1000).into()), Ok(5));
    vm.get_devices().remove_mmio_dev(RAM.into()).unwrap();
    assert_eq!(vm.reset(), Ok(()));
    assert_eq!(vm.read_from_guest_of::<u8>(RAM.into()), Ok(0));
}

#[test]
fn channels_are_forgotten() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let window = axvm::config::EmulatedDeviceConfig {
        name: "ivc".into(),
        base_gpa: 0x700_0000,
        length: 0x2000,
        emu_type: 0xa,
        ..Default::default()
    };
    let vm = created::<Hal>(test_config(1).with_emu_device(window));
    for _ in 0..3 {
        assert_eq!(vm.alloc_ivc_channel(0x1001), Ok((0x700_0000.into(), 0x2000)));
        assert_eq!(vm.alloc_ivc_channel(1), Err(AxError::NoMemory));
        again(&vm);
    }
}

#[test]
fn a_loader_that_fails_leaves_the_vm_failed_and_another_reset_helps() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    let outcome = Arc::new(Mutex::new(Ok(())));
    let loader = outcome.clone();
    vm.load_images(move |_| *loader.lock().unwrap()).unwrap();
    vm.boot().unwrap();
    assert_eq!(vm.load_images(|_| Ok(())), Err(AxError::BadState));
    vm.shutdown().unwrap();
    *outcome.lock().unwrap() = Err(AxErrorKind::Io.into());
    for _ in 0..2 {
        assert_eq!(vm.reset(), Err(AxErrorKind::Io.into()));
        assert_eq!(vm.status(), VMStatus::Failed);
        assert_eq!(vm.boot(), Err(AxError::BadState));
        assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
    }
    *outcome.lock().unwrap() = Ok(());
    assert_eq!(vm.reset(), Ok(()));
    assert_eq!((vm.boot(), vm.end_reason()), (Ok(()), None));
}

#[test]
fn a_loader_that_fails_at_first_is_not_kept() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    assert_eq!(vm.load_images(|_| Err(AxError::NoMemory)), Err(AxError::NoMemory));
    assert_eq!(vm.status(), VMStatus::Created);
    assert_eq!(vm.reset(), Ok(()));
}
