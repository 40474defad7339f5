//! Regions of a configuration: identical, reserved and passed-through memory.

use axerrno::AxErrorKind::NoMemory;
use axvm::config::{
    PassThroughDeviceConfig,
    VmMemMappingType::{MapAlloc, MapIdentical, MapReserved},
};
use axvm_testkit::MockHal;

use crate::*;

for_each_kind! {
    identical_memory_is_taken_zeroed_and_mapped_to_itself,
    identical_memory_is_given_back_once_and_whole,
    identical_memory_that_cannot_be_had_fails_the_vm,
    reserved_memory_stays_the_hosts,
    passed_through_devices_are_where_the_configuration_says,
    passed_through_bytes_are_all_mapped,
    a_dropped_vm_gives_back_its_regions,
    a_region_that_cannot_be_mapped_leaves_nothing_behind,
}

fn identical<H: MockHal, A: Kind>(size: usize) -> AxVMRef<H, A> {
    boot::<H, A>(AxVMConfig::new(1, "identical").with_memory(GPA, size, RWX, MapIdentical))
}

fn identical_memory_is_taken_zeroed_and_mapped_to_itself<H: MockHal, A: Kind>() {
    let vm = identical::<H, A>(2 * M2);
    assert_eq!(H::machine().regions().taken(), [(GPA, 2 * M2)]);
    for at in [GPA, GPA + M2 + 5 * K4 + 8, GPA + 2 * M2 - 8] {
        assert_eq!(probe::<H, A>(vm.memory(), at), Some((at, RWX)));
        assert_eq!(guest_load(&vm, 0, at), 0, "the first and the last page held junk");
        guest_store(&vm, 0, at, at as u64);
        assert_eq!(vm.read_from_guest_of::<u64>(gpa(at)), Ok(at as u64));
    }
}

fn identical_memory_is_given_back_once_and_whole<H: MockHal, A: Kind>() {
    let vm = identical::<H, A>(2 * M2);
    for (at, size) in [(M2 + 3 * K4, K4), (0, M2), (M2 + 4 * K4, M2 - 4 * K4), (M2, 2 * K4)] {
        vm.unmap_region(gpa(GPA + at), size).unwrap();
        assert_eq!(H::machine().regions().taken(), [(GPA, 2 * M2)], "given back in parts");
        assert_eq!(probe::<H, A>(vm.memory(), GPA + at), None);
    }
    vm.memory().protect(gpa(GPA + M2 + 2 * K4), K4, R).unwrap();
    vm.unmap_region(gpa(GPA + M2 + 2 * K4), K4).unwrap();
    H::machine().regions().assert_balanced();
    assert_eq!(vm.memory().table_frames(), root_frames::<A>());
    drop(vm);
    H::machine().assert_balanced();
}

fn identical_memory_that_cannot_be_had_fails_the_vm<H: MockHal, A: Kind>() {
    let config = || {
        AxVMConfig::new(1, "identical")
            .with_memory(GPA + 8 * M2, M2, RW, MapAlloc)
            .with_memory(GPA, M2, RW, MapIdentical)
            .with_memory(GPA + 4 * M2, M2, RW, MapIdentical)
    };
    for n in 1..=2 {
        H::machine().regions().fail_after(n);
        assert_eq!(AxVM::<H, A>::new(config()).map(drop), error(NoMemory));
        H::machine().regions().fail_never();
        H::machine().assert_balanced();
    }
    // Somebody else has it.
    assert!(H::machine().regions().take(hpa(GPA + 4 * M2 + K4), K4));
    assert_eq!(AxVM::<H, A>::new(config()).map(drop), error(NoMemory));
    H::machine().regions().give_back(hpa(GPA + 4 * M2 + K4), K4);
    H::machine().assert_balanced();
    AxVM::<H, A>::new(config()).unwrap();
    H::machine().assert_balanced();
}

