//! Permissions hold for the guest and for the host's copies; what a format cannot say is refused.

use axerrno::AxErrorKind::InvalidInput;
use axvm::{
    config::{UnclaimedPolicy, VmMemMappingType::MapAlloc},
    mm::FaultOutcome,
    vcpu::{AccessWidth, GuestFault, VcpuEvent},
};
use axvm_testkit::{Event, HwFormat, MockHal, Step};

use crate::*;

for_each_kind! {
    permissions_are_enforced_as_the_format_can,
    what_the_format_cannot_say_is_refused,
    a_guests_store_to_read_only_memory_does_not_happen,
    a_denied_access_faults_where_the_policy_says_so,
    permissions_taken_away_are_gone_for_a_vcpu_that_used_them,
    roots_are_aligned_to_their_size,
}

fn supported<A: Kind>() -> Vec<MappingFlags> {
    // Execute-only is for EPT and the G-stage; the crate wants stage 2 readable.
    let only_x = A::Npt::HW != HwFormat::Stage2;
    [R, RX, RW, RWX].into_iter().chain(only_x.then_some(X)).collect()
}

fn permissions_are_enforced_as_the_format_can<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, M2);
    let vm = boot::<H, A>(AxVMConfig::new(1, "permissions"));
    for (index, flags) in supported::<A>().into_iter().enumerate() {
        let at = GPA + index * K4;
        let backing = H::machine().phys_to_virt(hpa(HPA + index * K4)).as_usize() as *mut u64;
        // SAFETY: the device memory was just added, and no guest runs.
        unsafe { backing.write(0x1234) };
        vm.map_region(gpa(at), hpa(HPA + index * K4), K4, flags).unwrap();
        assert_eq!(probe::<H, A>(vm.memory(), at), Some((HPA + index * K4, flags)));
        let readable = flags.contains(R);
        assert_eq!(guest_load(&vm, 0, at), if readable { 0x1234 } else { u64::MAX }, "{flags:?}");
        guest_store(&vm, 0, at, 0x5678);
        // SAFETY: the guest is out.
        let now = unsafe { backing.read() };
        assert_eq!(now, if flags.contains(W) { 0x5678 } else { 0x1234 }, "{flags:?}");
        let faults = vm.events(VcpuEvent::FaultInjected);
        steps(&vm, 0, [Step::Fetch { gpa: at }]);
        let refused = vm.events(VcpuEvent::FaultInjected) - faults;
        assert_eq!(refused, u64::from(!flags.contains(X)), "{flags:?}");
        // The host's copies, too.
        assert_eq!(vm.memory().read(gpa(at), &mut [0; 8]).is_ok(), readable, "{flags:?}");
        assert_eq!(vm.memory().write(gpa(at), &[9; 8]).is_ok(), flags.contains(W), "{flags:?}");
        assert_eq!(vm.memory().load::<u32>(gpa(at)).is_ok(), readable);
        assert_eq!(vm.memory().store::<u32>(gpa(at), 1).is_ok(), flags.contains(W));
        let exchanged = vm.memory().compare_exchange::<u32>(gpa(at), 1, 2);
        assert_eq!(exchanged.is_ok(), flags.contains(RW), "{flags:?}");
    }
}

fn what_the_format_cannot_say_is_refused<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA + M2), K4, RW, true).unwrap();
    let before = H::machine().arena().allocated();
    let good = supported::<A>();
    for flags in (0..8).map(MappingFlags::from_bits_truncate) {
        for flags in [flags, flags | DEVICE, flags | MappingFlags::USER] {
            if good.contains(&(flags & RWX)) {
                continue;
            }
            let at = gpa(GPA);
            assert_eq!(space.map_linear(at, hpa(HPA), K4, flags), error(InvalidInput));
            assert_eq!(space.map_alloc(at, K4, flags, true), error(InvalidInput), "{flags:?}");
            assert_eq!(space.map_alloc(at, K4, flags, false), error(InvalidInput));
            assert_eq!(space.protect(gpa(GPA + M2), K4, flags), error(InvalidInput));
        }
    }
    assert!(!good.contains(&W), "write-only");
    assert_eq!(H::machine().arena().allocated(), before);
    assert!(!space.in_region(gpa(GPA)));
    assert_eq!(space.write(gpa(GPA + M2), &[1]), Ok(()));
}

