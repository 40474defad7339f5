//! Devices of all three kinds of address against a list that is searched from the front: which
//! device gets which access, by the host's calls and by a guest's exits, what the guest's
//! register holds afterwards, and what is counted. Between them, calls to the firmware.

#![no_main]

#[path = "device_dispatch/calls.rs"]
mod calls;
mod common;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use arbitrary::Arbitrary;
use axerrno::{AxError, AxErrorKind, AxResult};
use axvm::{
    config::{AxVMConfig, ForwardConfig, UnclaimedPolicy, VmMemMappingType},
    device::{
        AxVmDevices, BaseDeviceOps, DeviceAddrRange, EmuDeviceType, PortRange, SysRegRange,
        WidthSet,
    },
    mm::{ADDRESS_LIMIT, GpaRange, MappingFlags, PAGE_SIZE_4K},
    vcpu::{
        Access, AccessOp, AccessWidth, AxVCpuExitReason, AxVMPerCpu, Completion, DecodedAccess,
        ExitKind, GuestFault, GuestFence, LoadTarget, MemFault, Port, SysRegAddr, VcpuEvent,
        VcpuExit,
    },
    vm::{AxVM, AxVMRef},
};
use axvm_testkit::{Event, MockHal, Step, X86Like, enable_pcpus, mock_hal};
use calls::{Call, Console};
use common::{Place, Width};
use libfuzzer_sys::fuzz_target;

mock_hal!(struct Hal { arena: 32 << 20 });

type VCpu = X86Like<Hal>;

/// Lazy memory: pages to read and write, then pages to read.
const RAM: usize = 0x8000_0000;
const RAM_END: usize = RAM + 4 * PAGE_SIZE_4K;
const ROM_END: usize = RAM_END + 2 * PAGE_SIZE_4K;

#[derive(Debug, Arbitrary)]
struct Input {
    fault: bool,
    forward: [Option<(Place, u16)>; 3],
    ops: Vec<Op>,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Kind {
    Mmio,
    Port,
    SysReg,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Add { kind: Kind, start: Place, len: u16, widths: u8, checked: bool },
    Remove { kind: Kind, start: Place },
    Find { kind: Kind, addr: Place },
    Host { kind: Kind, addr: Place, width: Width, write: Option<u64> },
    Guest { kind: Kind, addr: Place, what: What, how: How, answer: u64 },
    Instruction { first: (Place, What), second: Option<(Place, What)>, decode: Decode },
    Call(Call),
    Reset,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct What {
    width: Width,
    op: GuestOp,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum GuestOp {
    Load { reg: u8, reg_width: Width, signed: bool },
    Store(u64),
}

/// What else a memory fault says.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct How {
    known: bool,
    access: u8,
    walk: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Arbitrary)]
enum Decode {
    Known,
    Late,
    Never,
}

impl What {
    fn decoded(self) -> DecodedAccess {
        let op = match self.op {
            GuestOp::Load { reg, reg_width, signed } => AccessOp::Read(LoadTarget {
                reg: reg % 32,
                reg_width: reg_width.into(),
                signed_ext: signed,
            }),
            GuestOp::Store(value) => AccessOp::Write(value),
        };
        DecodedAccess { width: self.width.into(), op }
    }
}

// ---- devices ----

/// A call of a handler.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Touch {
    id: usize,
    addr: usize,
    width: AccessWidth,
    write: Option<usize>,
}

thread_local! {
    static TOUCHED: RefCell<Vec<Touch>> = const { RefCell::new(Vec::new()) };
    static RESETS: Cell<usize> = const { Cell::new(0) };
    /// What answers depend on.
    static TICK: Cell<usize> = const { Cell::new(0) };
}

/// What a device says to an access now.
fn answer(id: usize, addr: usize) -> AxResult<usize> {
    let mix = (id ^ addr.rotate_left(32) ^ TICK.get().rotate_left(16))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mix = mix ^ mix >> 29;
    const ERRORS: [AxErrorKind; 4] =
        [AxErrorKind::Io, AxErrorKind::NoMemory, AxErrorKind::BadState, AxErrorKind::NotFound];
    match mix % 11 {
        0 => Err(ERRORS[mix / 11 % 4].into()),
        1 => Ok(usize::MAX),
        _ => Ok(mix),
    }
}

