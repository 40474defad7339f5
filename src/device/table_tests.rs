use super::*;
use crate::{
    device::{Dummy, EmuDeviceType, SysRegRange},
    mm::{GpaRange, GuestPhysAddr},
    vcpu::SysRegAddr,
};
use proptest::prelude::*;
use std::vec;

/// A range that promises nothing.
#[derive(Clone, Copy)]
struct Raw(usize, usize);

impl DeviceAddrRange for Raw {
    type Addr = usize;

    fn bounds(self) -> (usize, usize) {
        (self.0, self.1)
    }

    fn number(addr: usize) -> usize {
        addr
    }
}

/// A device that says its number.
struct Numbered(GpaRange, usize, WidthSet);

impl BaseDeviceOps<GpaRange> for Numbered {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> GpaRange {
        self.0
    }

    fn legal_widths(&self) -> WidthSet {
        self.2
    }

    fn handle_read(&self, _: GuestPhysAddr, _: AccessWidth) -> AxResult<usize> {
        Ok(self.1)
    }

    fn handle_write(&self, _: GuestPhysAddr, _: AccessWidth, _: usize) -> AxResult {
        Ok(())
    }
}

#[test]
fn a_range_that_is_none_is_refused() {
    let table = DeviceTable::new();
    for range in [Raw(2, 1), Raw(0, usize::MAX), Raw(usize::MAX, usize::MAX)] {
        let error = table.with(Arc::new(Dummy::new(range))).err();
        assert_eq!(error, Some(AxError::InvalidInput));
    }
    assert!(table.find(0, AccessWidth::Byte).is_none());
}

#[test]
fn an_overlap_of_any_kind_is_refused_and_neighbours_are_not() {
    let table = DeviceTable::new().with(Arc::new(Dummy::new(Raw(0x100, 0x1ff)))).unwrap();
    for (first, last) in
        [(0x100, 0x1ff), (0x80, 0x100), (0x1ff, 0x280), (0x140, 0x14f), (0, 0x1000), (0x100, 0x100)]
    {
        let error = table.with(Arc::new(Dummy::new(Raw(first, last)))).err();
        assert_eq!(error, Some(AxError::AlreadyExists), "{first:#x}..={last:#x}");
    }
    let table = table.with(Arc::new(Dummy::new(Raw(0, 0xff)))).unwrap();
    assert!(table.with(Arc::new(Dummy::new(Raw(0x200, 0x2ff)))).is_ok());
}

#[test]
fn a_system_register_is_one_address_at_any_width() {
    let register = SysRegAddr(0x10);
    let range = SysRegRange::new(register, register).unwrap();
    let table = DeviceTable::new().with(Arc::new(Dummy::new(range))).unwrap();
    assert!(table.find(register, AccessWidth::Qword).is_some());
    assert!(table.find(SysRegAddr(0x11), AccessWidth::Qword).is_none());
    assert!(table.find(SysRegAddr(0xf), AccessWidth::Qword).is_none());
}

const WIDTHS: [AccessWidth; 4] =
    [AccessWidth::Byte, AccessWidth::Word, AccessWidth::Dword, AccessWidth::Qword];

proptest! {
    /// The model is a list that is searched from end to end.
    #[test]
    fn a_look_up_finds_what_a_linear_search_finds(
        steps in prop::collection::vec(
            (0u8..4, 0usize..600, 1usize..20, 0usize..4), 1..120
        ),
        base in prop::sample::select(vec![0, 0x1000, usize::MAX - 700])
    ) {
        let mut table: Box<DeviceTable<GpaRange>> = Box::new(DeviceTable::new());
        let mut model: Vec<(GpaRange, usize, WidthSet)> = vec![];
        for (number, (what, at, size, width)) in steps.into_iter().enumerate() {
            let start = GuestPhysAddr::from_usize(base + at);
            if what == 0 {
                let place = model.iter().position(|(range, ..)| range.start() == start);
                match (table.without(start), place) {
                    (Ok((rest, gone)), Some(place)) => {
                        table = rest;
                        prop_assert_eq!(gone.address_range(), model.remove(place).0);
                    }
                    (Err(error), None) => prop_assert_eq!(error, AxError::NotFound),
                    _ => prop_assert!(false, "removal"),
                }
                continue;
            }
            let range = GpaRange::new(start, size).unwrap();
            let widths = if what == 1 { WIDTHS[width].into() } else { WidthSet::ALL };
            let added = table.with(Arc::new(Numbered(range, number, widths)));
            if model.iter().any(|(other, ..)| other.overlaps(range)) {
                prop_assert_eq!(added.err(), Some(AxError::AlreadyExists));
            } else {
                table = added.ok().unwrap();
                model.push((range, number, widths));
            }
        }
        for at in 0..640 {
            let addr = GuestPhysAddr::from_usize(base.saturating_add(at));
            for width in WIDTHS {
                let found = table.find(addr, width);
                let want = model.iter().find(|(range, _, widths)| {
                    GpaRange::new(addr, width.size()).is_some_and(|all| range.contains_range(all))
                        && widths.contains(width)
                });
                prop_assert_eq!(
                    found.map(|device| device.handle_read(addr, width).unwrap()),
                    want.map(|(_, number, _)| *number)
                );
            }
            let holder = model.iter().find(|(range, ..)| range.contains(addr));
            prop_assert_eq!(
                table.at(addr).map(|device| device.address_range()),
                holder.map(|(range, ..)| *range)
            );
        }
        model.sort_by_key(|(range, ..)| range.start());
        prop_assert!(table.iter().map(|d| d.address_range()).eq(model.iter().map(|m| m.0)));
    }
}
