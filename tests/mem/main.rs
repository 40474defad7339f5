//! Guest memory, driven through `AddrSpace` and the run loop, for all three kinds of vCPU.

/// Runs generic tests for each kind of vCPU, each on a machine of its own.
macro_rules! for_each_kind {
    ($($test:ident),* $(,)?) => {
        for_each_kind!(vmid_bits 8: $($test),*);
    };
    (vmid_bits $bits:literal: $($test:ident),* $(,)?) => {
        mod x86 {
            $(
                #[test]
                fn $test() {
                    crate::host::start($bits);
                    super::$test::<crate::Host, axvm_testkit::X86Like<crate::Host>>();
                }
            )*
        }
        mod arm {
            $(
                #[test]
                fn $test() {
                    crate::host::start($bits);
                    super::$test::<crate::Host, axvm_testkit::ArmLike<crate::Host>>();
                }
            )*
        }
        mod riscv {
            $(
                #[test]
                fn $test() {
                    crate::host::start($bits);
                    super::$test::<crate::Host, axvm_testkit::RiscvLike<crate::Host>>();
                }
            )*
        }
    };
}

mod alloc;
mod copy;
mod failures;
mod fault;
mod host;
mod map;
mod model;

mod permissions;
mod regions;
mod tlb;
mod turns;
mod vmid;

use crate::host::{Host, spawn};
use axerrno::{AxError, AxErrorKind};
use axvm::{
    config::AxVMConfig,
    mm::{AddrSpace, GuestPhysAddr, HostPhysAddr, MappingFlags},
    vcpu::{AccessWidth, AxArchVCpu, AxVCpuExitReason, VcpuExit},
    vm::{AxVM, AxVMRef},
};
use axvm_testkit::{HwNpt, Mmu, MockHal, ScriptedState, Step, enable_pcpus, pcpu};

const K4: usize = 4096;
const M2: usize = 2 << 20;
const G1: usize = 1 << 30;

const R: MappingFlags = MappingFlags::READ;
const W: MappingFlags = MappingFlags::WRITE;
const X: MappingFlags = MappingFlags::EXECUTE;
const RW: MappingFlags = R.union(W);
const RX: MappingFlags = R.union(X);
const RWX: MappingFlags = RW.union(X);
const DEVICE: MappingFlags = MappingFlags::DEVICE;

/// Where most tests have the guest's memory.
const GPA: usize = 0x4000_0000;
/// Where most tests have host memory for linear mappings: congruent to `GPA`, and above it.
const HPA: usize = 0x8_0000_0000;

/// One of the three kinds of scripted vCPU.
trait Kind: AxArchVCpu<State = ScriptedState, Npt: HwNpt> {}

impl<A: AxArchVCpu<State = ScriptedState, Npt: HwNpt>> Kind for A {}

/// The address space of a vCPU kind.
type Space<H, A> = AddrSpace<H, <A as AxArchVCpu>::Npt, <A as AxArchVCpu>::Tlb>;

fn gpa(addr: usize) -> GuestPhysAddr {
    addr.into()
}

fn hpa(addr: usize) -> HostPhysAddr {
    addr.into()
}

fn error<T>(kind: AxErrorKind) -> Result<T, AxError> {
    Err(kind.into())
}

/// An address space of 1 TiB for two vCPUs.
fn space<H: MockHal, A: Kind>() -> Space<H, A> {
    let geometry = A::npt_geometry().unwrap();
    AddrSpace::new_empty(geometry, A::max_leaf(), gpa(0), 1 << 40, 2).unwrap()
}

/// The frames of the root, which no operation frees.
fn root_frames<A: Kind>() -> usize {
    A::npt_geometry().unwrap().root_frames()
}

/// What the hardware finds in the table: address and permissions.
fn probe<H: MockHal, A: Kind>(space: &Space<H, A>, at: usize) -> Option<(usize, MappingFlags)> {
    let mmu = Mmu {
        machine: H::machine(),
        format: A::Npt::HW,
        shape: A::Npt::shape(None),
        vmid: 1,
        root: space.page_table_root(),
        pcpu: 0,
    };
    let found = mmu.probe(gpa(at)).map(|(hpa, flags)| (hpa.as_usize(), flags & RWX));
    let translated = space.translate(gpa(at)).map(|hpa| hpa.as_usize());
    assert_eq!(translated, found.map(|(hpa, _)| hpa), "the crate and the hardware at {at:#x}");
    found
}

/// What the hardware finds at several addresses.
fn probes<H: MockHal, A: Kind>(
    space: &Space<H, A>,
    addresses: &[usize],
) -> Vec<Option<(usize, MappingFlags)>> {
    addresses.iter().map(|&at| probe::<H, A>(space, at)).collect()
}

/// A VM that runs, on four physical CPUs that are enabled.
fn boot<H: MockHal, A: Kind>(config: AxVMConfig) -> AxVMRef<H, A> {
    if !A::hardware().is_enabled(0) {
        drop(enable_pcpus::<A>(4));
    }
    // Somewhere to begin; no test touches it.
    let config = config.with_memory(K4, K4, RWX, axvm::config::VmMemMappingType::MapLazy);
    let vm: AxVMRef<H, A> = AxVM::new(config).unwrap();
    vm.boot().unwrap();
    // The first vCPU switches the others on.
    for target in 1..vm.vcpu_num() {
        let (target_cpu, entry_point) = (target as u64, gpa(K4));
        let up = Step::Exit(VcpuExit::CpuUp { target_cpu, entry_point, arg: 0 });
        H::machine().program(vm.id(), 0).push(up);
        assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { .. })));
    }
    vm
}

/// Lets a vCPU do what its program has, on this physical CPU.
#[track_caller]
fn finish<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize) {
    loop {
        match vm.run_vcpu(vcpu).unwrap() {
            AxVCpuExitReason::Halt => break,
            AxVCpuExitReason::ExternalInterrupt { .. } => {}
            other => panic!("vCPU {vcpu} on pCPU {}: {other:?}", pcpu()),
        }
    }
    assert!(H::machine().program(vm.id(), vcpu).is_empty());
}

/// A vCPU does these steps.
#[track_caller]
fn steps<H: MockHal, A: Kind>(
    vm: &AxVMRef<H, A>,
    vcpu: usize,
    steps: impl IntoIterator<Item = Step>,
) {
    H::machine().program(vm.id(), vcpu).extend(steps);
    finish(vm, vcpu);
}

/// What a load by the guest gives.
#[track_caller]
fn guest_load<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize, at: usize) -> u64 {
    steps(vm, vcpu, [Step::load(at, AccessWidth::Qword, 5)]);
    vm.vcpu_state(vcpu).unwrap().regs[5]
}

/// A store by the guest.
#[track_caller]
fn guest_store<H: MockHal, A: Kind>(vm: &AxVMRef<H, A>, vcpu: usize, at: usize, value: u64) {
    steps(vm, vcpu, [Step::store(at, AccessWidth::Qword, value)]);
}