struct Device<R> {
    id: usize,
    range: R,
    widths: WidthSet,
}

impl<R: DeviceAddrRange + Send + Sync> BaseDeviceOps<R> for Device<R> {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> R {
        self.range
    }

    fn handle_read(&self, addr: R::Addr, width: AccessWidth) -> AxResult<usize> {
        let (id, addr) = (self.id, R::number(addr));
        TOUCHED.with_borrow_mut(|all| all.push(Touch { id, addr, width, write: None }));
        answer(id, addr)
    }

    fn handle_write(&self, addr: R::Addr, width: AccessWidth, value: usize) -> AxResult {
        let (id, addr) = (self.id, R::number(addr));
        TOUCHED.with_borrow_mut(|all| all.push(Touch { id, addr, width, write: Some(value) }));
        answer(id, addr).map(drop)
    }

    fn legal_widths(&self) -> WidthSet {
        self.widths
    }

    fn reset(&self) {
        RESETS.set(RESETS.get() + 1);
    }
}

/// The calls of `AxVmDevices` for one kind of address, by numbers.
trait Bus {
    type Range: DeviceAddrRange + Send + Sync + 'static;

    fn range(start: usize, len: u16) -> Option<Self::Range>;
    fn add(devices: &AxVmDevices, device: Arc<Device<Self::Range>>) -> AxResult;
    fn remove(devices: &AxVmDevices, start: usize)
    -> AxResult<Arc<dyn BaseDeviceOps<Self::Range>>>;
    fn find(devices: &AxVmDevices, addr: usize) -> Option<Arc<dyn BaseDeviceOps<Self::Range>>>;
    fn all(devices: &AxVmDevices) -> AxResult<Vec<Arc<dyn BaseDeviceOps<Self::Range>>>>;
    fn read(devices: &AxVmDevices, addr: usize, width: AccessWidth) -> AxResult<usize>;
    fn write(devices: &AxVmDevices, addr: usize, width: AccessWidth, value: usize) -> AxResult;
}

macro_rules! bus {
    ($name:ident, $range:ty, $addr:expr, $make:expr, $add:ident, $remove:ident, $find:ident,
     $all:ident, $read:ident, $write:ident) => {
        struct $name;

        impl Bus for $name {
            type Range = $range;

            fn range(start: usize, len: u16) -> Option<$range> {
                $make(start, len)
            }
            fn add(devices: &AxVmDevices, device: Arc<Device<$range>>) -> AxResult {
                devices.$add(device)
            }
            fn remove(
                devices: &AxVmDevices,
                start: usize,
            ) -> AxResult<Arc<dyn BaseDeviceOps<$range>>> {
                devices.$remove($addr(start))
            }
            fn find(devices: &AxVmDevices, addr: usize) -> Option<Arc<dyn BaseDeviceOps<$range>>> {
                devices.$find($addr(addr))
            }
            fn all(devices: &AxVmDevices) -> AxResult<Vec<Arc<dyn BaseDeviceOps<$range>>>> {
                devices.$all()
            }
            fn read(devices: &AxVmDevices, addr: usize, width: AccessWidth) -> AxResult<usize> {
                devices.$read($addr(addr), width)
            }
            fn write(
                devices: &AxVmDevices,
                addr: usize,
                width: AccessWidth,
                value: usize,
            ) -> AxResult {
                devices.$write($addr(addr), width, value)
            }
        }
    };
}

bus!(
    MmioBus,
    GpaRange,
    axvm::mm::GuestPhysAddr::from_usize,
    |start: usize, len: u16| GpaRange::new(start.into(), len.into()),
    add_mmio_dev,
    remove_mmio_dev,
    find_mmio_dev,
    iter_mmio_dev,
    handle_mmio_read,
    handle_mmio_write
);
bus!(
    PortBus,
    PortRange,
    |addr: usize| Port(addr as u16),
    |start: usize, len: u16| PortRange::new(
        Port(start as u16),
        Port((start as u16).wrapping_add(len & 0xff))
    ),
    add_port_dev,
    remove_port_dev,
    find_port_dev,
    iter_port_dev,
    handle_port_read,
    handle_port_write
);
bus!(
    SysRegBus,
    SysRegRange,
    SysRegAddr,
    |start: usize, len: u16| SysRegRange::new(
        SysRegAddr(start),
        SysRegAddr(start.wrapping_add((len & 0xff).into()))
    ),
    add_sys_reg_dev,
    remove_sys_reg_dev,
    find_sys_reg_dev,
    iter_sys_reg_dev,
    handle_sys_reg_read,
    handle_sys_reg_write
);

