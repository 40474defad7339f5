//! Dispatch of an MMIO access to its device, beside `vm-device`.

use std::hint::black_box;
use std::sync::Arc;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};

use crate::report::{Op, random_below};

const COUNTS: [usize; 4] = [4, 16, 64, 256];

/// The rows of the table, one for each of `COUNTS`.
pub const OPS: &[Op] = &[
    Op::instr("MMIO dispatch among 4 devices", 60.0).pending(),
    Op::instr("MMIO dispatch among 16 devices", 75.0).pending(),
    Op::instr("MMIO dispatch among 64 devices", 90.0).pending(),
    Op::instr("MMIO dispatch among 256 devices", 110.0).pending(),
];

const BASE: usize = 0x1000_0000;
const SIZE: usize = 0x1000;
/// From one device to the next: every other page is empty.
const STRIDE: usize = 0x2000;
const ACCESSES: usize = 20_000;

/// Runs every case.
pub fn run() {
    for (op, count) in OPS.iter().zip(COUNTS) {
        vm_device(op, count);
    }
}

/// Addresses of 32-bit registers of random devices.
fn addresses(count: usize) -> Vec<usize> {
    random_below(count * SIZE / 4)
        .take(ACCESSES)
        .map(|word| BASE + word * 4 / SIZE * STRIDE + word * 4 % SIZE)
        .collect()
}

struct Register(u32);

impl DeviceMmio for Register {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.copy_from_slice(&(self.0 ^ offset as u32).to_le_bytes());
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &[u8]) {
        black_box(data);
    }
}

fn vm_device(op: &Op, count: usize) {
    let mut bus = IoManager::new();
    for device in 0..count {
        let base = MmioAddress((BASE + device * STRIDE) as u64);
        let range = MmioRange::new(base, SIZE as u64).expect("a range");
        bus.register_mmio(range, Arc::new(Register(device as u32))).expect("no overlap");
    }
    op.each("vm-device", &addresses(count), |gpa| {
        let mut data = [0; 4];
        bus.mmio_read(MmioAddress(gpa as u64), &mut data).expect("a device is there");
        u32::from_le_bytes(data)
    });
}
