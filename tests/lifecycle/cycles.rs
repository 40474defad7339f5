//! VMs of all kinds come and go, and the host's memory is as before.

use std::time::Instant;

use axerrno::AxError;
use axvm::{
    config::{AxVMConfig, PassThroughDeviceConfig, VmMemMappingType},
    mm::MappingFlags,
    vcpu::{AccessWidth, AxArchVCpu, AxVCpuExitReason},
    vm::AxVM,
};
use axvm_testkit::{
    ArmLike, MockHal, RiscvLike, Step, TestDevice, X86Like, enable_pcpus, gpa_range, mock_hal,
};

const CYCLES: u64 = 10_000;

/// Xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// A few regions of any kind, in slots of 16 MiB; and the addresses that the guest touches.
fn config(random: &mut Random) -> (AxVMConfig, Vec<usize>) {
    use VmMemMappingType::{MapAlloc, MapIdentical, MapLazy, MapLazyHuge, MapReserved};
    let mut config = AxVMConfig::new(1, "cycle").with_cpus(1 + random.below(4));
    let mut touched = Vec::new();
    let rwx = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    for slot in 1..2 + random.below(4) {
        let kinds = [MapAlloc, MapLazy, MapLazyHuge, MapIdentical, MapReserved];
        let kind = kinds[random.below(kinds.len())];
        let pages = 1 + random.below(4);
        let mut gpa = slot * (16 << 20) + random.below(4) * 0x1000;
        if kind == MapReserved {
            gpa = 0x4000_0000;
            if touched.contains(&gpa) {
                continue;
            }
        }
        config = config.with_memory(gpa, pages * 0x1000, rwx, kind);
        touched.push(gpa);
        touched.push(gpa + (pages - 1) * 0x1000);
    }
    if random.below(2) == 0 {
        let offset = random.below(0x1000) & !7;
        config = config.with_pass_through(PassThroughDeviceConfig {
            name: "device".into(),
            base_gpa: 0x5000_0000 + offset,
            base_hpa: 0x6000_0000 + offset,
            length: 1 + random.below(0x1000),
            irq_id: 0,
        });
        touched.push(0x5000_0000 + offset);
    }
    (config, touched)
}

fn cycle<H: MockHal, A: AxArchVCpu>(random: &mut Random) {
    let machine = H::machine();
    let (config, touched) = config(random);
    let vm = AxVM::<H, A>::new(config).unwrap();
    let devices = random.below(3);
    for index in 0..devices {
        let range = gpa_range(0x7000_0000 + index * 0x100, 0x100);
        vm.add_mmio_device(TestDevice::new(range, 0x33)).unwrap();
    }
    let program = machine.program(1, 0);
    for _ in 0..1 + random.below(2) {
        vm.boot().unwrap();
        for &gpa in &touched {
            program.push(Step::store(gpa, AccessWidth::Qword, 1));
        }
        program.push(Step::load(0x7000_0000, AccessWidth::Byte, 1));
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        if random.below(2) == 0 {
            vm.inject_interrupt_to_vcpu(vm.vcpu_num() - 1, 40).unwrap();
        }
        if random.below(3) == 0
            && let Some(&gpa) = touched.first()
        {
            vm.unmap_region(gpa.into(), 0x1000).unwrap();
            let elsewhere = 0x7800_0000.into();
            vm.map_region(elsewhere, 0x6000_0000.into(), 0x1000, MappingFlags::READ).unwrap();
        }
        vm.shutdown().unwrap();
        assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
        vm.reset().unwrap();
    }
    drop(vm);
    machine.assert_balanced();
}

#[test]
fn ten_thousand_lives_leave_the_host_s_memory_as_it_was() {
    mock_hal!(struct X86 { arena: 8 << 20 });
    mock_hal!(struct Arm { arena: 8 << 20 });
    mock_hal!(struct Riscv { arena: 8 << 20, vmid_bits: 4 });
    fn prepare<H: MockHal, A: AxArchVCpu>() {
        enable_pcpus::<A>(1);
        H::machine().set_tracing(false);
        H::machine().regions().add_device(0x4000_0000, 0x4000);
        H::machine().regions().add_device(0x6000_0000, 0x2000);
    }
    prepare::<X86, X86Like<X86>>();
    prepare::<Arm, ArmLike<Arm>>();
    prepare::<Riscv, RiscvLike<Riscv>>();
    let start = Instant::now();
    let mut random = Random(0x1234_5678_9abc_def1);
    for number in 0..CYCLES {
        match number % 3 {
            0 => cycle::<X86, X86Like<X86>>(&mut random),
            1 => cycle::<Arm, ArmLike<Arm>>(&mut random),
            _ => cycle::<Riscv, RiscvLike<Riscv>>(&mut random),
        }
    }
    println!("{CYCLES} cycles in {:?}", start.elapsed());
}
