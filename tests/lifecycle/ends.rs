//! How a VM ends.

use axerrno::AxError;
use axvm::{
    config::{AxVMConfig, PassThroughDeviceConfig, VmMemMappingType},
    irq::{IrqLine, Trigger},
    mm::{HostPhysAddr, MappingFlags},
    vcpu::{AccessWidth, AxVCpuExitReason, GuestFault, VcpuExit},
    vm::{EndReason, VMStatus},
};
use axvm_testkit::{Event, MockHal, RAM, Step, VM, booted, created, mock_hal, test_config};

const BAD_STATE: AxError = AxError::BadState;
const RWX: MappingFlags =
    MappingFlags::READ.union(MappingFlags::WRITE).union(MappingFlags::EXECUTE);

#[test]
fn shutdown_comes_once_and_boot_only_after_a_reset() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    for _ in 0..100 {
        assert_eq!(vm.reset(), Err(BAD_STATE));
        assert_eq!(vm.wait_terminated(), Err(BAD_STATE));
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        assert_eq!(vm.end_reason(), None);
        assert_eq!(vm.shutdown(), Ok(()));
        assert!(vm.shutting_down() && !vm.running());
        assert_eq!(vm.shutdown(), Err(BAD_STATE));
        assert_eq!(vm.boot(), Err(BAD_STATE));
        assert_eq!(vm.wait_terminated(), Ok(()));
        assert_eq!((vm.status(), vm.end_reason()), (VMStatus::Terminated, Some(EndReason::Host)));
        assert_eq!(vm.reset(), Ok(()));
        assert_eq!((vm.status(), vm.end_reason()), (VMStatus::Created, None));
        assert!(!vm.shutting_down());
        assert_eq!(vm.boot(), Ok(()));
    }
}

#[test]
fn a_vm_that_was_not_booted_can_be_shut_down() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = created::<Hal>(test_config(1));
    assert_eq!(vm.shutdown(), Ok(()));
    assert_eq!(vm.status(), VMStatus::Terminated);
    assert_eq!(vm.boot(), Err(BAD_STATE));
    assert_eq!(vm.reset(), Ok(()));
    assert_eq!(vm.boot(), Ok(()));
}

#[test]
fn a_guest_powers_its_machine_off_or_resets_it() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(2));
    let program = Hal::machine().program(VM, 0);
    for (exit, reason, end) in [
        (VcpuExit::SystemDown, AxVCpuExitReason::SystemDown, EndReason::PowerOff),
        (VcpuExit::SystemReset, AxVCpuExitReason::SystemReset, EndReason::Reset),
    ] {
        program.push(Step::Exit(exit));
        assert_eq!(vm.run_vcpu(0), Ok(reason));
        assert_eq!((vm.status(), vm.end_reason()), (VMStatus::Terminated, Some(end)));
        assert_eq!(vm.shutdown(), Err(BAD_STATE));
        assert_eq!(vm.run_vcpu(0), Err(BAD_STATE));
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}

#[test]
fn a_guest_that_powers_off_while_the_host_shuts_down_gets_its_wish() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let shut = vm.clone();
    let program = Hal::machine().program(VM, 0);
    program.push(Step::guest(move |_| {
        let _ = shut.shutdown();
        VcpuExit::SystemDown
    }));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::SystemDown));
    assert_eq!((vm.status(), vm.end_reason()), (VMStatus::Terminated, Some(EndReason::Host)));
    program.clear();
}

#[test]
fn a_refused_entry_fails_the_vm_until_it_is_reset_or_shut_down() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let program = Hal::machine().program(VM, 0);
    let failed = AxVCpuExitReason::FailEntry { hardware_entry_failure_reason: 0x21 };
    for shut_down in [false, true] {
        program.push(Step::Exit(VcpuExit::FailEntry { reason: 0x21 }));
        assert_eq!(vm.run_vcpu(0), Ok(failed));
        assert_eq!((vm.status(), vm.end_reason()), (VMStatus::Failed, Some(EndReason::Failed)));
        assert_eq!(vm.run_vcpu(0), Err(BAD_STATE));
        assert_eq!(vm.boot(), Err(BAD_STATE));
        if shut_down {
            assert_eq!(vm.shutdown(), Ok(()));
            assert_eq!(vm.wait_terminated(), Ok(()));
        }
        assert_eq!(vm.reset(), Ok(()));
        assert_eq!((vm.boot(), vm.end_reason()), (Ok(()), None));
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    }
}

#[test]
fn an_interrupt_line_that_outlives_its_vm_keeps_no_memory_and_does_no_harm() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let line = IrqLine::new(vm.irq_input(), 33, Trigger::Level);
    drop(vm);
    Hal::machine().assert_balanced();
    assert_eq!(line.assert(), Ok(()));
}

fn everything() -> AxVMConfig {
    use VmMemMappingType::{MapAlloc, MapIdentical, MapLazy, MapLazyHuge, MapReserved};
    let device = PassThroughDeviceConfig {
        name: "uart".into(),
        base_gpa: 0x900_0010,
        base_hpa: 0xfe00_0010,
        length: 0x20,
        irq_id: 4,
    };
    test_config(2)
        .with_memory(0x20_0000, 0x20_0000, RWX, MapAlloc)
        .with_memory(0x40_0000, 0x3000, RWX, MapLazy)
        .with_memory(0x60_0000, 0x40_0000, RWX, MapLazyHuge)
        .with_memory(0x100_0000, 0x4000, RWX, MapIdentical)
        .with_memory(0x110_0000, 0x2000, RWX, MapReserved)
        .with_pass_through(device)
}

#[test]
fn a_dropped_vm_gives_back_every_frame_and_region() {
    mock_hal!(struct Hal { arena: 32 << 20 });
    let machine = Hal::machine();
    machine.regions().add_device(0xfe00_0000, 0x1000);
    machine.regions().add_device(0x110_0000, 0x2000);
    drop(created::<Hal>(everything()));
    machine.assert_balanced();

    // The same, lived in.
    let vm = booted::<Hal>(everything());
    assert_eq!(machine.regions().taken(), [(0x100_0000, 0x4000)]);
    let program = machine.program(VM, 0);
    for gpa in [0x20_0000, 0x40_1000, 0x60_0000, 0x7f_f000, 0x100_3000, 0x110_0000, 0x900_0010] {
        program.push(Step::store(gpa, AccessWidth::Dword, 1));
    }
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert!(!machine.events(VM, 0).contains(&Event::FaultTaken(GuestFault::Bus)));
    vm.unmap_region(0x20_1000.into(), 0x1000).unwrap();
    vm.unmap_region(0x60_5000.into(), 0x1000).unwrap();
    vm.unmap_region(0x100_1000.into(), 0x1000).unwrap();
    let host = HostPhysAddr::from_usize(0x110_0000);
    vm.map_region(0x20_1000.into(), host, 0x1000, RWX).unwrap();
    drop(vm);
    machine.assert_balanced();
    machine.arena().check_poison();
}

#[test]
fn a_vcpu_or_a_line_that_outlives_its_vm_does_no_harm() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let vm = booted::<Hal>(test_config(1));
    let (vcpu, input) = (vm.vcpu(0).unwrap(), vm.irq_input());
    Hal::machine().program(VM, 0).push(Step::store(RAM, AccessWidth::Byte, 1));
    vm.run_vcpu(0).unwrap();
    drop(vm);
    assert_eq!(input.pulse(3), Ok(()));
    drop(input);
    Hal::machine().assert_balanced();
    assert_eq!(vcpu.id(), 0);
}
