//! What a device is: the ranges it answers for, and its handlers.

use core::ops::BitOr;

use axerrno::{AxError, AxResult};

use crate::{
    mm::{GpaRange, GuestPhysAddr},
    vcpu::{AccessWidth, Port, SysRegAddr},
};

/// A non-empty range of the addresses of one kind: guest-physical, port or system register.
pub trait DeviceAddrRange: Copy {
    /// One address.
    type Addr: Copy;

    /// The first and the last address as numbers, both inclusive.
    fn bounds(self) -> (usize, usize);

    /// The address as a number, in the order that `bounds` uses.
    fn number(addr: Self::Addr) -> usize;

    /// How many addresses beyond its first one an access of this width touches.
    fn reach(width: AccessWidth) -> usize {
        width.size() - 1
    }

    /// Whether `addr` lies in the range.
    fn contains(self, addr: Self::Addr) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(&Self::number(addr))
    }
}

/// Half-open, in bytes.
impl DeviceAddrRange for GpaRange {
    type Addr = GuestPhysAddr;

    fn bounds(self) -> (usize, usize) {
        (self.start().as_usize(), self.end().as_usize().wrapping_sub(1))
    }

    fn number(addr: GuestPhysAddr) -> usize {
        addr.as_usize()
    }
}

/// I/O ports, both ends inclusive: `0xffff` is a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// The ports `first ..= last`; none unless `first <= last`.
    pub const fn new(first: Port, last: Port) -> Option<Self> {
        if first.0 <= last.0 { Some(Self { first, last }) } else { None }
    }

    /// The first port.
    pub const fn first(self) -> Port {
        self.first
    }

    /// The last port.
    pub const fn last(self) -> Port {
        self.last
    }
}

impl DeviceAddrRange for PortRange {
    type Addr = Port;

    fn bounds(self) -> (usize, usize) {
        (self.first.0.into(), self.last.0.into())
    }

    fn number(port: Port) -> usize {
        port.0.into()
    }
}

/// System registers, both ends inclusive. A register is one address, whatever its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SysRegRange {
    first: SysRegAddr,
    last: SysRegAddr,
}

impl SysRegRange {
    /// The registers `first ..= last`; none unless `first <= last`.
    pub const fn new(first: SysRegAddr, last: SysRegAddr) -> Option<Self> {
        if first.0 <= last.0 { Some(Self { first, last }) } else { None }
    }

    /// The first register.
    pub const fn first(self) -> SysRegAddr {
        self.first
    }

    /// The last register.
    pub const fn last(self) -> SysRegAddr {
        self.last
    }
}

impl DeviceAddrRange for SysRegRange {
    type Addr = SysRegAddr;

    fn bounds(self) -> (usize, usize) {
        (self.first.0, self.last.0)
    }

    fn number(addr: SysRegAddr) -> usize {
        addr.0
    }

    fn reach(_: AccessWidth) -> usize {
        0
    }
}

/// A set of access widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WidthSet(u8);

impl WidthSet {
    /// 1, 2, 4 and 8 bytes.
    pub const ALL: Self = Self(0b1111);

    /// One width.
    pub const fn one(width: AccessWidth) -> Self {
        Self(width as u8)
    }

    /// Whether `width` is in the set.
    pub const fn contains(self, width: AccessWidth) -> bool {
        self.0 & width as u8 != 0
    }
}

impl From<AccessWidth> for WidthSet {
    fn from(width: AccessWidth) -> Self {
        Self::one(width)
    }
}

impl BitOr for WidthSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A device, as far as one kind of address goes.
///
/// The handlers run on the vCPU that made the access, several at once when several vCPUs do; the
/// device locks what it shares. They get only accesses that lie wholly in the range that
/// [`address_range`](Self::address_range) gave when the device was added, with a width in
/// [`legal_widths`](Self::legal_widths); an access need not be aligned. The guest chooses
/// address, width and value: nothing it chooses may make a handler panic.
///
/// **A handler must not add devices to its own VM or remove any**: that waits for running
/// handlers to end.
///
/// A device with several ranges is added once for each, behind wrappers that share it.
pub trait BaseDeviceOps<R: DeviceAddrRange>: Send + Sync {
    /// What kind of device it is.
    fn emu_type(&self) -> EmuDeviceType;

    /// The addresses it answers for. Asked once, when the device is added.
    fn address_range(&self) -> R;

    /// The guest reads. `addr` is absolute; bits of the result above the width are ignored.
    ///
    /// # Errors
    /// Whatever goes wrong in the device; the guest then sees what an access to nothing does.
    fn handle_read(&self, addr: R::Addr, width: AccessWidth) -> AxResult<usize>;

    /// The guest writes. `addr` is absolute; `value` has no bit set above the width.
    ///
    /// # Errors
    /// Whatever goes wrong in the device; the guest then sees what an access to nothing does.
    fn handle_write(&self, addr: R::Addr, width: AccessWidth, value: usize) -> AxResult;

    /// The widths it can be accessed with. Asked once, when the device is added.
    fn legal_widths(&self) -> WidthSet {
        WidthSet::ALL
    }

