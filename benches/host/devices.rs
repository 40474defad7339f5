//! Dispatch of an MMIO access to its device, beside `vm-device`.

use std::hint::black_box;
use std::sync::Arc;

use axerrno::AxResult;
use axvm::device::{AxVmDevices, BaseDeviceOps, EmuDeviceType};
use axvm::mm::{GpaRange, GuestPhysAddr};
use axvm::vcpu::AccessWidth;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};

use crate::report::{OURS, Op, random_below};

const COUNTS: [usize; 4] = [4, 16, 64, 256];

/// The rows of the table, one for each of `COUNTS`.
pub const OPS: &[Op] = &[
    Op::instr("MMIO dispatch among 4 devices", 60.0),
    Op::instr("MMIO dispatch among 16 devices", 75.0),
    Op::instr("MMIO dispatch among 64 devices", 90.0),
    Op::instr("MMIO dispatch among 256 devices", 110.0),
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
        ours(op, count);
    }
}

/// Addresses of 32-bit registers of random devices.
pub fn addresses(count: usize) -> Vec<usize> {
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

/// A page of registers, read like `Register`.
struct Device {
    base: usize,
    value: u32,
}

impl BaseDeviceOps<GpaRange> for Device {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> GpaRange {
        GpaRange::new(self.base.into(), SIZE).expect("a range")
    }

    fn handle_read(&self, addr: GuestPhysAddr, _: AccessWidth) -> AxResult<usize> {
        Ok((self.value ^ (addr.as_usize() - self.base) as u32) as usize)
    }

    fn handle_write(&self, _: GuestPhysAddr, _: AccessWidth, value: usize) -> AxResult {
        black_box(value);
        Ok(())
    }
}

/// The devices that [`addresses`] are for.
pub fn devices(count: usize) -> impl Iterator<Item = Arc<dyn BaseDeviceOps<GpaRange>>> {
    let device = |index| Device { base: BASE + index * STRIDE, value: index as u32 };
    (0..count).map(move |index| Arc::new(device(index)) as _)
}

fn ours(op: &Op, count: usize) {
    let bus = AxVmDevices::new();
    devices(count).for_each(|device| bus.add_mmio_dev(device).expect("no overlap"));
    let addresses = addresses(count);
    for &gpa in &addresses {
        let value = bus.handle_mmio_read(gpa.into(), AccessWidth::Dword);
        let index = (gpa - BASE) / STRIDE;
        assert_eq!(value, Ok(index ^ ((gpa - BASE) % STRIDE)));
    }
    op.each(OURS, &addresses, |gpa| bus.handle_mmio_read(gpa.into(), AccessWidth::Dword));
}
