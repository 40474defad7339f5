//! Every allocation, and every call to the backend, of `new` and `reset` is made to fail.

use axerrno::{AxError, AxErrorKind, AxResult};
use axvm::{
    config::{AxVMConfig, PassThroughDeviceConfig, VmMemMappingType},
    mm::MappingFlags,
    vm::{AxVM, VMStatus},
};
use axvm_testkit::{
    ArmLike, Call, Event, MockHal, RAM, RiscvLike, TestVm, VM, X86Like, created, enable_pcpus,
    fail_every_allocation, mock_hal, test_config,
};

const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

fn config() -> AxVMConfig {
    use VmMemMappingType::{MapAlloc, MapIdentical, MapLazy, MapReserved};
    test_config(3)
        .with_memory(0x1f_e000, 0x20_4000, RW, MapAlloc)
        .with_memory(0x1_0000_0000, 0x3000, RW, MapIdentical)
        .with_memory(0x2_0000_0000, 0x3000, RW, MapReserved)
        .with_memory(0x3_0000_0000, 0x3000, RW, MapLazy)
        .with_pass_through(PassThroughDeviceConfig {
            name: "timer".into(),
            base_gpa: 0x900_0ff0,
            base_hpa: 0xfe00_0ff0,
            length: 0x20,
            irq_id: 0,
        })
}

#[test]
fn a_vm_that_cannot_be_created_leaves_nothing_behind_in_any_format() {
    mock_hal!(struct X86 { arena: 32 << 20 });
    mock_hal!(struct Arm { arena: 32 << 20 });
    mock_hal!(struct Riscv { arena: 32 << 20 });
    fn all<H: MockHal, A: axvm::vcpu::AxArchVCpu>() {
        let machine = H::machine();
        let new = || AxVM::<H, A>::new(config());
        let failures = fail_every_allocation(machine, new, drop);
        assert!(failures > 20, "{failures}");
        machine.assert_balanced();
        for n in 1.. {
            machine.regions().fail_after(n);
            let outcome = new();
            machine.regions().fail_never();
            match outcome {
                Ok(_) => break,
                Err(error) => assert_eq!(error, AxError::NoMemory),
            }
            machine.assert_balanced();
        }
    }
    all::<X86, X86Like<X86>>();
    all::<Arm, ArmLike<Arm>>();
    all::<Riscv, RiscvLike<Riscv>>();
}

#[test]
fn a_backend_that_refuses_leaves_nothing_behind() {
    mock_hal!(struct Hal { arena: 32 << 20 });
    let machine = Hal::machine();
    for (call, times) in [
        (Call::Geometry, 1),
        (Call::New, 3),
        (Call::SetEntry, 3),
        (Call::SetRoot, 3),
        (Call::Setup, 3),
    ] {
        for n in 1..=times {
            machine.take_trace();
            machine.fail_nth(call, n, AxErrorKind::Unsupported);
            let outcome = AxVM::<Hal, X86Like<Hal>>::new(config());
            assert_eq!(outcome.err(), Some(AxError::Unsupported), "{call:?} {n}");
            machine.assert_balanced();
            let trace = machine.take_trace();
            let count = |event| trace.iter().filter(|record| record.event == event).count();
            assert_eq!(count(Event::New), count(Event::Drop));
        }
    }
}

/// A VM that was lived in, so that its reset has everything to do.
fn used<H: MockHal>() -> TestVm<H> {
    let vm = created::<H>(config());
    vm.write_to_guest_of(RAM.into(), &0xabu8).unwrap();
    vm.write_to_guest_of(0x3_0000_1000.into(), &0xcdu8).unwrap();
    vm.unmap_region(0x20_1000.into(), 0x1000).unwrap();
    vm.unmap_region(0x1_0000_1000.into(), 0x1000).unwrap();
    vm.unmap_region(0x2_0000_0000.into(), 0x3000).unwrap();
    vm.unmap_region((RAM + 0x1000).into(), 0x1000).unwrap();
    vm.map_region(0x5_0000_0000.into(), 0xfe00_0000.into(), 0x1000, RW).unwrap();
    let mut state = vm.vcpu_state(0).unwrap();
    state.regs[3] = 3;
    vm.set_vcpu_state(0, &state).unwrap();
    vm
}

/// That the VM is as `used` left it.
#[track_caller]
fn untouched<H: MockHal>(vm: &TestVm<H>) {
    assert_eq!(vm.status(), VMStatus::Created);
    assert_eq!(vm.read_from_guest_of::<u8>(RAM.into()), Ok(0xab));
    assert_eq!(vm.read_from_guest_of::<u8>(0x3_0000_1000.into()), Ok(0xcd));
    for gpa in [0x20_1000, 0x1_0000_1000, 0x2_0000_0000, RAM + 0x1000] {
        assert!(!vm.memory().in_region(gpa.into()), "{gpa:#x}");
    }
    assert!(vm.memory().in_region(0x5_0000_0000.into()));
    assert_eq!(vm.vcpu_state(0).unwrap().regs[3], 3);
}

#[test]
fn a_reset_that_finds_no_frame_changes_nothing() {
    mock_hal!(struct Hal { arena: 32 << 20 });
    let machine = Hal::machine();
    machine.regions().add_device(0xfe00_0000, 0x2000);
    let mut vm = Some(used::<Hal>());
    // A failed attempt must leave the VM as it was; a successful one ends the search.
    let slot = std::cell::RefCell::new(&mut vm);
    let attempt = || {
        let slot = slot.borrow();
        let vm = slot.as_ref().unwrap();
        let outcome = vm.reset();
        if outcome.is_err() {
            untouched(vm);
        }
        outcome
    };
    let undo = |()| {
        let mut slot = slot.borrow_mut();
        assert_eq!(slot.as_ref().unwrap().read_from_guest_of::<u8>(RAM.into()), Ok(0));
        drop(slot.take());
        machine.assert_balanced();
        **slot = Some(used::<Hal>());
    };
    let failures = fail_every_allocation(machine, attempt, undo);
    assert!(failures >= 4, "{failures}");
    drop(vm);
    machine.assert_balanced();
}

#[test]
fn a_reset_that_the_backend_or_the_host_refuses_changes_nothing() {
    mock_hal!(struct Hal { arena: 32 << 20 });
    let machine = Hal::machine();
    machine.regions().add_device(0xfe00_0000, 0x2000);
    let vm = used::<Hal>();
    enable_pcpus::<X86Like<Hal>>(1);
    for call in [Call::New, Call::SetEntry, Call::SetRoot, Call::Setup] {
        for n in 1..=3 {
            machine.fail_nth(call, n, AxErrorKind::Unsupported);
            assert_eq!(vm.reset(), Err(AxError::Unsupported), "{call:?} {n}");
            untouched(&vm);
        }
    }
    // Identical memory that is gone altogether must be taken anew, and the host may refuse.
    vm.unmap_region(0x1_0000_0000.into(), 0x1000).unwrap();
    vm.unmap_region(0x1_0000_2000.into(), 0x1000).unwrap();
    machine.regions().fail_after(1);
    assert_eq!(vm.reset(), Err(AxError::NoMemory));
    machine.regions().fail_never();
    untouched(&vm);
    let outcome: AxResult = vm.reset();
    assert_eq!(outcome, Ok(()));
    assert!(vm.memory().in_region(0x1_0000_1000.into()));
    assert!(machine.events(VM, 0).contains(&Event::Setup));
}
