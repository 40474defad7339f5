//! Memory-mapped devices.

use axerrno::AxErrorKind;
use axvm::{
    device::WidthSet,
    mm::GpaRange,
    vcpu::{
        AccessWidth::{self, Byte, Dword, Qword, Word},
        ExitKind, GuestFault, LoadTarget, VcpuEvent,
    },
};
use axvm_testkit::{Event, MockHal, Step, TestDevice, Touch, VM, gpa_range, mock_hal, test_config};

use crate::support::{play, preset, reg, start};

mock_hal!(struct Hal { arena: 16 << 20 });

const AT: usize = 0x900_0000;
const WIDTHS: [AccessWidth; 4] = [Byte, Word, Dword, Qword];

fn device(value: u64) -> std::sync::Arc<TestDevice<GpaRange>> {
    TestDevice::new(gpa_range(AT, 0x20), value)
}

fn load(gpa: usize, width: AccessWidth, target: LoadTarget) -> Step {
    Step::Load { gpa, width, target }
}

/// What the manuals say of a load, worked out another way than the crate does.
fn expected(old: u64, raw: u64, width: AccessWidth, reg_width: AccessWidth, signed: bool) -> u64 {
    let low = |value: u64, bytes: usize| (value as u128 & ((1u128 << (8 * bytes)) - 1)) as u64;
    let shift = 64 - 8 * width.size();
    let extended = match signed {
        true => (((raw << shift) as i64) >> shift) as u64,
        false => low(raw, width.size()),
    };
    match reg_width {
        Byte | Word => (old - low(old, reg_width.size())) + low(extended, reg_width.size()),
        Dword => low(extended, 4),
        Qword => extended,
    }
}

#[test]
fn a_load_of_any_width_extends_to_its_register_and_spares_the_rest() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let old = 0x1122_3344_5566_7788;
    for raw in [0x8081_8283_8485_8687u64, 0x0102_0304_7576_7778] {
        let device = device(raw);
        vm.add_mmio_device(device.clone()).unwrap();
        for width in WIDTHS {
            for reg_width in WIDTHS.into_iter().filter(|reg| *reg >= width) {
                for signed_ext in [false, true] {
                    let target = LoadTarget { reg: 7, reg_width, signed_ext };
                    play(&vm, [preset(7, old), load(AT + 8, width, target)]);
                    let want = expected(old, raw, width, reg_width, signed_ext);
                    assert_eq!(reg(&vm, 7), want, "{width:?} to {target:?}");
                    assert_eq!(device.take(), [Touch::Read(AT + 8, width)]);
                }
            }
        }
        vm.get_devices().remove_mmio_dev(AT.into()).unwrap();
    }
}

#[test]
fn a_store_of_any_width_reaches_the_device_with_its_own_bits_alone() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(0);
    vm.add_mmio_device(device.clone()).unwrap();
    for width in WIDTHS {
        play(&vm, [Step::store(AT, width, 0x8877_6655_4433_2211)]);
        let value = 0x8877_6655_4433_2211u64 & (u64::MAX >> (64 - 8 * width.size()));
        assert_eq!(device.take(), [Touch::Write(AT, width, value as usize)]);
    }
}

#[test]
fn a_pair_reaches_the_device_access_by_access() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(0x7f);
    vm.add_mmio_device(device.clone()).unwrap();
    let pair = Step::pair(Step::load(AT, Qword, 1), Step::load(AT + 8, Qword, 2));
    let stores = Step::pair(Step::store(AT, Dword, 1), Step::store(AT + 4, Dword, 2));
    let pc = vm.vcpu_state(0).unwrap().pc;
    play(&vm, [pair, stores]);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (0x7f, 0x7f));
    let all = [
        Touch::Read(AT, Qword),
        Touch::Read(AT + 8, Qword),
        Touch::Write(AT, Dword, 1),
        Touch::Write(AT + 4, Dword, 2),
    ];
    assert_eq!(device.take(), all);
    assert_eq!(vm.vcpu_state(0).unwrap().pc, pc + 8, "each instruction is skipped once");
    assert_eq!(vm.exits(ExitKind::MemFault), 2, "its second access is no exit");
}

