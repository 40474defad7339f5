//! vCPUs that fence each other while the VM ends.

use axerrno::AxError;
use axvm::{
    vcpu::{AxVCpuExitReason, GuestFence, IpiTargets, VcpuExit},
    vm::VMStatus,
};
use axvm_testkit::{MockHal, Step, VM, booted, mock_hal, on_pcpu, test_config};

#[test]
fn a_vm_that_ends_while_its_vcpus_fence_each_other_ends() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    const VCPUS: usize = 3;
    let machine = Hal::machine();
    machine.set_tracing(false);
    let vm = booted::<Hal>(test_config(VCPUS));
    for round in 0..200 {
        for target_cpu in 1..VCPUS as u64 {
            let up = VcpuExit::CpuUp { target_cpu, entry_point: 0x4000.into(), arg: 0 };
            machine.program(VM, 0).push(Step::Exit(up));
            while !matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { .. })) {}
        }
        for vcpu in 0..VCPUS {
            let mut turn = vcpu;
            machine.program(VM, vcpu).push(Step::guest(move |_| {
                turn += 1;
                let fence = match turn % 2 {
                    0 => GuestFence::Instructions,
                    _ => GuestFence::Translations,
                };
                VcpuExit::RemoteFence { targets: IpiTargets::AllButSelf, fence }
            }));
        }
        std::thread::scope(|scope| {
            for vcpu in 0..VCPUS {
                let vm = &vm;
                scope.spawn(move || {
                    on_pcpu(vcpu, || {
                        loop {
                            match vm.run_vcpu(vcpu) {
                                Ok(AxVCpuExitReason::ExternalInterrupt { .. }) => {}
                                Ok(AxVCpuExitReason::SystemDown) | Err(AxError::BadState) => break,
                                other => panic!("{other:?}"),
                            }
                        }
                        assert_ne!(vm.status(), VMStatus::Running);
                    });
                });
            }
            machine.wait_in_guest(VM, round % VCPUS);
            vm.shutdown().unwrap();
            vm.wait_terminated().unwrap();
        });
        (0..VCPUS).for_each(|vcpu| machine.program(VM, vcpu).clear());
        vm.reset().unwrap();
        vm.boot().unwrap();
    }
}
