use super::*;
use crate::device::{Dummy, EmuDeviceType, WidthSet};
use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Reads as all ones; remembers the last write and the number of resets.
struct Probe<R> {
    range: R,
    written: AtomicUsize,
    resets: AtomicUsize,
}

fn probe<R>(range: R) -> Arc<Probe<R>> {
    Arc::new(Probe { range, written: AtomicUsize::new(0), resets: AtomicUsize::new(0) })
}

impl<R: crate::device::DeviceAddrRange + Send + Sync> BaseDeviceOps<R> for Probe<R> {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Console
    }

    fn address_range(&self) -> R {
        self.range
    }

    fn legal_widths(&self) -> WidthSet {
        WidthSet::one(AccessWidth::Byte) | AccessWidth::Dword.into()
    }

    fn handle_read(&self, _: R::Addr, _: AccessWidth) -> AxResult<usize> {
        Ok(usize::MAX)
    }

    fn handle_write(&self, _: R::Addr, _: AccessWidth, value: usize) -> AxResult {
        self.written.store(value, SeqCst);
        if value == 0xbad { Err(AxError::Io) } else { Ok(()) }
    }

    fn reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
}

fn gpa(start: usize, size: usize) -> GpaRange {
    GpaRange::new(start.into(), size).unwrap()
}

#[test]
fn a_value_has_no_bits_above_the_width() {
    let devices = AxVmDevices::new();
    let device = probe(gpa(0x1000, 0x100));
    devices.add_mmio_dev(device.clone()).unwrap();
    assert_eq!(devices.handle_mmio_read(0x1000.into(), AccessWidth::Byte), Ok(0xff));
    assert_eq!(devices.handle_mmio_read(0x1000.into(), AccessWidth::Dword), Ok(0xffff_ffff));
    devices.handle_mmio_write(0x10ff.into(), AccessWidth::Byte, 0x1234).unwrap();
    assert_eq!(device.written.load(SeqCst), 0x34);
}

#[test]
fn an_access_to_nothing_is_not_found_and_a_handler_s_error_is_its_own() {
    let devices = AxVmDevices::new();
    devices.add_mmio_dev(probe(gpa(0x1000, 0x100))).unwrap();
    let read = |addr: usize, width| devices.handle_mmio_read(addr.into(), width);
    assert_eq!(read(0xfff, AccessWidth::Byte), Err(AxError::NotFound), "below");
    assert_eq!(read(0x1100, AccessWidth::Byte), Err(AxError::NotFound), "above");
    assert_eq!(read(0xffe, AccessWidth::Dword), Err(AxError::NotFound), "straddles the start");
    assert_eq!(read(0x10fe, AccessWidth::Dword), Err(AxError::NotFound), "straddles the end");
    assert_eq!(read(0x1000, AccessWidth::Word), Err(AxError::NotFound), "illegal width");
    assert_eq!(read(usize::MAX, AccessWidth::Qword), Err(AxError::NotFound), "overflows");
    let write = |value| devices.handle_mmio_write(0x1000.into(), AccessWidth::Dword, value);
    assert_eq!(write(0xbad), Err(AxError::Io));
    assert_eq!(write(0xbed), Ok(()));
    assert_eq!(devices.mmio.read(0, 0.into(), AccessWidth::Byte), None, "left to the VM's policy");
}

#[test]
fn the_last_port_takes_no_access_that_goes_beyond_it() {
    let devices = AxVmDevices::new();
    let range = PortRange::new(Port(0xfff0), Port(0xffff)).unwrap();
    devices.add_port_dev(probe(range)).unwrap();
    let read = |port, width| devices.handle_port_read(Port(port), width);
    assert_eq!(read(0xffff, AccessWidth::Dword), Err(AxError::NotFound));
    assert_eq!(read(0xfffd, AccessWidth::Dword), Err(AxError::NotFound));
    assert_eq!(read(0xfffc, AccessWidth::Dword), Ok(0xffff_ffff));
    assert_eq!(read(0xffff, AccessWidth::Byte), Ok(0xff));
    assert_eq!(devices.handle_port_write(Port(0xffff), AccessWidth::Byte, 1), Ok(()));
    assert!(devices.find_port_dev(Port(0xffef)).is_none());
}

#[test]
fn system_registers_are_found_by_number() {
    let devices = AxVmDevices::new();
    let range = SysRegRange::new(SysRegAddr(0x808), SysRegAddr(0x83f)).unwrap();
    devices.add_sys_reg_dev(Arc::new(Dummy::new(range))).unwrap();
    assert_eq!(devices.handle_sys_reg_read(SysRegAddr(0x83f), AccessWidth::Qword), Ok(0));
    assert_eq!(devices.handle_sys_reg_write(SysRegAddr(0x808), AccessWidth::Qword, 1), Ok(()));
    let beyond = devices.handle_sys_reg_read(SysRegAddr(0x840), AccessWidth::Qword);
    assert_eq!(beyond, Err(AxError::NotFound));
}

