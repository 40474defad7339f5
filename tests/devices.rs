//! Devices of a VM: where they may be, and their coming and going while the guest runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use axerrno::AxError;
use axvm::{
    device::{PortRange, SysRegRange},
    mm::MappingFlags,
    vcpu::{AccessWidth, AxVCpuExitReason, Port, SysRegAddr, VcpuEvent, VcpuExit},
};
use axvm_testkit::{
    MockHal, RAM, RAM_SIZE, Step, TestDevice, VM, booted, created, gpa_range, mock_hal, on_pcpu,
    set_pcpu, test_config,
};

const AT: usize = 0x900_0000;

#[test]
fn a_device_overlaps_neither_a_device_nor_memory() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    let add = |start, size| vm.add_mmio_device(TestDevice::new(gpa_range(start, size), 1));
    assert_eq!(add(AT, 0x100), Ok(()));
    let exists = Err(AxError::AlreadyExists);
    for (start, size) in [(AT, 1), (AT + 0xff, 1), (AT - 8, 9), (AT - 8, 0x200), (AT + 8, 0x1000)] {
        assert_eq!(add(start, size), exists, "{start:#x}+{size:#x}");
    }
    assert_eq!((add(AT - 8, 8), add(AT + 0x100, 8)), (Ok(()), Ok(())));
    for (start, size) in [(RAM, 1), (RAM + RAM_SIZE - 1, 8), (RAM - 8, 9), (0, 1 << 20)] {
        assert_eq!(add(start, size), exists, "{start:#x}+{size:#x}");
    }
    assert_eq!((add(RAM - 8, 8), add(RAM + RAM_SIZE, 8)), (Ok(()), Ok(())));
    // Nor memory a device, that comes later.
    let host = axvm::mm::HostPhysAddr::from_usize(0xfe00_0000);
    let map = |gpa: usize, size| vm.map_region(gpa.into(), host, size, MappingFlags::READ);
    assert_eq!((map(AT, 0x1000), map(AT - 0x1000, 0x1000)), (exists, exists));
    assert_eq!(map(RAM + RAM_SIZE, 0x1000), exists);
    assert_eq!(map(AT + 0x1000, 0x1000), Ok(()));
    assert_eq!(add(AT + 0x1ff8, 8), exists);
    let devices = vm.get_devices();
    let ports = |first, last| PortRange::new(Port(first), Port(last)).unwrap();
    assert_eq!(devices.add_port_dev(TestDevice::new(ports(0x60, 0x64), 1)), Ok(()));
    assert_eq!(devices.add_port_dev(TestDevice::new(ports(0x64, 0x64), 1)), exists);
    let regs = |first, last| SysRegRange::new(SysRegAddr(first), SysRegAddr(last)).unwrap();
    assert_eq!(devices.add_sys_reg_dev(TestDevice::new(regs(5, 5), 1)), Ok(()));
    assert_eq!(devices.add_sys_reg_dev(TestDevice::new(regs(0, usize::MAX - 1), 1)), exists);
}

#[test]
fn of_many_devices_with_holes_each_gets_its_own_accesses() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let at = |index: usize| AT + index * 0x40 + (index % 3) * 8;
    let devices: Vec<_> = (0..64)
        .map(|index| TestDevice::new(gpa_range(at(index), 0x20), 0x1000 + index as u64))
        .collect();
    for index in 0..64 {
        // Not in order.
        vm.add_mmio_device(devices[index * 37 % 64].clone()).unwrap();
    }
    let program = Hal::machine().program(VM, 0);
    for (index, device) in devices.iter().enumerate() {
        let hole = at(index) + 0x20;
        for (gpa, want) in [(at(index), 0x1000 + index), (at(index) + 0x18, 0x1000 + index)] {
            program.push(Step::load(gpa, AccessWidth::Word, 1));
            vm.run_vcpu(0).unwrap();
            assert_eq!(vm.vcpu_state(0).unwrap().regs[1], want as u64, "{gpa:#x}");
        }
        program.push(Step::load(hole, AccessWidth::Word, 1));
        vm.run_vcpu(0).unwrap();
        assert_eq!(vm.vcpu_state(0).unwrap().regs[1], 0xffff, "{hole:#x}");
        assert_eq!(device.take().len(), 2);
    }
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 64);
}

#[test]
fn a_removal_returns_after_the_last_handler() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let device = TestDevice::new(gpa_range(AT, 8), 1);
    let (inside, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (entered, leave) = (inside.clone(), go.clone());
    device.on_touch(move |_| {
        entered.store(true, SeqCst);
        Hal::machine().wait_until("the test", || leave.load(SeqCst));
        entered.store(false, SeqCst);
    });
    vm.add_mmio_device(device).unwrap();
    Hal::machine().program(VM, 0).push(Step::load(AT, AccessWidth::Byte, 1));
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| on_pcpu(1, || vm.run_vcpu(0)));
        Hal::machine().wait_until("the handler", || inside.load(SeqCst));
        let removed = Arc::new(AtomicBool::new(false));
        let (done, target) = (removed.clone(), vm.clone());
        let remover = scope.spawn(move || {
            target.get_devices().remove_mmio_dev(AT.into()).unwrap();
            done.store(true, SeqCst);
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!removed.load(SeqCst), "the handler still runs");
        go.store(true, SeqCst);
        remover.join().unwrap();
        assert!(!inside.load(SeqCst));
        assert_eq!(runner.join().unwrap(), Ok(AxVCpuExitReason::Halt));
    });
}

#[test]
fn devices_come_and_go_while_vcpus_use_them() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let machine = Hal::machine();
    machine.set_tracing(false);
    let vm = booted::<Hal>(test_config(2));
    let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: RAM.into(), arg: 0 };
    machine.program(VM, 0).push(Step::Exit(up));
    vm.run_vcpu(0).unwrap();
    let done = AtomicBool::new(false);
    let served = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for vcpu in 0..2 {
            let (vm, done) = (&vm, &done);
            scope.spawn(move || {
                set_pcpu(vcpu);
                while !done.load(SeqCst) {
                    let program = machine.program(VM, vcpu);
                    program.extend((0..20).map(|_| Step::load(AT, AccessWidth::Word, 1)));
                    assert_eq!(vm.run_vcpu(vcpu), Ok(AxVCpuExitReason::Halt));
                    let value = vm.vcpu_state(vcpu).unwrap().regs[1];
                    assert!(value == 0xffff || value == 0x77, "{value:#x}");
                }
            });
        }
        for _ in 0..200 {
            let device = TestDevice::new(gpa_range(AT, 8), 0x77);
            // Only while the device is there may its handler run.
            let there = Arc::new(AtomicBool::new(true));
            let (look, count) = (there.clone(), served.clone());
            device.on_touch(move |_| {
                assert!(look.load(SeqCst), "a handler runs after the removal");
                count.fetch_add(1, SeqCst);
            });
            vm.add_mmio_device(device.clone()).unwrap();
            let before = served.load(SeqCst);
            machine.wait_until("an access", || served.load(SeqCst) > before);
            vm.get_devices().remove_mmio_dev(AT.into()).unwrap();
            there.store(false, SeqCst);
            assert!(Arc::strong_count(&device) == 1, "the table still has it");
        }
        done.store(true, SeqCst);
    });
}