// ---- the model ----

#[derive(Clone, Copy)]
struct Listed {
    id: usize,
    first: usize,
    last: usize,
    widths: WidthSet,
}

/// What comes of a guest's access.
enum Outcome {
    Done(Completion),
    Asked,
}

struct Test {
    vm: AxVMRef<Hal, VCpu>,
    devices: [Vec<Listed>; 3],
    /// First and last.
    forward: [Option<(usize, usize)>; 3],
    fault: bool,
    next_id: usize,
    regs: [u64; 32],
    ram: BTreeMap<usize, u8>,
    populated: BTreeSet<usize>,
    events: [u64; VcpuEvent::ALL.len()],
    exits: [u64; ExitKind::ALL.len()],
    touched: Vec<Touch>,
    faults: Vec<GuestFault>,
    fences: Vec<GuestFence>,
    console: Console,
}

impl Test {
    /// The VM as configured; none where its forwarded addresses are memory.
    fn new(input: &Input) -> Option<Self> {
        let base = [0, ADDRESS_LIMIT, usize::MAX, RAM, RAM_END, ROM_END];
        let at =
            |kind: Kind| input.forward[kind as usize].map(|(at, len)| (at.resolve(&base), len));
        let mmio = at(Kind::Mmio).and_then(|(at, len)| MmioBus::range(at, len));
        let ports = at(Kind::Port).and_then(|(at, len)| PortBus::range(at, len));
        let sys_regs = at(Kind::SysReg).and_then(|(at, len)| SysRegBus::range(at, len));
        let config = AxVMConfig::new(1, "fuzz")
            .with_memory(
                RAM,
                RAM_END - RAM,
                MappingFlags::READ | MappingFlags::WRITE,
                VmMemMappingType::MapLazy,
            )
            .with_memory(RAM_END, ROM_END - RAM_END, MappingFlags::READ, VmMemMappingType::MapLazy)
            .with_unclaimed(if input.fault {
                UnclaimedPolicy::Fault
            } else {
                UnclaimedPolicy::Ignore
            })
            .with_forward(ForwardConfig {
                mmio: mmio.into_iter().collect(),
                ports: ports.iter().map(|r| (r.first().0, r.last().0)).collect(),
                sys_regs: sys_regs.iter().map(|r| (r.first().0, r.last().0)).collect(),
            });
        let vm = AxVM::new(config);
        let in_memory = |(first, last)| first < ROM_END && RAM <= last;
        if mmio.map(DeviceAddrRange::bounds).is_some_and(in_memory) {
            assert_eq!(vm.err(), Some(AxError::AlreadyExists));
            return None;
        }
        let vm = vm.expect("a VM");
        vm.boot().expect("boot");
        let console = Console::default();
        vm.set_firmware_console(console.backend()).expect("it has none");
        // The first entry on a CPU forgets what others left there.
        assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        Hal::machine().take_trace();
        Some(Self {
            vm,
            devices: Default::default(),
            forward: [
                mmio.map(DeviceAddrRange::bounds),
                ports.map(DeviceAddrRange::bounds),
                sys_regs.map(DeviceAddrRange::bounds),
            ],
            fault: input.fault,
            next_id: 0,
            regs: [0; 32],
            ram: BTreeMap::new(),
            populated: BTreeSet::new(),
            events: [0; VcpuEvent::ALL.len()],
            exits: [0; ExitKind::ALL.len()],
            touched: Vec::new(),
            faults: Vec::new(),
            fences: Vec::new(),
            console,
        })
    }