    /// Back to the state at power-on; interrupt lines are lowered. No handler runs meanwhile.
    fn reset(&self) {}
}

/// A device behind guest-physical addresses.
pub trait BaseMmioDeviceOps: BaseDeviceOps<GpaRange> {}
impl<T: BaseDeviceOps<GpaRange> + ?Sized> BaseMmioDeviceOps for T {}

/// A device behind I/O ports.
pub trait BasePortDeviceOps: BaseDeviceOps<PortRange> {}
impl<T: BaseDeviceOps<PortRange> + ?Sized> BasePortDeviceOps for T {}

/// A device behind system registers.
pub trait BaseSysRegDeviceOps: BaseDeviceOps<SysRegRange> {}
impl<T: BaseDeviceOps<SysRegRange> + ?Sized> BaseSysRegDeviceOps for T {}

/// The kinds of emulated devices, with the numbers that configuration files use for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
#[non_exhaustive]
pub enum EmuDeviceType {
    /// Reads as 0, ignores writes.
    Dummy = 0x0,
    /// An interrupt controller that is emulated as a whole.
    InterruptController = 0x1,
    /// A serial console.
    Console = 0x2,
    /// A channel between VMs.
    IvcChannel = 0xa,
    /// The redistributors of a partially passed-through Arm GIC.
    GpptRedistributor = 0x20,
    /// Its distributor.
    GpptDistributor = 0x21,
    /// Its interrupt translation service.
    GpptIts = 0x22,
    /// A partially passed-through RISC-V PLIC.
    Pppt = 0x30,
    /// A virtio block device.
    VirtioBlk = 0xe1,
    /// A virtio network device.
    VirtioNet = 0xe2,
    /// A virtio console.
    VirtioConsole = 0xe3,
}

/// `InvalidInput` for a number that names no kind.
impl TryFrom<usize> for EmuDeviceType {
    type Error = AxError;

    fn try_from(number: usize) -> AxResult<Self> {
        Ok(match number {
            0x0 => Self::Dummy,
            0x1 => Self::InterruptController,
            0x2 => Self::Console,
            0xa => Self::IvcChannel,
            0x20 => Self::GpptRedistributor,
            0x21 => Self::GpptDistributor,
            0x22 => Self::GpptIts,
            0x30 => Self::Pppt,
            0xe1 => Self::VirtioBlk,
            0xe2 => Self::VirtioNet,
            0xe3 => Self::VirtioConsole,
            _ => return Err(AxError::InvalidInput),
        })
    }
}

/// A device of any kind of address that reads as 0 and ignores writes.
#[derive(Clone, Copy, Debug)]
pub struct Dummy<R>(R);

impl<R> Dummy<R> {
    /// A dummy for this range.
    pub const fn new(range: R) -> Self {
        Self(range)
    }
}

impl<R: DeviceAddrRange + Send + Sync> BaseDeviceOps<R> for Dummy<R> {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> R {
        self.0
    }

    fn handle_read(&self, _: R::Addr, _: AccessWidth) -> AxResult<usize> {
        Ok(0)
    }

    fn handle_write(&self, _: R::Addr, _: AccessWidth, _: usize) -> AxResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_types_have_the_numbers_of_the_configuration_files() {
        let known = (0..0x1000).filter_map(|number| {
            let kind = EmuDeviceType::try_from(number).ok()?;
            assert_eq!(kind as usize, number);
            Some(number)
        });
        assert!(known.eq([0x0, 0x1, 0x2, 0xa, 0x20, 0x21, 0x22, 0x30, 0xe1, 0xe2, 0xe3]));
    }

    #[test]
    fn port_and_register_ranges_include_both_ends_and_cannot_be_inverted() {
        let ports = PortRange::new(Port(0xfff0), Port(0xffff)).unwrap();
        assert!(ports.contains(Port(0xfff0)) && ports.contains(Port(0xffff)));
        assert!(!ports.contains(Port(0xffef)));
        assert_eq!(PortRange::new(Port(2), Port(1)), None);
        assert_eq!(SysRegRange::new(SysRegAddr(2), SysRegAddr(1)), None);
        let register = SysRegRange::new(SysRegAddr(usize::MAX), SysRegAddr(usize::MAX)).unwrap();
        assert!(register.contains(SysRegAddr(usize::MAX)));
    }

    #[test]
    fn a_guest_physical_range_is_half_open() {
        let range = GpaRange::new(0x1000.into(), 0x1000).unwrap();
        assert!(!DeviceAddrRange::contains(range, 0x2000.into()));
        assert!(DeviceAddrRange::contains(range, 0x1fff.into()));
    }

    #[test]
    fn a_width_set_holds_exactly_its_widths() {
        use AccessWidth::*;
        let set = WidthSet::one(Byte) | Dword.into();
        assert_eq!([Byte, Word, Dword, Qword].map(|w| set.contains(w)), [true, false, true, false]);
        assert!([Byte, Word, Dword, Qword].into_iter().all(|w| WidthSet::ALL.contains(w)));
    }
}
