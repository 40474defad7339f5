//! A guest that does anything to the registers of the PLIC and of a 16550A wired to it, while
//! bytes are typed, other sources come and go, and vCPUs enter. Nothing panics; what the guest
//! sees fits together; whose level changes is told; the state can be got and set at any time.

#![no_main]

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arbitrary::Arbitrary;
use axerrno::AxResult;
use axvm::{
    device::{
        BaseDeviceOps,
        serial::{CharBackend, Uart16550},
    },
    irq::{
        HartIrqHw, InterruptController, IrqHw, IrqInput, IrqLine, Trigger, VPlic, VcpuNotifier,
        vplic::{Request, WINDOW_SIZE},
    },
    mm::GpaRange,
    vcpu::AccessWidth,
};
use libfuzzer_sys::fuzz_target;

use common::Place;

mod common;

const PLIC: usize = 0xc00_0000;
const UART: usize = 0x1000_0000;

#[derive(Debug, Arbitrary)]
struct Input {
    sources: u16,
    vcpus: u8,
    uart_source: u16,
    reg_shift: u8,
    ops: Vec<Op>,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Plic { place: Place, write: Option<u32> },
    Claim { vcpu: u8, complete: bool },
    Uart { place: Place, wide: bool, write: Option<u32> },
    Type(Vec<u8>),
    Level { source: u16, high: bool },
    Pulse { source: u16 },
    Inject { vcpu: u8, irq: u8 },
    Enter { vcpu: u8 },
    Restore,
    Reset,
}

/// Who was told and has not entered since.
#[derive(Default)]
struct Told(AtomicU64);

impl VcpuNotifier for Told {
    fn notify(&self, vcpu: usize) {
        self.0.fetch_or(1 << vcpu, Ordering::AcqRel);
    }
}

#[derive(Default)]
struct Keyboard(Mutex<VecDeque<u8>>);

impl CharBackend for Keyboard {
    fn write(&self, bytes: &[u8]) {
        assert!(!bytes.is_empty());
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut typed = self.0.lock().unwrap();
        let count = buf.len().min(typed.len());
        buf.iter_mut().zip(typed.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }
}

#[derive(Default)]
struct Hw {
    external: bool,
}

impl IrqHw for Hw {
    fn inject(&mut self, vector: usize) -> AxResult {
        assert_eq!(vector, 1);
        Ok(())
    }
}

impl HartIrqHw for Hw {
    fn set_external(&mut self, high: bool) {
        self.external = high;
    }
}

struct Board {
    plic: Arc<VPlic>,
    uart: Uart16550,
    told: Arc<Told>,
    keyboard: Arc<Keyboard>,
    vcpus: usize,
}

impl Board {
    fn new(input: &Input) -> Self {
        let told = Arc::new(Told::default());
        let keyboard = Arc::new(Keyboard::default());
        let sources = 1 + u32::from(input.sources) % 1023;
        let vcpus = 1 + usize::from(input.vcpus) % 64;
        let plic = VPlic::new(PLIC.into(), sources, vcpus, told.clone()).expect("it can be");
        let plic = Arc::new(plic);
        // Some of them lead nowhere.
        let line = IrqLine::new(plic.clone(), input.uart_source.into(), Trigger::Level);
        let shift = u32::from(input.reg_shift) % 3;
        let uart = Uart16550::new(UART.into(), shift, line, keyboard.clone());
        Self { plic, uart: uart.expect("it can be"), told, keyboard, vcpus }
    }

    fn vcpu(&self, vcpu: u8) -> usize {
        usize::from(vcpu) % self.vcpus
    }

    fn has_source(&self, source: u16) -> bool {
        (1..=self.plic.sources()).contains(&source.into())
    }

    /// An access as the bus makes it; none where the device is not.
    fn access(
        device: &dyn BaseDeviceOps<GpaRange>,
        addr: usize,
        width: AccessWidth,
        write: Option<u32>,
    ) {
        let range = GpaRange::new(addr.into(), width.size());
        let fits = range.is_some_and(|range| device.address_range().contains_range(range));
        if !fits || !device.legal_widths().contains(width) {
            return;
        }
        match write {
            Some(value) => {
                let value = value as usize & width.mask() as usize;
                device.handle_write(addr.into(), width, value).expect("a write");
            }
            None => {
                device.handle_read(addr.into(), width).expect("a read");
            }
        }
    }