    fn resolve(&self, kind: Kind, place: Place) -> usize {
        let mut places =
            vec![0, usize::MAX, RAM, RAM_END, ROM_END, ADDRESS_LIMIT, 0xffff, 0x1_0000];
        for device in &self.devices[kind as usize] {
            places.extend([device.first, device.last]);
        }
        if let Some((first, last)) = self.forward[kind as usize] {
            places.extend([first, last]);
        }
        let addr = place.resolve(&places);
        if matches!(kind, Kind::Port) { addr & 0xffff } else { addr }
    }

    fn add<B: Bus>(&mut self, kind: Kind, start: usize, len: u16, widths: u8, checked: bool) {
        let Some(range) = B::range(start, len) else { return };
        let (first, last) = range.bounds();
        let mut set = WidthSet::one(
            [AccessWidth::Byte, AccessWidth::Word, AccessWidth::Dword, AccessWidth::Qword]
                [usize::from(widths & 3)],
        );
        for (bit, width) in [AccessWidth::Byte, AccessWidth::Qword].into_iter().enumerate() {
            if widths >> (2 + bit) & 1 != 0 {
                set = set | width.into();
            }
        }
        if widths >> 4 & 1 != 0 {
            set = WidthSet::ALL;
        }
        let id = self.next_id;
        let devices = &mut self.devices[kind as usize];
        let overlaps = |from: usize, to: usize| first <= to && from <= last;
        let checked = checked && matches!(kind, Kind::Mmio);
        let expected = if checked && overlaps(RAM, ROM_END - 1) {
            Err(AxError::AlreadyExists)
        } else if last == usize::MAX {
            Err(AxError::InvalidInput)
        } else if devices.iter().any(|device| overlaps(device.first, device.last)) {
            Err(AxError::AlreadyExists)
        } else {
            Ok(())
        };
        let device = Arc::new(Device { id, range, widths: set });
        let done = if checked {
            let range = GpaRange::from_bounds(first.into(), (last + 1).into()).expect("a range");
            self.vm.add_mmio_device(Arc::new(Device { id, range, widths: set }))
        } else {
            B::add(self.vm.get_devices(), device)
        };
        assert_eq!(done, expected);
        if done.is_ok() {
            self.next_id += 1;
            devices.push(Listed { id, first, last, widths: set });
        }
    }

    fn remove<B: Bus>(&mut self, kind: Kind, start: usize) {
        let devices = &mut self.devices[kind as usize];
        let known = devices.iter().position(|device| device.first == start);
        let removed = B::remove(self.vm.get_devices(), start);
        match known {
            Some(index) => {
                let gone = devices.swap_remove(index);
                let removed = removed.ok().expect("it was there");
                assert_eq!(removed.address_range().bounds(), (gone.first, gone.last));
                assert_eq!(Arc::strong_count(&removed), 1, "nobody keeps a removed device");
            }
            None => assert_eq!(removed.err(), Some(AxError::NotFound)),
        }
        let mut listed: Vec<_> = devices.iter().map(|device| device.first).collect();
        listed.sort_unstable();
        let all = B::all(self.vm.get_devices()).expect("the devices");
        assert!(all.iter().map(|device| device.address_range().bounds().0).eq(listed));
    }

    fn find<B: Bus>(&self, kind: Kind, addr: usize) {
        let mut devices = self.devices[kind as usize].iter();
        let known = devices.find(|device| device.first <= addr && addr <= device.last);
        let found =
            B::find(self.vm.get_devices(), addr).map(|found| found.address_range().bounds());
        assert_eq!(found, known.map(|device| (device.first, device.last)));
    }

    fn listed(&self, kind: Kind, addr: usize, width: AccessWidth) -> Option<Listed> {
        let fits = |device: &&Listed| {
            device.first <= addr
                && reaches(kind, addr, width) <= device.last as u128
                && device.widths.contains(width)
        };
        self.devices[kind as usize].iter().find(fits).copied()
    }

