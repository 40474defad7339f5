//! The exit loop. No peer runs on an ordinary machine.

use axvm::config::{AxVMConfig, VmMemMappingType};
use axvm::mm::MappingFlags;
use axvm::vcpu::{AxVCpuExitReason, AxVMPerCpu, ExitKind};
use axvm::vm::{AxVM, AxVMRef};

use crate::devices;
use crate::machine::{Host, Loader};
use crate::report::{OURS, Op};

const MMIO_EXIT: Op = Op::instr("run_vcpu, MMIO exit among 64 devices", 150.0);

/// The rows of the table.
pub const OPS: &[Op] = &[MMIO_EXIT];

const DEVICES: usize = 64;

/// Runs every case.
pub fn run() {
    let mut cpu = AxVMPerCpu::<Loader>::new(0).expect("a CPU");
    cpu.hardware_enable().expect("virtualization");
    let ram = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    let config = AxVMConfig::new(1, "bench").with_cpus(4).with_memory(
        0x8000_0000,
        1 << 22,
        ram,
        VmMemMappingType::MapAlloc,
    );
    let vm: AxVMRef<Host, Loader> = AxVM::new(config).expect("a VM");
    for device in devices::devices(DEVICES) {
        vm.add_mmio_device(device).expect("no overlap");
    }
    let addresses = devices::addresses(DEVICES);
    vm.set_vcpu_state(0, &addresses).expect("a vCPU");
    vm.boot().expect("the mock boots");
    // One call runs them all: its own price is spread over them.
    MMIO_EXIT.run(OURS, addresses.len(), || {
        let reason = vm.run_vcpu(0);
        assert_eq!(reason, Ok(AxVCpuExitReason::ExternalInterrupt { vector: 0 }));
    });
    assert_eq!(vm.exits(ExitKind::MemFault), addresses.len() as u64);
    vm.shutdown().expect("it runs");
}