#[test]
fn what_is_added_can_be_found_listed_reset_and_removed() {
    let devices = AxVmDevices::new();
    let added = [0x3000, 0x1000, 0x2000].map(|start| probe(gpa(start, 0x1000)));
    for device in &added {
        devices.add_mmio_dev(device.clone()).unwrap();
    }
    let starts = || {
        let listed = devices.iter_mmio_dev().unwrap();
        listed.iter().map(|device| device.address_range().start().as_usize()).collect::<Vec<_>>()
    };
    assert_eq!(starts(), [0x1000, 0x2000, 0x3000]);
    let found = devices.find_mmio_dev(0x2fff.into()).unwrap();
    assert_eq!(found.address_range(), gpa(0x2000, 0x1000));
    drop(found);
    devices.reset();
    assert!(added.iter().all(|device| device.resets.load(SeqCst) == 1));
    assert_eq!(devices.remove_mmio_dev(0x2001.into()).err(), Some(AxError::NotFound));
    assert!(devices.remove_mmio_dev(0x2000.into()).is_ok());
    assert_eq!(starts(), [0x1000, 0x3000]);
    assert!(devices.find_mmio_dev(0x2000.into()).is_none());
    assert_eq!(Arc::strong_count(&added[2]), 1, "nothing keeps a removed device");
    devices.add_mmio_dev(added[2].clone()).unwrap();
    drop(devices);
    assert!(added.iter().all(|device| Arc::strong_count(device) == 1));
}

#[test]
fn a_device_of_either_trait_object_can_be_added() {
    let devices = AxVmDevices::new();
    let device: Arc<dyn crate::device::BaseMmioDeviceOps> = probe(gpa(0, 1));
    devices.add_mmio_dev(device).unwrap();
    assert_eq!(devices.handle_mmio_read(0.into(), AccessWidth::Byte), Ok(0xff));
}

/// A handler that runs until it is let go.
struct Slow {
    entered: Barrier,
    leave: AtomicBool,
    running: AtomicBool,
}

impl BaseDeviceOps<GpaRange> for Slow {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> GpaRange {
        gpa(0x1000, 0x1000)
    }

    fn handle_read(&self, _: GuestPhysAddr, _: AccessWidth) -> AxResult<usize> {
        self.running.store(true, SeqCst);
        self.entered.wait();
        while !self.leave.load(SeqCst) {
            thread::yield_now();
        }
        self.running.store(false, SeqCst);
        Ok(0)
    }

    fn handle_write(&self, _: GuestPhysAddr, _: AccessWidth, _: usize) -> AxResult {
        Ok(())
    }
}

#[test]
fn removal_returns_after_the_last_handler_of_the_device_has() {
    let devices = AxVmDevices::with_relax(thread::yield_now);
    let slow = Arc::new(Slow {
        entered: Barrier::new(2),
        leave: AtomicBool::new(false),
        running: AtomicBool::new(false),
    });
    devices.add_mmio_dev(slow.clone()).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| devices.mmio.read(0, 0x1000.into(), AccessWidth::Byte));
        slow.entered.wait();
        let remover = scope.spawn(|| {
            let removed = devices.remove_mmio_dev(0x1000.into());
            assert!(!slow.running.load(SeqCst), "removed under a running handler");
            removed.map(drop)
        });
        // The device is gone at once for others, who are not held up.
        while devices.find_mmio_dev(0x1000.into()).is_some() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!remover.is_finished());
        slow.leave.store(true, SeqCst);
        assert_eq!(remover.join().unwrap(), Ok(()));
        assert_eq!(reader.join().unwrap(), Some(Ok(0)));
    });
}

#[test]
fn devices_come_and_go_while_vcpus_use_others() {
    let devices = AxVmDevices::with_relax(thread::yield_now);
    devices.add_mmio_dev(Arc::new(Dummy::new(gpa(0x5000, 0x1000)))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for vcpu in 0..2 {
            let (devices, done) = (&devices, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let read =
                        |addr: usize| devices.mmio.read(vcpu, addr.into(), AccessWidth::Byte);
                    assert_eq!(read(0x5000), Some(Ok(0)));
                    assert!(matches!(read(0x1000), Some(Ok(0xff)) | None));
                }
            });
        }
        for _ in 0..500 {
            let device = probe(gpa(0x1000, 0x1000));
            devices.add_mmio_dev(device.clone()).unwrap();
            drop(devices.remove_mmio_dev(0x1000.into()).unwrap());
            assert_eq!(Arc::strong_count(&device), 1);
        }
        done.store(true, SeqCst);
    });
}

#[test]
fn channels_need_a_window_and_a_window_in_use_stays() {
    let devices = AxVmDevices::new();
    assert_eq!(devices.alloc_ivc_channel(0), Err(AxError::InvalidInput));
    assert_eq!(devices.alloc_ivc_channel(1), Err(AxError::NoMemory));
    assert_eq!(devices.release_ivc_channel(0.into(), 1), Err(AxError::InvalidInput));
    assert_eq!(devices.set_ivc_window(gpa(1, 0x1000)), Err(AxError::InvalidInput));
    devices.set_ivc_window(gpa(0x8000, 0x2000)).unwrap();
    assert_eq!(devices.alloc_ivc_channel(1), Ok((0x8000.into(), 0x1000)));
    assert_eq!(devices.set_ivc_window(gpa(0, 0x1000)), Err(AxError::BadState));
    devices.release_ivc_channel(0x8000.into(), 1).unwrap();
    devices.set_ivc_window(gpa(0, 0x1000)).unwrap();
    devices.alloc_ivc_channel(0x1000).unwrap();
    devices.reset();
    assert_eq!(devices.alloc_ivc_channel(0x1000), Ok((0.into(), 0x1000)));
}