    fn host<B: Bus>(&mut self, kind: Kind, addr: usize, width: AccessWidth, write: Option<u64>) {
        let listed = self.listed(kind, addr, width);
        let mask = width.mask() as usize;
        let expected = match listed {
            None => Err(AxError::NotFound),
            Some(device) => {
                let write = write.map(|value| value as usize & mask);
                self.touched.push(Touch { id: device.id, addr, width, write });
                answer(device.id, addr)
            }
        };
        let devices = self.vm.get_devices();
        match write {
            None => {
                assert_eq!(B::read(devices, addr, width), expected.map(|value| value & mask));
            }
            Some(value) => {
                assert_eq!(B::write(devices, addr, width, value as usize), expected.map(drop));
            }
        }
    }

    fn count(&mut self, event: VcpuEvent) {
        self.events[event as usize] += 1;
    }

    fn inject(&mut self, fault: GuestFault) -> Completion {
        self.count(VcpuEvent::FaultInjected);
        self.faults.push(fault);
        Completion::Fault(fault)
    }

    fn nothing(&mut self, op: Option<AccessOp>) -> Completion {
        match op {
            Some(AccessOp::Read(_)) if !self.fault => Completion::Read(u64::MAX),
            Some(AccessOp::Write(_)) if !self.fault => Completion::Written,
            _ => self.inject(GuestFault::Bus),
        }
    }

    fn unclaimed(&mut self, op: Option<AccessOp>) -> Outcome {
        self.count(VcpuEvent::Unclaimed);
        Outcome::Done(self.nothing(op))
    }

    /// A device's answer, or the host's turn; none where there is neither.
    fn claimed(&mut self, kind: Kind, addr: usize, access: DecodedAccess) -> Option<Outcome> {
        let DecodedAccess { width, op } = access;
        if let Some(device) = self.listed(kind, addr, width) {
            let write = match op {
                AccessOp::Write(value) => Some((value & width.mask()) as usize),
                AccessOp::Read(_) => None,
            };
            self.touched.push(Touch { id: device.id, addr, width, write });
            return Some(Outcome::Done(match (answer(device.id, addr), op) {
                (Ok(value), AccessOp::Read(_)) => Completion::Read(value as u64 & width.mask()),
                (Ok(_), AccessOp::Write(_)) => Completion::Written,
                (Err(_), op) => {
                    self.count(VcpuEvent::DeviceError);
                    self.nothing(Some(op))
                }
            }));
        }
        let (first, last) = self.forward[kind as usize]?;
        let wanted = first <= addr && reaches(kind, addr, width) <= last as u128;
        wanted.then_some(Outcome::Asked)
    }

    fn exit(&mut self, kind: Kind, addr: usize, access: DecodedAccess) -> Outcome {
        match self.claimed(kind, addr, access) {
            Some(outcome) => outcome,
            None if matches!(kind, Kind::SysReg) => {
                self.count(VcpuEvent::Unclaimed);
                Outcome::Done(self.inject(GuestFault::Undefined))
            }
            None => self.unclaimed(Some(access.op)),
        }
    }

    fn allowed(&self, gpa: usize, access: Access) -> Option<bool> {
        match gpa {
            RAM..RAM_END => Some(access != Access::Fetch),
            RAM_END..ROM_END => Some(access == Access::Read),
            _ => None,
        }
    }

    fn mem_fault(&mut self, fault: MemFault, decodes_to: Option<DecodedAccess>) -> Outcome {
        let gpa = fault.gpa.as_usize();
        // A walk or a fetch is no load or store that could be finished; only a device asks for no
        // more than an instruction.
        let decodable = !fault.walk && fault.access != Access::Fetch;
        if let Some(access) = fault.insn
            && (decodable || self.listed(Kind::Mmio, gpa, access.width).is_some())
            && let Some(outcome) = self.claimed(Kind::Mmio, gpa, access)
        {
            return outcome;
        }
        match self.allowed(gpa, fault.access) {
            Some(true) => {
                let fresh = self.populated.insert(gpa / PAGE_SIZE_4K);
                let event = if fresh { VcpuEvent::PagePopulated } else { VcpuEvent::SpuriousFault };
                self.count(event);
                return Outcome::Done(Completion::Retry);
            }
            Some(false) => self.count(VcpuEvent::PermissionFault),
            None => {}
        }
        let access = decodes_to.filter(|_| decodable);
        match access {
            None => self.unclaimed(None),
            Some(access) => match self.claimed(Kind::Mmio, gpa, access) {
                Some(outcome) => outcome,
                None => self.unclaimed(Some(access.op)),
            },
        }
    }

