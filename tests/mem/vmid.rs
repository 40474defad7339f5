//! VMIDs run out and begin again, and a host that cannot kick: still no stale hit.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use axerrno::AxResult;
use axvm::{
    AxVMHal,
    config::VmMemMappingType::MapAlloc,
    mm::HostVirtAddr,
    vcpu::{Access, MemFault},
};
use axvm_testkit::{
    Event, Flush, Frames, Machine, MachineConfig, MockHal, Step, X86Like, on_pcpu, services,
};

use crate::*;

mod no_bits {
    use super::{
        every_vm_has_vmid_0_and_a_change_of_vm_empties_the_tlb,
        vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry,
    };
    for_each_kind!(vmid_bits 0:
        every_vm_has_vmid_0_and_a_change_of_vm_empties_the_tlb,
        vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry);
}

mod one_bit {
    use super::vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry;
    for_each_kind!(vmid_bits 1:
        vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry);
}

for_each_kind!(vmid_bits 2:
    vms_that_take_turns_get_vmids_of_a_new_generation,
    vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry,
);

fn vms_that_take_turns_get_vmids_of_a_new_generation<H: MockHal, A: Kind>() {
    let make =
        |id| boot::<H, A>(AxVMConfig::new(id, "turns").with_memory(GPA, 4 * K4, RW, MapAlloc));
    let vms: Vec<_> = (0..5).map(make).collect();
    let first = A::hardware().vmids().generation();
    for round in 1..20 {
        for (id, vm) in vms.iter().enumerate() {
            // The same page in each, on CPUs that have seen all the others.
            on_pcpu((round + id) % 3, || {
                let old = if round == 1 { 0 } else { ((round - 1) * 8 + id) as u64 };
                assert_eq!(guest_load(vm, 0, GPA), old, "VM {id} sees another's memory");
                guest_store(vm, 0, GPA, (round * 8 + id) as u64);
            });
        }
    }
    assert!(A::hardware().vmids().generation() > first + 5);
    // As many VMs as numbers: they keep them.
    drop(vms);
    let vms: Vec<_> = (0..3).map(make).collect();
    for _ in 0..2 {
        vms.iter().for_each(|vm| guest_store(vm, 0, GPA, 1));
    }
    let settled = A::hardware().vmids().generation();
    H::machine().take_trace();
    for _ in 0..10 {
        vms.iter().for_each(|vm| guest_store(vm, 0, GPA, 1));
    }
    assert_eq!(A::hardware().vmids().generation(), settled);
    let given = |id| {
        let events = H::machine().events(id, 0);
        let ids: std::collections::BTreeSet<_> = events
            .iter()
            .filter_map(|event| if let Event::SetVmid(id) = event { Some(*id) } else { None })
            .collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        ids.into_iter().next()
    };
    assert!(given(0) != given(1) && given(1) != given(2) && given(0) != given(2));
}

fn every_vm_has_vmid_0_and_a_change_of_vm_empties_the_tlb<H: MockHal, A: Kind>() {
    let make =
        |id| boot::<H, A>(AxVMConfig::new(id, "none").with_memory(GPA, 4 * K4, RW, MapAlloc));
    let vms: Vec<_> = (0..3).map(make).collect();
    let vmids = A::hardware().vmids();
    for round in 0..20u64 {
        for (id, vm) in vms.iter().enumerate() {
            on_pcpu((round as usize + id) % 2, || {
                let before = vmids.generation();
                H::machine().tlb().take_log();
                let old = if round == 0 { 0 } else { round * 8 + id as u64 };
                assert_eq!(guest_load(vm, 0, GPA), old, "VM {id} sees another's memory");
                assert_eq!(vmids.generation(), before + 1, "VM {id} after another");
                assert!(H::machine().tlb().take_log().contains(&(pcpu(), Flush::All)));
                // As long as no other comes, it keeps what it has.
                guest_store(vm, 0, GPA, (round + 1) * 8 + id as u64);
                assert_eq!(vmids.generation(), before + 1);
                assert!(!H::machine().tlb().take_log().contains(&(pcpu(), Flush::All)));
            });
        }
    }
    let given = H::machine().take_trace().into_iter().filter_map(|record| match record.event {
        Event::SetVmid(vmid) => Some(vmid),
        _ => None,
    });
    assert!(given.collect::<Vec<_>>().iter().all(|&vmid| vmid == 0));
}

/// A guest that writes its VM's mark to its pages and finds nothing else there.
fn marker(vm: usize, stop: Arc<AtomicBool>) -> Step {
    let (mut turn, mut absent) = (0usize, false);
    Step::guest(move |guest| {
        for _ in 0..20 {
            if stop.load(SeqCst) {
                return VcpuExit::Halt;
            }
            let at = GPA + turn % 3 * K4;
            let own = ((vm as u64 + 1) << 32) | at as u64;
            match guest.load(at, AccessWidth::Qword) {
                Some(found) => {
                    assert!(found == 0 || found == own, "VM {vm} finds {found:#x} at {at:#x}");
                    let _ = guest.store(at, AccessWidth::Qword, own);
                }
                None if !absent => {
                    absent = true;
                    let gpa = gpa(at);
                    let fault = MemFault { gpa, access: Access::Read, walk: false, insn: None };
                    return VcpuExit::MemFault(fault);
                }
                None => {}
            }
            (turn, absent) = (turn + 1, false);
        }
        VcpuExit::Nothing
    })
}

