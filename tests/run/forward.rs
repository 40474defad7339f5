//! Accesses and calls that the host serves, and completes.

use axerrno::AxError;
use axvm::{
    config::{AxVMConfig, ForwardConfig},
    vcpu::{
        AccessOp,
        AccessWidth::{Byte, Dword, Qword, Word},
        AxVCpuExitReason, DecodedAccess, LoadTarget, Port, SysRegAddr, VcpuEvent, VcpuExit,
    },
};
use axvm_testkit::{MockHal, Step, TestDevice, TestVm, VM, gpa_range, mock_hal, test_config};

use crate::support::{HALT, preset, reg, start};

mock_hal!(struct Hal { arena: 4 << 20 });

const AT: usize = 0xa00_0000;

fn config() -> AxVMConfig {
    test_config(1).with_forward(ForwardConfig {
        mmio: vec![gpa_range(AT, 0xffc)],
        ports: vec![(0x60, 0x64)],
        sys_regs: vec![(0x10, 0x20)],
    })
}

/// Pushes a step, and expects what the host is told; then completes it, having checked that
/// nothing goes on before and that there is one answer.
#[track_caller]
fn handed(vm: &TestVm<Hal>, step: Step, reason: AxVCpuExitReason, answer: u64) {
    Hal::machine().program(VM, 0).push(step);
    assert_eq!(vm.complete(0, 1), Err(AxError::BadState), "before it is asked for");
    assert_eq!(vm.run_vcpu(0), Ok(reason));
    for _ in 0..2 {
        assert_eq!(vm.run_vcpu(0), Err(AxError::BadState), "not completed");
    }
    assert_eq!(vm.complete(0, answer), Ok(()));
    assert_eq!(vm.complete(0, answer + 1), Err(AxError::BadState), "completed twice");
}

fn port(port: u16, op: AccessOp) -> Step {
    Step::Exit(VcpuExit::Port { port: Port(port), access: DecodedAccess { width: Byte, op } })
}

const AL: LoadTarget = LoadTarget { reg: 0, reg_width: Byte, signed_ext: false };

#[test]
fn memory_accesses_come_with_all_that_an_emulator_needs() {
    let (vm, _turn) = start::<Hal>(config());
    let target = LoadTarget { reg: 6, reg_width: Dword, signed_ext: true };
    let step = Step::Load { gpa: AT + 2, width: Word, target };
    let reason = AxVCpuExitReason::MmioRead {
        addr: (AT + 2).into(),
        width: Word,
        reg: 6,
        reg_width: Dword,
        signed_ext: true,
    };
    handed(&vm, step, reason, 0x1_8001);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(&vm, 6), 0xffff_8001);
    let reason = AxVCpuExitReason::MmioWrite { addr: (AT + 8).into(), width: Word, data: 0x2222 };
    handed(&vm, Step::store(AT + 8, Word, 0x1111_2222).late(), reason, 0);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 0);
}

#[test]
fn a_pair_is_handed_over_one_by_one() {
    let (vm, _turn) = start::<Hal>(config());
    let pair = Step::pair(Step::load(AT, Qword, 1), Step::load(AT + 8, Qword, 2));
    let read = |addr: usize, reg| AxVCpuExitReason::MmioRead {
        addr: addr.into(),
        width: Qword,
        reg,
        reg_width: Qword,
        signed_ext: false,
    };
    handed(&vm, pair, read(AT, 1), 11);
    assert_eq!(vm.run_vcpu(0), Ok(read(AT + 8, 2)));
    assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
    vm.complete(0, 22).unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (11, 22));
}

#[test]
fn ports_and_system_registers_are_handed_over_where_asked_for() {
    let (vm, _turn) = start::<Hal>(config());
    Hal::machine().program(VM, 0).push(preset(0, 0x1234));
    let reason = AxVCpuExitReason::IoRead { port: Port(0x60), width: Byte };
    handed(&vm, port(0x60, AccessOp::Read(AL)), reason, 0xfab);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(&vm, 0), 0x12ab, "AL alone");
    let reason = AxVCpuExitReason::IoWrite { port: Port(0x64), width: Byte, data: 0xfe };
    handed(&vm, port(0x64, AccessOp::Write(0x1fe)), reason, 0);
    assert_eq!(vm.run_vcpu(0), HALT);

    let op = AccessOp::Read(LoadTarget { reg: 3, reg_width: Qword, signed_ext: false });
    let read = VcpuExit::SysReg { addr: SysRegAddr(0x20), op };
    let reason = AxVCpuExitReason::SysRegRead { addr: SysRegAddr(0x20), reg: 3 };
    handed(&vm, Step::Exit(read), reason, u64::MAX - 1);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(&vm, 3), u64::MAX - 1);
    let write = VcpuExit::SysReg { addr: SysRegAddr(0x10), op: AccessOp::Write(5) };
    let reason = AxVCpuExitReason::SysRegWrite { addr: SysRegAddr(0x10), value: 5 };
    handed(&vm, Step::Exit(write), reason, 0);
    assert_eq!(vm.run_vcpu(0), HALT);

    // Outside the ranges, the VM answers itself.
    Hal::machine().program(VM, 0).extend([
        port(0x65, AccessOp::Read(AL)),
        Step::Exit(VcpuExit::SysReg { addr: SysRegAddr(0x21), op }),
        Step::load(AT + 0xff8, Qword, 1),
    ]);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 3);
}

#[test]
fn a_device_of_the_vm_goes_first() {
    let (vm, _turn) = start::<Hal>(config());
    vm.add_mmio_device(TestDevice::new(gpa_range(AT, 4), 0x77)).unwrap();
    Hal::machine().program(VM, 0).push(Step::load(AT, Dword, 1));
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(&vm, 1), 0x77);
}

#[test]
fn a_hypercall_is_answered_with_its_return_value() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let (nr, args) = (0x8400_0000, [1, 2, 3, 4, 5, u64::MAX]);
    let call = Step::Exit(VcpuExit::Hypercall { nr, args });
    handed(&vm, call, AxVCpuExitReason::Hypercall { nr, args }, 0xffff_ffff_ffff_fffe);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(reg(&vm, 0), 0xffff_ffff_ffff_fffe);
}

#[test]
fn an_answer_may_come_from_another_cpu_and_reaches_its_vcpu_alone() {
    let (vm, _turn) = start::<Hal>(test_config(2));
    let call = |nr| Step::Exit(VcpuExit::Hypercall { nr, args: [0; 6] });
    let up = VcpuExit::CpuUp { target_cpu: 1, entry_point: 0x4000.into(), arg: 0 };
    Hal::machine().program(VM, 0).push(Step::Exit(up)).push(call(1));
    Hal::machine().program(VM, 1).push(call(2));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::CpuUp { .. })));
    assert!(matches!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Hypercall { nr: 1, .. })));
    assert!(matches!(vm.run_vcpu(1), Ok(AxVCpuExitReason::Hypercall { nr: 2, .. })));
    std::thread::scope(|scope| {
        scope.spawn(|| vm.complete(1, 21).unwrap()).join().unwrap();
    });
    assert_eq!(vm.run_vcpu(0), Err(AxError::BadState));
    assert_eq!(vm.run_vcpu(1), HALT);
    vm.complete(0, 20).unwrap();
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!((reg(&vm, 0), vm.vcpu_state(1).unwrap().regs[0]), (20, 21));
}