    /// Has the guest exit so, and checks what comes of it.
    fn guest(&mut self, kind: Kind, addr: usize, what: What, how: How, answer: u64) {
        let mut access = what.decoded();
        let exit = match kind {
            Kind::Mmio => VcpuExit::MemFault(MemFault {
                gpa: addr.into(),
                access: [Access::Read, Access::Write, Access::Fetch][usize::from(how.access % 3)],
                walk: how.walk,
                insn: how.known.then_some(access),
            }),
            Kind::Port => VcpuExit::Port { port: Port(addr as u16), access },
            Kind::SysReg => {
                access.width = AccessWidth::Qword;
                VcpuExit::SysReg { addr: SysRegAddr(addr), op: access.op }
            }
        };
        self.exits[ExitKind::from(&exit) as usize] += 1;
        let outcome = match exit {
            VcpuExit::MemFault(fault) => self.mem_fault(fault, fault.insn),
            _ => self.exit(kind, addr, access),
        };
        Hal::machine().program(1, 0).push(Step::Exit(exit));
        match outcome {
            Outcome::Done(done) => self.finish(done, access),
            Outcome::Asked => {
                let reason = self.vm.run_vcpu(0).expect("an access for the host");
                self.check_reason(reason, kind, addr, access);
                assert_eq!(self.vm.run_vcpu(0), Err(AxError::BadState), "the answer is due");
                self.vm.complete(0, answer).expect("an answer is due");
                assert_eq!(self.vm.complete(0, answer), Err(AxError::BadState));
                self.finish(answered(access.op, answer), access);
            }
        }
        assert_eq!(self.vm.complete(0, answer), Err(AxError::BadState));
        assert_eq!(self.vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        self.compare();
    }

    /// What a completed access leaves in the registers.
    fn finish(&mut self, done: Completion, access: DecodedAccess) {
        if let (Completion::Read(raw), AccessOp::Read(target)) = (done, access.op) {
            let slot = &mut self.regs[usize::from(target.reg)];
            *slot = target.merge(*slot, raw, access.width);
        }
    }

    fn check_reason(
        &self,
        reason: AxVCpuExitReason,
        kind: Kind,
        addr: usize,
        DecodedAccess { width, op }: DecodedAccess,
    ) {
        let (port, sys_reg) = (Port(addr as u16), SysRegAddr(addr));
        let expected = match (kind, op) {
            (Kind::Mmio, AccessOp::Read(target)) => AxVCpuExitReason::MmioRead {
                addr: addr.into(),
                width,
                reg: target.reg.into(),
                reg_width: target.reg_width,
                signed_ext: target.signed_ext,
            },
            (Kind::Mmio, AccessOp::Write(value)) => {
                let data = value & width.mask();
                AxVCpuExitReason::MmioWrite { addr: addr.into(), width, data }
            }
            (Kind::Port, AccessOp::Read(_)) => AxVCpuExitReason::IoRead { port, width },
            (Kind::Port, AccessOp::Write(value)) => {
                AxVCpuExitReason::IoWrite { port, width, data: value & width.mask() }
            }
            (Kind::SysReg, AccessOp::Read(target)) => {
                AxVCpuExitReason::SysRegRead { addr: sys_reg, reg: target.reg.into() }
            }
            (Kind::SysReg, AccessOp::Write(value)) => {
                AxVCpuExitReason::SysRegWrite { addr: sys_reg, value }
            }
        };
        assert_eq!(reason, expected);
    }

    /// Has the guest execute a load or store, or two in one instruction.
    fn instruction(&mut self, first: (Place, What), second: Option<(Place, What)>, decode: Decode) {
        let place = |test: &Self, (place, what): (Place, What)| {
            let access = what.decoded();
            (test.resolve(Kind::Mmio, place) & !(access.width.size() - 1), access)
        };
        let first = place(self, first);
        // After the first access is completed the kit asks for the second even where memory is
        // mapped, which would begin the instruction again, for ever.
        let in_ram = |&(gpa, _): &(usize, DecodedAccess)| (RAM..ROM_END).contains(&gpa);
        let second = second.map(|second| place(self, second));
        let second = second.filter(|second| !in_ram(second) && !in_ram(&first));
        let step = |(gpa, DecodedAccess { width, op }): (usize, DecodedAccess)| match op {
            AccessOp::Read(target) => Step::Load { gpa, width, target },
            AccessOp::Write(value) => Step::Store { gpa, width, value },
        };
        let whole = match second {
            None => step(first),
            Some(second) => Step::pair(step(first), step(second)),
        };
        let program = Hal::machine().program(1, 0);
        program.push(match decode {
            Decode::Known => whole,
            Decode::Late => whole.late(),
            Decode::Never => whole.undecodable(),
        });
        let mut decode = decode;
        for (index, (gpa, access)) in [Some(first), second].into_iter().flatten().enumerate() {
            if !self.access(gpa, access, &mut decode, index > 0) {
                break;
            }
        }
        assert_eq!(self.vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        self.compare();
    }

    /// One access of an instruction; false when the instruction ends with a fault.
    fn access(
        &mut self,
        gpa: usize,
        access: DecodedAccess,
        decode: &mut Decode,
        continued: bool,
    ) -> bool {
        let kind = match access.op {
            AccessOp::Read(_) => Access::Read,
            AccessOp::Write(_) => Access::Write,
        };
        loop {
            if self.allowed(gpa, kind) == Some(true)
                && self.populated.contains(&(gpa / PAGE_SIZE_4K))
            {
                self.touch_ram(gpa, access);
                return true;
            }
            let insn = (*decode == Decode::Known).then_some(access);
            let fault = MemFault { gpa: gpa.into(), access: kind, walk: false, insn };
            // The second access of an instruction is no exit of its own.
            self.exits[ExitKind::MemFault as usize] += u64::from(!continued);
            if *decode == Decode::Late && self.allowed(gpa, kind) != Some(true) {
                *decode = Decode::Known;
            }
            let known = (*decode == Decode::Known).then_some(access);
            match self.mem_fault(fault, known) {
                Outcome::Done(Completion::Retry) => {}
                Outcome::Done(Completion::Fault(_)) => return false,
                Outcome::Done(done) => {
                    self.finish(done, access);
                    return true;
                }
                Outcome::Asked => {
                    let reason = self.vm.run_vcpu(0).expect("an access for the host");
                    self.check_reason(reason, Kind::Mmio, gpa, access);
                    self.vm.complete(0, 0x8081_8283_8485_8687).expect("an answer is due");
                    self.finish(answered(access.op, 0x8081_8283_8485_8687), access);
                    return true;
                }
            }
        }
    }

    fn touch_ram(&mut self, gpa: usize, DecodedAccess { width, op }: DecodedAccess) {
        let bytes = gpa..gpa + width.size();
        match op {
            AccessOp::Read(_) => {
                let byte = |at: usize| u64::from(self.ram.get(&at).copied().unwrap_or(0));
                let raw = bytes.rev().fold(0, |sum: u64, at| sum << 8 | byte(at));
                self.finish(Completion::Read(raw), DecodedAccess { width, op });
            }
            AccessOp::Write(value) => {
                self.ram.extend(bytes.zip(value.to_le_bytes()));
            }
        }
    }

    fn reset(&mut self) {
        self.vm.shutdown().expect("shutdown");
        assert_eq!(self.vm.run_vcpu(0), Err(AxError::BadState));
        self.vm.wait_terminated().expect("terminated");
        RESETS.set(0);
        // `add` can put a device where memory is; it has to go before.
        let in_memory = |device: &&Listed| device.first < ROM_END && RAM <= device.last;
        while let Some(start) =
            self.devices[Kind::Mmio as usize].iter().find(in_memory).map(|device| device.first)
        {
            assert_eq!(self.vm.reset(), Err(AxError::AlreadyExists));
            assert_eq!(RESETS.get(), 0, "nothing is changed");
            self.remove::<MmioBus>(Kind::Mmio, start);
        }
        self.vm.reset().expect("reset");
        assert_eq!(RESETS.get(), self.devices.iter().map(Vec::len).sum());
        self.vm.boot().expect("boot");
        self.regs = [0; 32];
        self.ram.clear();
        self.populated.clear();
        // What was fetched is of the old images: the next entry forgets it.
        assert_eq!(self.vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        self.exits[ExitKind::Halt as usize] += 1;
        self.fences.push(GuestFence::Instructions);
    }

    fn compare(&mut self) {
        let state = self.vm.vcpu_state(0).expect("the vCPU is out");
        assert_eq!(state.regs, self.regs);
        let touched = TOUCHED.with_borrow_mut(std::mem::take);
        assert_eq!(touched, self.touched);
        self.touched.clear();
        let (mut faults, mut fences) = (Vec::new(), Vec::new());
        for record in Hal::machine().take_trace() {
            match record.event {
                Event::FaultTaken(fault) => faults.push(fault),
                Event::Fence(fence) => fences.push(fence),
                _ => {}
            }
        }
        assert_eq!(faults, std::mem::take(&mut self.faults));
        assert_eq!(fences, std::mem::take(&mut self.fences));
        for event in VcpuEvent::ALL {
            assert_eq!(self.vm.events(event), self.events[event as usize], "{event:?}");
        }
        for kind in [
            ExitKind::MemFault,
            ExitKind::Port,
            ExitKind::SysReg,
            ExitKind::CpuStatus,
            ExitKind::CpuSuspend,
            ExitKind::RemoteFence,
            ExitKind::Console,
        ] {
            assert_eq!(self.vm.exits(kind), self.exits[kind as usize], "{kind:?}");
        }
    }

    fn apply(&mut self, op: &Op) {
        /// Calls a method with the bus of a kind.
        macro_rules! on {
            ($kind:expr, $method:ident, $($arg:expr),*) => {
                match $kind {
                    Kind::Mmio => self.$method::<MmioBus>($kind, $($arg),*),
                    Kind::Port => self.$method::<PortBus>($kind, $($arg),*),
                    Kind::SysReg => self.$method::<SysRegBus>($kind, $($arg),*),
                }
            };
        }
        TICK.set(TICK.get().wrapping_add(1));
        match *op {
            Op::Add { kind, start, len, widths, checked } => {
                on!(kind, add, self.resolve(kind, start), len, widths, checked);
            }
            Op::Remove { kind, start } => on!(kind, remove, self.resolve(kind, start)),
            Op::Find { kind, addr } => on!(kind, find, self.resolve(kind, addr)),
            Op::Host { kind, addr, width, write } => {
                on!(kind, host, self.resolve(kind, addr), width.into(), write);
                self.compare();
            }
            Op::Guest { kind, addr, what, how, answer } => {
                self.guest(kind, self.resolve(kind, addr), what, how, answer);
            }
            Op::Instruction { first, second, decode } => self.instruction(first, second, decode),
            Op::Call(call) => self.call(call),
            Op::Reset => self.reset(),
        }
    }
}

/// The last address that an access touches.
fn reaches(kind: Kind, addr: usize, width: AccessWidth) -> u128 {
    match kind {
        Kind::SysReg => addr as u128,
        _ => addr as u128 + width.size() as u128 - 1,
    }
}

/// The completion that a host's answer makes.
fn answered(op: AccessOp, value: u64) -> Completion {
    match op {
        AccessOp::Read(_) => Completion::Read(value),
        AccessOp::Write(_) => Completion::Written,
    }
}

fn start() {
    let machine = Hal::machine();
    machine.tlb().set_logging(false);
    static ENABLED: OnceLock<Vec<AxVMPerCpu<VCpu>>> = OnceLock::new();
    ENABLED.get_or_init(|| enable_pcpus::<VCpu>(1));
}

fuzz_target!(init: start(), |input: Input| {
    let machine = Hal::machine();
    machine.program(1, 0).clear();
    TICK.set(0);
    TOUCHED.with_borrow_mut(Vec::clear);
    machine.take_trace();
    if let Some(mut test) = Test::new(&input) {
        for op in input.ops.iter().take(64) {
            test.apply(op);
        }
    }
    (machine.take_kicks(), machine.take_wakes(), machine.take_timers());
    assert_eq!(machine.arena().allocated(), 0);
});