#[test]
fn the_second_half_of_a_pair_may_meet_nothing_or_memory() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    vm.add_mmio_device(TestDevice::new(gpa_range(0x8000, 0x8), 5)).unwrap();
    play(&vm, [Step::pair(Step::load(0x8000, Qword, 1), Step::load(0x8008, Qword, 2))]);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (5, u64::MAX));
    // A copy between device and memory, both ways: the device is touched once.
    vm.get_devices().remove_mmio_dev(0x8000.into()).unwrap();
    let device = TestDevice::new(gpa_range(0x8000, 0x8), 5);
    vm.add_mmio_device(device.clone()).unwrap();
    vm.write_to_guest_of(0x7ff8.into(), &6u64).unwrap();
    play(&vm, [Step::pair(Step::load(0x8000, Qword, 1), Step::load(0x7ff8, Qword, 2))]);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (5, 6));
    play(
        &vm,
        [Step::pair(Step::load(0x8000, Qword, 1), Step::store(0x7ff8, Word, 0x1_0007)).late()],
    );
    assert_eq!(vm.read_from_guest_of::<u64>(0x7ff8.into()), Ok(7));
    assert_eq!(device.take(), [Touch::Read(0x8000, Qword); 2]);
}

#[test]
fn an_instruction_that_is_decoded_late_works_as_one_that_was_known() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(0xab);
    vm.add_mmio_device(device.clone()).unwrap();
    play(&vm, [Step::load(AT, Byte, 3).late(), Step::store(AT, Word, 9).late()]);
    assert_eq!(reg(&vm, 3), 0xab);
    assert_eq!(device.take(), [Touch::Read(AT, Byte), Touch::Write(AT, Word, 9)]);
    // Memory is not worth decoding.
    Hal::machine().take_trace();
    play(&vm, [Step::load(0x4000, Byte, 3).late()]);
    let decoded = |event: &Event| matches!(event, Event::Decode(_));
    assert!(!Hal::machine().events(VM, 0).iter().any(decoded));
}

#[test]
fn an_instruction_that_nobody_can_decode_is_a_fault_of_the_guest_s() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(0xab);
    vm.add_mmio_device(device.clone()).unwrap();
    play(&vm, [Step::load(AT, Byte, 3).undecodable(), preset(4, 4)]);
    assert_eq!(device.take(), []);
    assert!(Hal::machine().events(VM, 0).contains(&Event::FaultTaken(GuestFault::Bus)));
    assert_eq!((vm.events(VcpuEvent::Unclaimed), vm.events(VcpuEvent::FaultInjected)), (1, 1));
}

#[test]
fn a_fetch_or_a_page_walk_from_a_device_is_a_fault_and_the_device_sees_nothing() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(0xab);
    vm.add_mmio_device(device.clone()).unwrap();
    play(&vm, [Step::Fetch { gpa: AT }, Step::Walk { gpa: AT }]);
    assert_eq!(device.take(), []);
    assert_eq!(vm.events(VcpuEvent::FaultInjected), 2);
}

#[test]
fn an_access_must_lie_wholly_in_one_device_and_have_a_legal_width() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let first = TestDevice::new(gpa_range(AT, 0x1c), 1);
    let range = gpa_range(AT + 0x1c, 0x20);
    let second = TestDevice::with_widths(range, 2, WidthSet::one(Dword));
    vm.add_mmio_device(first.clone()).unwrap();
    vm.add_mmio_device(second.clone()).unwrap();
    // Across the border of the two, and across the end of the second.
    play(&vm, [Step::load(AT + 0x18, Qword, 1), Step::load(AT + 0x38, Qword, 2)]);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (u64::MAX, u64::MAX));
    play(&vm, [Step::load(AT + 0x20, Byte, 3), Step::store(AT + 0x20, Qword, 1)]);
    assert_eq!(reg(&vm, 3), 0xff);
    assert_eq!((first.take(), second.take()), (vec![], vec![]));
    assert_eq!(vm.events(VcpuEvent::Unclaimed), 4);
    play(&vm, [Step::load(AT + 0x18, Dword, 1), Step::load(AT + 0x38, Dword, 2)]);
    assert_eq!((reg(&vm, 1), reg(&vm, 2)), (1, 2));
}

#[test]
fn a_device_s_error_is_as_an_access_to_nothing_and_counted() {
    let (vm, _turn) = start::<Hal>(test_config(1));
    let device = device(1);
    device.fail(Some(AxErrorKind::Io.into()));
    vm.add_mmio_device(device.clone()).unwrap();
    play(&vm, [Step::load(AT, Word, 1), Step::store(AT, Word, 1)]);
    assert_eq!(reg(&vm, 1), 0xffff);
    assert_eq!((vm.events(VcpuEvent::DeviceError), vm.events(VcpuEvent::Unclaimed)), (2, 0));
    device.fail(None);
    play(&vm, [Step::load(AT, Word, 1)]);
    assert_eq!(reg(&vm, 1), 1);
}
