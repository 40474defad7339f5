//! Accesses to nothing, by both policies; the log; and statistics.

use axvm::{
    config::{UnclaimedPolicy, VmMemMappingType},
    mm::MappingFlags,
    vcpu::{AccessWidth, ExitKind, GuestFault, VcpuEvent, VcpuExit},
};
use axvm_testkit::{
    Event, LogCapture, MockHal, RAM, Step, TestDevice, VM, gpa_range, mock_hal, test_config,
};

use crate::support::{play, preset, reg, start};

mock_hal!(struct Hal { arena: 4 << 20 });

const NOWHERE: usize = 0x7000_0000;

fn faults(fault: GuestFault) -> usize {
    let events = Hal::machine().events(VM, 0);
    events.into_iter().filter(|event| *event == Event::FaultTaken(fault)).count()
}

#[test]
fn by_default_a_read_of_nothing_gives_ones_and_a_write_is_ignored() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    for gpa in [NOWHERE, 0, 0x8000, 0x7fff_ffff_efff & !7] {
        play(&vm, [preset(1, 0), Step::load(gpa, AccessWidth::Dword, 1)]);
        assert_eq!(reg(&vm, 1), 0xffff_ffff, "{gpa:#x}");
        play(&vm, [Step::store(gpa, AccessWidth::Byte, 1)]);
    }
    assert_eq!((vm.events(VcpuEvent::Unclaimed), vm.events(VcpuEvent::FaultInjected)), (8, 0));
    // What has no register to answer in is a fault, by any policy.
    play(&vm, [Step::Fetch { gpa: NOWHERE }, Step::Walk { gpa: NOWHERE }]);
    assert_eq!(faults(GuestFault::Bus), 2);
}

#[test]
fn by_the_other_policy_it_is_a_bus_fault() {
    let (vm, _turn) = start::<Hal>(test_config(1).with_unclaimed(UnclaimedPolicy::Fault));
    play(
        &vm,
        [
            preset(1, 5),
            Step::load(NOWHERE, AccessWidth::Dword, 1),
            Step::store(NOWHERE, AccessWidth::Dword, 1),
        ],
    );
    assert_eq!(reg(&vm, 1), 5);
    assert_eq!(faults(GuestFault::Bus), 2);
    assert_eq!((vm.events(VcpuEvent::Unclaimed), vm.events(VcpuEvent::FaultInjected)), (2, 2));
    let device = TestDevice::new(gpa_range(NOWHERE, 8), 1);
    device.fail(Some(axerrno::AxErrorKind::Io.into()));
    vm.add_mmio_device(device).unwrap();
    play(&vm, [Step::load(NOWHERE, AccessWidth::Dword, 1)]);
    assert_eq!((faults(GuestFault::Bus), vm.events(VcpuEvent::DeviceError)), (3, 1));
}

#[test]
fn a_write_to_read_only_memory_changes_nothing_and_is_counted() {
    let rom = 0x2_0000;
    let config =
        test_config(1).with_memory(rom, 0x1000, MappingFlags::READ, VmMemMappingType::MapAlloc);
    let (vm, _turn) = start::<Hal>(config);
    play(
        &vm,
        [Step::store(rom, AccessWidth::Qword, u64::MAX), Step::load(rom, AccessWidth::Qword, 1)],
    );
    assert_eq!(reg(&vm, 1), 0);
    play(&vm, [Step::Fetch { gpa: rom }]);
    assert_eq!((vm.events(VcpuEvent::PermissionFault), vm.events(VcpuEvent::Unclaimed)), (2, 2));
    assert_eq!(faults(GuestFault::Bus), 1);
}

#[test]
fn a_guest_cannot_flood_the_log() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = TestDevice::new(gpa_range(NOWHERE, 8), 1);
    device.fail(Some(axerrno::AxErrorKind::Io.into()));
    vm.add_mmio_device(device).unwrap();
    Hal::machine().set_tracing(false);
    let log = LogCapture::start();
    play(&vm, (0..1000).map(|_| Step::load(NOWHERE + 0x1000, AccessWidth::Byte, 1)));
    // At 1, 2, 4, … 512.
    assert_eq!(log.count(&["VM 1 vCPU 0", "0x70001000"]), 10);
    play(&vm, (0..1000).map(|_| Step::load(NOWHERE, AccessWidth::Byte, 1)));
    assert_eq!(log.count(&["VM 1 vCPU 0", "device error"]), 10);
    assert_eq!(log.records().len(), 20, "{:#?}", log.records());
    Hal::machine().set_tracing(true);
    assert_eq!((vm.events(VcpuEvent::Unclaimed), vm.events(VcpuEvent::DeviceError)), (1000, 1000));
}