fn reserved_memory_stays_the_hosts<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(GPA, M2);
    let va = H::machine().phys_to_virt(hpa(GPA + 8)).as_usize() as *mut u64;
    // SAFETY: device memory of the machine; no guest runs.
    unsafe { va.write(0x99) };
    let config = AxVMConfig::new(1, "reserved").with_memory(GPA, M2, RW, MapReserved);
    let vm = boot::<H, A>(config);
    H::machine().regions().assert_balanced();
    assert_eq!(probe::<H, A>(vm.memory(), GPA), Some((GPA, RW)));
    assert_eq!(guest_load(&vm, 0, GPA + 8), 0x99, "it is not zeroed");
    guest_store(&vm, 0, GPA + 8, 0x9a);
    vm.unmap_region(gpa(GPA), M2).unwrap();
    drop(vm);
    // SAFETY: as above.
    assert_eq!(unsafe { va.read() }, 0x9a);
}

fn device(base_gpa: usize, base_hpa: usize, length: usize) -> PassThroughDeviceConfig {
    PassThroughDeviceConfig { name: "device".into(), base_gpa, base_hpa, length, irq_id: 0 }
}

fn passed_through_devices_are_where_the_configuration_says<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 4 * K4);
    let config = AxVMConfig::new(1, "devices")
        .with_pass_through(device(GPA, HPA, K4))
        .with_pass_through(device(GPA + M2, HPA + K4, 2 * K4))
        .with_pass_through(device(HPA + M2, HPA + 3 * K4, K4));
    let vm = boot::<H, A>(config);
    guest_store(&vm, 0, GPA + 16, 1);
    guest_store(&vm, 0, GPA + M2 + 2 * K4 - 8, 2);
    guest_store(&vm, 0, HPA + M2, 3);
    for (at, value) in [(16, 1), (3 * K4 - 8, 2), (3 * K4, 3)] {
        let va = H::machine().phys_to_virt(hpa(HPA + at)).as_usize() as *const u64;
        // SAFETY: device memory of the machine; the guest is out.
        assert_eq!(unsafe { va.read() }, value);
    }
    assert_eq!(probe::<H, A>(vm.memory(), GPA + M2), Some((HPA + K4, RW)));
    let read = vm.read_from_guest_of::<u64>(gpa(GPA));
    assert_eq!(read, error(axerrno::AxErrorKind::InvalidInput), "it is no RAM");
}

/// A base in the middle of a page does not push the tail out of the mapping.
fn passed_through_bytes_are_all_mapped<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 4 * K4);
    let config = AxVMConfig::new(1, "devices")
        .with_pass_through(device(GPA + 0xf00, HPA + 0xf00, K4))
        .with_pass_through(device(GPA + M2 + 0x10, HPA + 2 * K4 + 0x10, 8));
    let vm = boot::<H, A>(config);
    let watched = [GPA, GPA + 0xf00, GPA + K4 + 0xeff, GPA + 2 * K4, GPA + M2, GPA + M2 + K4];
    let found: Vec<_> =
        probes::<H, A>(vm.memory(), &watched).into_iter().map(|p| p.map(|(pa, _)| pa)).collect();
    let end = Some(HPA + K4 + 0xeff);
    assert_eq!(found, [Some(HPA), Some(HPA + 0xf00), end, None, Some(HPA + 2 * K4), None]);
}

fn a_dropped_vm_gives_back_its_regions<H: MockHal, A: Kind>() {
    for _ in 0..3 {
        let config = AxVMConfig::new(1, "dropped")
            .with_memory(GPA, 2 * M2, RW, MapIdentical)
            .with_memory(GPA + 4 * M2, M2 + K4, RW, MapAlloc);
        let vm = boot::<H, A>(config);
        guest_store(&vm, 0, GPA, 1);
        guest_store(&vm, 0, GPA + 4 * M2, 1);
        vm.unmap_region(gpa(GPA + K4), K4).unwrap();
        drop(vm);
        H::machine().assert_balanced();
    }
}

fn a_region_that_cannot_be_mapped_leaves_nothing_behind<H: MockHal, A: Kind>() {
    // The second region is out of reach where addresses have 40 or 41 bits; the first is undone.
    let config = AxVMConfig::new(1, "flags").with_memory(GPA, M2, RW, MapIdentical).with_memory(
        GPA + (1 << 46),
        M2,
        RW,
        MapAlloc,
    );
    let outcome = AxVM::<H, A>::new(config).map(drop);
    let fits = A::npt_geometry().unwrap().input_bits() > 46;
    assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
    H::machine().assert_balanced();
}