fn vms_with_too_few_vmids_on_several_cpus_never_meet_a_stale_entry<H: MockHal, A: Kind>() {
    const ROUNDS: usize = 150;
    H::machine().set_tracing(false);
    let vms: Vec<_> =
        (0..4).map(|id| boot::<H, A>(AxVMConfig::new(id, "few").with_cpus(2))).collect();
    let stop = Arc::new(AtomicBool::new(false));
    for id in 0..4 {
        for vcpu in 0..2 {
            H::machine().program(id, vcpu).push(marker(id, stop.clone()));
        }
    }
    /// Ends the guests also when this thread panics.
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    std::thread::scope(|scope| {
        for pcpu in 0..3 {
            let (vms, stop) = (&vms, stop.clone());
            spawn(scope, pcpu, move || {
                let _stop = Stop(stop.clone());
                let mut turn = pcpu;
                while !stop.load(SeqCst) {
                    turn = turn * 5 + 1;
                    let vm = &vms[turn / 7 % 4];
                    H::kick_pcpu(pcpu);
                    // Bound elsewhere at the moment: another turn.
                    let _ = vm.run_vcpu(turn / 3 % 2);
                    turn %= 10_000;
                }
            });
        }
        let _stop = Stop(stop.clone());
        for round in 0..ROUNDS {
            for vm in &vms {
                let eager = round % 2 == 0;
                vm.memory().map_alloc(gpa(GPA), 3 * K4, RW, eager).unwrap();
            }
            std::thread::yield_now();
            for vm in &vms {
                vm.unmap_region(gpa(GPA + K4), K4).unwrap();
                vm.unmap_region(gpa(GPA), K4).unwrap();
                vm.unmap_region(gpa(GPA + 2 * K4), K4).unwrap();
            }
        }
    });
    assert!(vms.iter().all(|vm| vm.memory().is_settled()));
    assert!(A::hardware().vmids().generation() > 2, "the numbers never ran out");
    drop(vms);
    H::machine().assert_balanced();
}

/// A host with the documented ten items only: `kick_pcpu` does nothing.
#[derive(Clone, Copy, Debug)]
struct Quiet;

impl MockHal for Quiet {
    fn machine() -> &'static Machine {
        static MACHINE: std::sync::OnceLock<Machine> = std::sync::OnceLock::new();
        MACHINE.get_or_init(|| {
            Machine::new(MachineConfig { arena: 8 << 20, ..MachineConfig::DEFAULT })
        })
    }
}

impl AxVMHal for Quiet {
    type PagingHandler = Frames<Self>;

    fn alloc_memory_region_at(base: HostPhysAddr, size: usize) -> bool {
        services::alloc_memory_region_at::<Self>(base, size)
    }
    fn dealloc_memory_region_at(base: HostPhysAddr, size: usize) {
        services::dealloc_memory_region_at::<Self>(base, size);
    }
    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
        services::virt_to_phys::<Self>(vaddr)
    }
    fn current_time_nanos() -> u64 {
        services::current_time_nanos::<Self>()
    }
    fn current_vm_id() -> usize {
        services::current_vm_id::<Self>()
    }
    fn current_vcpu_id() -> usize {
        services::current_vcpu_id::<Self>()
    }
    fn current_pcpu_id() -> usize {
        pcpu()
    }
    fn vcpu_resides_on(vm_id: usize, vcpu_id: usize) -> AxResult<usize> {
        services::vcpu_resides_on::<Self>(vm_id, vcpu_id)
    }
    fn inject_irq_to_vcpu(vm_id: usize, vcpu_id: usize, irq: usize) -> AxResult {
        services::inject_irq_to_vcpu::<Self>(vm_id, vcpu_id, irq)
    }
}

/// The frame waits, and comes back when the host's tick brings the vCPU out.
#[test]
fn frames_come_back_when_a_host_without_kicks_returns_by_itself() {
    type H = Quiet;
    type A = X86Like<H>;
    let vm = boot::<H, A>(AxVMConfig::new(1, "tick").with_memory(GPA, K4, RW, MapAlloc));
    let before = H::machine().arena().allocated();
    assert_eq!(guest_load(&vm, 0, GPA), 0);
    services::set_timer::<H>(u64::MAX);
    on_pcpu(1, || services::set_timer::<H>(100));
    let load = Step::load(GPA, AccessWidth::Byte, 1);
    H::machine().program(1, 0).extend([load, Step::SpinUntilKicked]);
    std::thread::scope(|scope| {
        let vm = &vm;
        let guest = spawn(scope, 1, move || vm.run_vcpu(0));
        H::machine().wait_until("the guest", || H::machine().tlb().cached(1) > 0);
        vm.unmap_region(gpa(GPA), K4).unwrap();
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(!vm.memory().is_settled());
            assert!(H::machine().arena().allocated() >= before, "freed under the guest");
        }
        H::machine().advance(100);
        let exit = guest.join().unwrap();
        assert!(matches!(exit, Ok(AxVCpuExitReason::ExternalInterrupt { .. })), "{exit:?}");
    });
    assert!(vm.memory().is_settled());
    assert!(H::machine().arena().allocated() < before);
    assert_eq!(H::machine().take_kicks(), []);
}