    fn claim(&self, vcpu: usize, complete: bool) {
        let register = PLIC + 0x20_1004 + 0x2000 * vcpu;
        let before = self.plic.state();
        let claimed = self.plic.handle_read(register.into(), AccessWidth::Dword).expect("a claim");
        if claimed == 0 {
            assert_eq!(self.plic.state(), before);
            return;
        }
        let hart = &before.harts[vcpu];
        let best = &before.sources[claimed - 1];
        assert_eq!(best.request, Request::Pending);
        for (index, source) in before.sources.iter().enumerate() {
            let number = index + 1;
            let enabled = hart.enables[number / 32] >> (number % 32) & 1 != 0;
            if enabled && source.request == Request::Pending {
                assert!((source.priority, claimed) <= (best.priority, number));
            }
        }
        if complete {
            self.plic.handle_write(register.into(), AccessWidth::Dword, claimed).expect("complete");
        }
    }

    fn apply(&self, op: &Op) {
        let near_plic = [0, 0x1000, 0x2080, 0x20_0000, 0x20_1000, 0x20_3000, WINDOW_SIZE];
        match op {
            Op::Plic { place, write } => {
                let addr = place.resolve(&near_plic.map(|offset| PLIC + offset));
                Self::access(&*self.plic, addr, AccessWidth::Dword, *write);
            }
            Op::Claim { vcpu, complete } => self.claim(self.vcpu(*vcpu), *complete),
            Op::Uart { place, wide, write } => {
                let width = if *wide { AccessWidth::Dword } else { AccessWidth::Byte };
                Self::access(&self.uart, place.resolve(&[UART, UART + 16]), width, *write);
            }
            Op::Type(bytes) => {
                self.keyboard.0.lock().unwrap().extend(bytes);
                self.uart.notify_input();
            }
            Op::Level { source, high } => {
                let result = self.plic.set_level((*source).into(), *high);
                assert_eq!(result.is_ok(), self.has_source(*source));
            }
            Op::Pulse { source } => {
                let result = self.plic.pulse((*source).into());
                assert_eq!(result.is_ok(), self.has_source(*source));
            }
            Op::Inject { vcpu, irq } => {
                let plic: &dyn InterruptController<Hw> = &*self.plic;
                let result = plic.inject((*vcpu).into(), (*irq).into());
                assert_eq!(result.is_ok(), usize::from(*vcpu) < self.vcpus && *irq == 1);
            }
            Op::Enter { vcpu } => {
                let vcpu = self.vcpu(*vcpu);
                self.told.0.fetch_and(!(1 << vcpu), Ordering::AcqRel);
                self.plic.before_entry(vcpu, &mut Hw::default()).expect("an entry");
                assert!(!InterruptController::<Hw>::pending(&*self.plic, vcpu));
            }
            Op::Restore => {
                let (plic, uart) = (self.plic.state(), self.uart.state());
                self.plic.set_state(&plic).expect("its own state");
                self.uart.set_state(&uart).expect("its own state");
                assert_eq!(self.plic.state(), plic);
                // After a reset, what was typed comes in now.
                assert!(self.uart.state() == uart || uart.received.as_slice().is_empty());
            }
            Op::Reset => {
                self.uart.reset();
                InterruptController::<Hw>::reset(&*self.plic);
            }
        }
        let told = self.told.0.load(Ordering::Acquire);
        for vcpu in 0..self.vcpus {
            let lacks = InterruptController::<Hw>::pending(&*self.plic, vcpu);
            assert!(!lacks || told >> vcpu & 1 != 0, "{op:?}: nobody told vCPU {vcpu}");
        }
    }
}

fuzz_target!(|input: Input| {
    let board = Board::new(&input);
    input.ops.iter().take(256).for_each(|op| board.apply(op));
});
