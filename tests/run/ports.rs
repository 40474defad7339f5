//! I/O ports and system registers.

use axvm::{
    device::{PortRange, SysRegRange},
    vcpu::{
        AccessOp,
        AccessWidth::{self, Byte, Dword, Qword, Word},
        DecodedAccess, GuestFault, LoadTarget, Port, SysRegAddr, VcpuEvent, VcpuExit,
    },
};
use axvm_testkit::{Event, MockHal, Step, TestDevice, Touch, VM, mock_hal, test_config};

use crate::support::{play, preset, reg, start};

mock_hal!(struct Hal { arena: 4 << 20 });

const fn target(reg: u8, reg_width: AccessWidth) -> LoadTarget {
    LoadTarget { reg, reg_width, signed_ext: false }
}

/// IN: the register is as wide as the access.
fn port_in(port: u16, width: AccessWidth) -> Step {
    let op = AccessOp::Read(target(0, width));
    Step::Exit(VcpuExit::Port { port: Port(port), access: DecodedAccess { width, op } })
}

fn port_out(port: u16, width: AccessWidth, value: u64) -> Step {
    let op = AccessOp::Write(value);
    Step::Exit(VcpuExit::Port { port: Port(port), access: DecodedAccess { width, op } })
}

fn read_reg(addr: usize) -> Step {
    let op = AccessOp::Read(target(5, Qword));
    Step::Exit(VcpuExit::SysReg { addr: SysRegAddr(addr), op })
}

fn write_reg(addr: usize, value: u64) -> Step {
    let op = AccessOp::Write(value);
    Step::Exit(VcpuExit::SysReg { addr: SysRegAddr(addr), op })
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(Port(first), Port(last)).unwrap()
}

#[test]
fn a_port_read_spares_the_rest_of_the_register_as_x86_does() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = TestDevice::new(ports(0x3f8, 0x3ff), 0xaabb_ccdd_eeff_0011);
    vm.get_devices().add_port_dev(device.clone()).unwrap();
    for (width, want) in
        [(Byte, 0x1122_3344_5566_7711), (Word, 0x1122_3344_5566_0011), (Dword, 0xeeff_0011u64)]
    {
        play(&vm, [preset(0, 0x1122_3344_5566_7788), port_in(0x3f8, width)]);
        assert_eq!(reg(&vm, 0), want, "{width:?}");
        assert_eq!(device.take(), [Touch::Read(0x3f8, width)]);
        play(&vm, [port_out(0x3fc, width, 0x1234_5678_9abc_def0)]);
        let value = 0x1234_5678_9abc_def0u64 & width.mask();
        assert_eq!(device.take(), [Touch::Write(0x3fc, width, value as usize)]);
    }
}

#[test]
fn an_access_to_no_port_reads_ones_and_the_last_port_is_one() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let last = TestDevice::new(ports(0xfff0, 0xffff), 0x42);
    vm.get_devices().add_port_dev(last.clone()).unwrap();
    play(&vm, [port_in(0xffff, Byte)]);
    assert_eq!((reg(&vm, 0), last.take()), (0x42, vec![Touch::Read(0xffff, Byte)]));
    // The upstream's bitmap ends at 0x2000; this one wraps around the end.
    for (port, width) in [(0x2000, Byte), (0x1fff, Word), (0xffff, Word), (0xfffe, Dword)] {
        play(&vm, [preset(0, 0), port_in(port, width), port_out(port, width, 1)]);
        assert_eq!(reg(&vm, 0), width.mask(), "{port:#x}");
    }
    assert_eq!(last.take(), []);
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 8);
}

#[test]
fn a_system_register_is_a_device_s_or_undefined() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let range = SysRegRange::new(SysRegAddr(0x1b), SysRegAddr(0x1c)).unwrap();
    let device = TestDevice::new(range, 0xfee0_0900_1234_5678);
    vm.get_devices().add_sys_reg_dev(device.clone()).unwrap();
    play(&vm, [read_reg(0x1b), write_reg(0x1c, u64::MAX)]);
    assert_eq!(reg(&vm, 5), 0xfee0_0900_1234_5678, "all 64 bits");
    let all = [Touch::Read(0x1b, Qword), Touch::Write(0x1c, Qword, usize::MAX)];
    assert_eq!(device.take(), all);
    assert_eq!(vm.events(VcpuEvent::FaultInjected), 0);
    play(&vm, [preset(5, 1), read_reg(0x1d), write_reg(0x1a, 0), read_reg(usize::MAX)]);
    assert_eq!(reg(&vm, 5), 1, "nothing is loaded");
    let undefined = Event::FaultTaken(GuestFault::Undefined);
    let taken = Hal::machine().events(VM, 0).into_iter().filter(|event| *event == undefined);
    assert_eq!(taken.count(), 3);
    assert_eq!((vm.events(VcpuEvent::FaultInjected), vm.events(VcpuEvent::Unclaimed)), (3, 3));
}