fn a_guests_store_to_read_only_memory_does_not_happen<H: MockHal, A: Kind>() {
    let config = AxVMConfig::new(1, "rom").with_memory(GPA, 2 * M2, R, MapAlloc);
    let vm = boot::<H, A>(config);
    for at in [GPA + 8, GPA + M2 - 8, GPA + M2 + K4] {
        guest_store(&vm, 0, at, u64::MAX);
        assert_eq!(guest_load(&vm, 0, at), 0);
        assert_eq!(vm.read_from_guest_of::<u64>(gpa(at)), Ok(0));
        assert_eq!(vm.write_to_guest_of(gpa(at), &1u64), error(InvalidInput));
    }
    assert_eq!(vm.events(VcpuEvent::PermissionFault), 3);
    assert_eq!(vm.memory().fault(gpa(GPA), W), Ok(FaultOutcome::Denied));
    assert_eq!(vm.memory().fault(gpa(GPA), R), Ok(FaultOutcome::Spurious));
    assert!(!vm.memory().handle_page_fault(gpa(GPA), W));
    assert!(vm.memory().handle_page_fault(gpa(GPA), R));
}

fn a_denied_access_faults_where_the_policy_says_so<H: MockHal, A: Kind>() {
    let config = AxVMConfig::new(1, "rom")
        .with_memory(GPA, M2, R, MapAlloc)
        .with_unclaimed(UnclaimedPolicy::Fault);
    let vm = boot::<H, A>(config);
    steps(
        &vm,
        0,
        [
            Step::store(GPA, AccessWidth::Dword, 1),
            Step::store(GPA, AccessWidth::Dword, 1).late(),
            Step::store(GPA, AccessWidth::Dword, 1).undecodable(),
            Step::Fetch { gpa: GPA },
            Step::load(GPA - K4, AccessWidth::Dword, 1),
            Step::Walk { gpa: GPA - K4 },
        ],
    );
    let taken = H::machine().events(1, 0);
    let taken = taken.iter().filter(|event| **event == Event::FaultTaken(GuestFault::Bus)).count();
    assert_eq!(taken, 6);
}

fn permissions_taken_away_are_gone_for_a_vcpu_that_used_them<H: MockHal, A: Kind>() {
    let config = AxVMConfig::new(1, "protect").with_memory(GPA, 2 * M2, RW, MapAlloc);
    let vm = boot::<H, A>(config);
    for at in [GPA + 3 * K4, GPA + M2] {
        guest_store(&vm, 0, at, 0x11);
        vm.memory().protect(gpa(at), K4, R).unwrap();
        guest_store(&vm, 0, at, 0x22);
        assert_eq!(guest_load(&vm, 0, at), 0x11);
        // And back: the TLB still says read-only at worst, which resumes.
        vm.memory().protect(gpa(at), K4, RW).unwrap();
        guest_store(&vm, 0, at, 0x33);
        assert_eq!(guest_load(&vm, 0, at), 0x33);
    }
}

fn roots_are_aligned_to_their_size<H: MockHal, A: Kind>() {
    let sizes: &[u32] = match A::Npt::HW {
        HwFormat::Ept => &[48],
        HwFormat::Stage2 => &[39, 40, 41, 42, 43, 44, 47, 48],
        HwFormat::GStage => &[41, 50],
    };
    for &bits in sizes {
        H::machine().set_input_bits(bits);
        // One frame out of line, so that the next one is not aligned by chance.
        let odd = H::machine().arena().alloc(1, K4).unwrap();
        // The vCPU's `set_ept_root` looks at the alignment that the hardware demands.
        let vm = boot::<H, A>(AxVMConfig::new(1, "root").with_memory(GPA, K4, RW, MapAlloc));
        let expected = match A::Npt::HW {
            HwFormat::Ept => 0x1000,
            HwFormat::GStage => 0x4000,
            HwFormat::Stage2 => A::npt_geometry().unwrap().root_size(),
        };
        assert_eq!(A::npt_geometry().unwrap().root_size(), expected);
        if bits == 40 {
            assert_eq!(expected, 0x2000, "two tables in a row");
        }
        assert!(vm.ept_root().as_usize().is_multiple_of(expected), "{bits} bits");
        guest_store(&vm, 0, GPA, 7);
        assert_eq!(guest_load(&vm, 0, GPA), 7);
        drop(vm);
        H::machine().arena().dealloc(odd, 1);
        H::machine().assert_balanced();
    }
}