#[test]
fn every_exit_and_event_is_counted_once_where_it_belongs() {
    let lazy = 0x10_0000;
    let rw = MappingFlags::READ | MappingFlags::WRITE;
    let config = test_config(2).with_memory(lazy, 0x2000, rw, VmMemMappingType::MapLazy);
    let (vm, _turn) = start::<Hal>(config);
    let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: RAM.into(), arg: 0 };
    Hal::machine().program(VM, 0).push(Step::Exit(up));
    vm.run_vcpu(0).unwrap();
    Hal::machine().program(VM, 1).extend([
        Step::store(lazy, AccessWidth::Byte, 1),
        Step::Exit(VcpuExit::Nothing),
        Step::store(lazy + 8, AccessWidth::Byte, 1),
    ]);
    vm.run_vcpu(1).unwrap();
    play(
        &vm,
        [
            Step::load(lazy + 0x1000, AccessWidth::Byte, 1),
            Step::load(NOWHERE, AccessWidth::Byte, 1),
            Step::load(NOWHERE, AccessWidth::Byte, 1),
        ],
    );
    vm.inject_interrupt_to_vcpu(axvm::vcpu::CpuMask::first(2), 40).unwrap();
    let (first, second) = (vm.vcpu(0).unwrap(), vm.vcpu(1).unwrap());
    let counted = |vcpu: &axvm::vcpu::AxVCpuRef<_>| {
        let exits = ExitKind::ALL.map(|kind| (kind, vcpu.stats().exits(kind)));
        let events = VcpuEvent::ALL.map(|event| (event, vcpu.stats().events(event)));
        (
            exits.into_iter().filter(|(_, n)| *n != 0).collect::<Vec<_>>(),
            events.into_iter().filter(|(_, n)| *n != 0).collect::<Vec<_>>(),
        )
    };
    use VcpuEvent::{InterruptInjected, PagePopulated, Unclaimed};
    let exits = vec![(ExitKind::MemFault, 3), (ExitKind::Halt, 1), (ExitKind::CpuUp, 1)];
    let events = vec![(PagePopulated, 1), (Unclaimed, 2), (InterruptInjected, 1)];
    assert_eq!(counted(&first), (exits, events));
    let exits = vec![(ExitKind::MemFault, 1), (ExitKind::Halt, 1), (ExitKind::Nothing, 1)];
    let events = vec![(PagePopulated, 1), (InterruptInjected, 1)];
    assert_eq!(counted(&second), (exits, events));
    assert_eq!((first.stats().total_exits(), second.stats().total_exits()), (5, 3));
    assert_eq!((vm.exits(ExitKind::MemFault), vm.events(PagePopulated)), (4, 2));
    assert_eq!(vm.events(InterruptInjected), 2);
}

#[test]
fn a_page_that_is_mapped_by_then_is_a_spurious_fault_and_the_guest_goes_on() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let fault = axvm::vcpu::MemFault {
        gpa: RAM.into(),
        access: axvm::vcpu::Access::Write,
        walk: false,
        insn: None,
    };
    play(&vm, [Step::Exit(VcpuExit::MemFault(fault)), preset(3, 3)]);
    assert_eq!((reg(&vm, 3), vm.events(VcpuEvent::SpuriousFault)), (3, 1));
}

#[test]
fn a_guest_that_needs_a_page_when_there_is_none_waits_for_it() {
    let lazy = 0x10_0000;
    let rw = MappingFlags::READ | MappingFlags::WRITE;
    let config = test_config(1).with_memory(lazy, 0x2000, rw, VmMemMappingType::MapLazy);
    let (vm, _turn) = start::<Hal>(config);
    Hal::machine().program(VM, 0).push(Step::store(lazy, AccessWidth::Byte, 7));
    Hal::machine().arena().fail_after(1);
    for _ in 0..3 {
        assert_eq!(vm.run_vcpu(0), Err(axerrno::AxError::NoMemory));
    }
    Hal::machine().arena().fail_never();
    assert_eq!(vm.run_vcpu(0), crate::support::HALT);
    assert_eq!(vm.read_from_guest_of::<u8>(lazy.into()), Ok(7));
}
