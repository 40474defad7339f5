use super::{registers::*, *};
use crate::irq::{IrqInput, Trigger};
use std::{collections::VecDeque, sync::Mutex as StdMutex, thread, vec, vec::Vec};

const BASE: usize = 0x1000_0000;
const ENABLE_FIFO: u8 = 1;

/// The cable and the interrupt wire, seen from outside.
#[derive(Default)]
struct Outside {
    typed: StdMutex<VecDeque<u8>>,
    sent: StdMutex<Vec<u8>>,
    level: AtomicBool,
}

impl CharBackend for Outside {
    fn write(&self, bytes: &[u8]) {
        self.sent.lock().unwrap().extend(bytes);
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().unwrap();
        let count = buf.len().min(typed.len());
        buf.iter_mut().zip(typed.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }
}

impl IrqInput for Outside {
    fn set_level(&self, _: usize, asserted: bool) -> AxResult {
        self.level.store(asserted, Ordering::Release);
        Ok(())
    }

    fn pulse(&self, _: usize) -> AxResult {
        Err(AxError::InvalidInput)
    }
}

struct Rig {
    uart: Uart16550,
    outside: Arc<Outside>,
}

impl Rig {
    fn new() -> Self {
        let outside = Arc::new(Outside::default());
        let line = IrqLine::new(outside.clone(), 10, Trigger::Level);
        let uart = Uart16550::new(BASE.into(), 0, line, outside.clone()).unwrap();
        Self { uart, outside }
    }

    /// With the FIFOs on, the interrupts `ier` enabled, and none of them due.
    fn with_fifo(fcr: u8, ier: u8) -> Self {
        let rig = Self::new();
        rig.put(IIR_FCR, fcr | ENABLE_FIFO);
        rig.put(IER, ier);
        rig.get(IIR_FCR);
        assert!(!rig.irq());
        rig
    }

    fn get(&self, register: usize) -> u8 {
        let value = self.uart.handle_read((BASE + register).into(), AccessWidth::Byte).unwrap();
        u8::try_from(value).unwrap()
    }

    fn put(&self, register: usize, value: u8) {
        let addr = (BASE + register).into();
        self.uart.handle_write(addr, AccessWidth::Byte, value.into()).unwrap();
    }

    /// The interrupt identification without the FIFO bits, which are as the FIFO is.
    fn iir(&self) -> u8 {
        self.get(IIR_FCR) & 0xf
    }

    fn irq(&self) -> bool {
        self.outside.level.load(Ordering::Acquire)
    }

    fn type_in(&self, bytes: &[u8]) {
        self.outside.typed.lock().unwrap().extend(bytes);
        self.uart.notify_input();
    }

    fn sent(&self) -> Vec<u8> {
        std::mem::take(&mut self.outside.sent.lock().unwrap())
    }

    /// Reads until no data is ready.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = vec![];
        while self.get(LSR) & LSR_DATA_READY != 0 {
            bytes.push(self.get(DATA));
        }
        bytes
    }
}

#[test]
fn after_power_on_registers_are_as_the_data_sheet_says() {
    let rig = Rig::new();
    let values = [IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR].map(|register| rig.get(register));
    assert_eq!(values, [0, 1, 0, 0, 0x60, 0xb0, 0]);
    assert_eq!(rig.get(DATA), 0);
    assert!(!rig.irq());
}

#[test]
fn registers_hold_the_bits_that_they_have() {
    let rig = Rig::new();
    for (register, bits) in [(IER, 0x0f), (LCR, 0x7f), (MCR, 0x1f), (SCR, 0xff)] {
        for value in 0..=bits {
            rig.put(register, value | !bits & 0x60);
            assert_eq!(rig.get(register) & bits, value, "{register}");
            assert_eq!(rig.get(register) & !bits, 0, "{register}");
        }
    }
    // The probe for other chips: no bit 5 without the 64-byte FIFO of a 16750.
    rig.put(IIR_FCR, 0x21);
    assert_eq!(rig.get(IIR_FCR) & 0xf0, 0xc0);
    rig.put(IIR_FCR, 0);
    assert_eq!(rig.get(IIR_FCR) & 0xf0, 0);
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let rig = Rig::new();
    rig.put(IER, 0x5);
    rig.put(LCR, 0x83);
    rig.put(DATA, 0x34);
    rig.put(IER, 0x12);
    assert_eq!((rig.get(DATA), rig.get(IER)), (0x34, 0x12));
    assert_eq!(rig.uart.state().divisor, 0x1234);
    rig.put(LCR, 0x03);
    assert_eq!(rig.get(IER), 0x5);
    assert!(rig.sent().is_empty());
}

#[test]
fn the_status_registers_ignore_writes() {
    let rig = Rig::new();
    rig.put(LSR, 0x1f);
    rig.put(MSR, 0xff);
    assert_eq!((rig.get(LSR), rig.get(MSR)), (0x60, 0xb0));
}

#[test]
fn bytes_are_sent_at_once_and_the_transmitter_stays_empty() {
    let rig = Rig::new();
    for byte in *b"hello\xff" {
        rig.put(DATA, byte);
        assert_eq!(rig.get(LSR), 0x60);
    }
    assert_eq!(rig.sent(), b"hello\xff");
}

#[test]
fn the_empty_transmitter_interrupts_when_enabled_and_after_each_byte_until_identified() {
    let rig = Rig::new();
    rig.put(DATA, b'a');
    assert!(!rig.irq());
    rig.put(IER, IER_THR_EMPTY);
    assert!(rig.irq());
    assert_eq!(rig.iir(), IIR_THR_EMPTY);
    assert!(!rig.irq(), "reading it takes it back");
    assert_eq!(rig.iir(), IIR_NONE);
    rig.put(IER, IER_THR_EMPTY);
    assert!(!rig.irq(), "enabled already");
    rig.put(DATA, b'b');
    assert!(rig.irq());
    rig.put(IER, 0);
    assert!(!rig.irq());
    // What Linux tests at start-up: enabled again, it is due again.
    rig.put(IER, IER_THR_EMPTY);
    assert_eq!(rig.iir(), IIR_THR_EMPTY);
    rig.put(IER, 0);
    rig.put(IER, IER_THR_EMPTY);
    assert_eq!(rig.iir(), IIR_THR_EMPTY);
}

#[test]
fn identifying_another_interrupt_leaves_the_transmitter_s_due() {
    let rig = Rig::with_fifo(0, IER_RECEIVED | IER_THR_EMPTY);
    rig.put(DATA, b'a');
    rig.type_in(b"x");
    assert_eq!(rig.iir(), IIR_RECEIVED);
    assert_eq!(rig.get(DATA), b'x');
    assert!(rig.irq());
    assert_eq!(rig.iir(), IIR_THR_EMPTY);
    assert!(!rig.irq());
}

#[test]
fn without_fifo_there_is_room_for_one_byte_and_the_rest_waits_outside() {
    let rig = Rig::new();
    rig.put(IER, IER_RECEIVED);
    rig.type_in(b"abc");
    assert_eq!(rig.outside.typed.lock().unwrap().len(), 2);
    for byte in *b"abc" {
        assert!(rig.irq());
        assert_eq!(rig.get(IIR_FCR), IIR_RECEIVED);
        assert_eq!(rig.get(LSR), 0x61);
        assert_eq!(rig.get(DATA), byte);
    }
    assert!(!rig.irq());
    assert_eq!(rig.get(LSR), 0x60);
    assert_eq!(rig.get(DATA), 0);
}

#[test]
fn received_data_interrupts_at_the_trigger_level_and_below_it_by_timeout() {
    for (fcr, trigger) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
        let rig = Rig::with_fifo(fcr, IER_RECEIVED);
        for count in 1..=FIFO_SIZE {
            rig.type_in(&[count as u8]);
            assert!(rig.irq());
            let expected = if count >= trigger { IIR_RECEIVED } else { IIR_TIMEOUT };
            assert_eq!(rig.get(IIR_FCR), 0xc0 | expected, "{count} of {trigger}");
        }
        for count in 1..=FIFO_SIZE {
            let left = FIFO_SIZE + 1 - count;
            let expected = if left >= trigger { IIR_RECEIVED } else { IIR_TIMEOUT };
            assert_eq!(rig.iir(), expected, "{left} of {trigger}");
            assert_eq!(rig.get(DATA), count as u8);
        }
        assert_eq!(rig.iir(), IIR_NONE);
        assert!(!rig.irq());
    }
}

#[test]
fn any_amount_of_input_arrives_whole_and_in_order_while_the_guest_reads() {
    let rig = Rig::with_fifo(0xc0, IER_RECEIVED);
    let typed: Vec<u8> = (0..1000).map(|number| (number % 251) as u8).collect();
    rig.type_in(&typed);
    assert_eq!(rig.uart.state().received.as_slice(), &typed[..FIFO_SIZE]);
    assert_eq!(rig.drain(), typed);
    assert!(!rig.irq());
    assert!(!rig.uart.state().overrun);
}

#[test]
fn clearing_the_fifo_or_switching_it_forgets_what_was_received() {
    for (fcr, forgets) in [(0x03, true), (0x00, true), (0x01, false), (0x05, false)] {
        let rig = Rig::with_fifo(0, IER_RECEIVED);
        rig.type_in(b"ab");
        rig.put(IIR_FCR, fcr);
        assert_eq!(rig.irq(), !forgets, "{fcr:#x}");
        assert_eq!(rig.drain(), if forgets { vec![] } else { b"ab".to_vec() });
    }
    let rig = Rig::new();
    rig.type_in(b"a");
    rig.put(IIR_FCR, 0xc6);
    assert_eq!(rig.drain(), b"a", "without the enable bit, the others do not count");
    assert_eq!(rig.uart.state().fcr, 0);
}

#[test]
fn input_that_did_not_fit_is_received_after_the_fifo_was_cleared() {
    let rig = Rig::with_fifo(0, IER_RECEIVED);
    rig.type_in(&[b'x'; FIFO_SIZE]);
    rig.type_in(b"rest");
    rig.put(IIR_FCR, 0x03);
    assert!(rig.irq());
    assert_eq!(rig.drain(), b"rest");
}

#[test]
fn a_loop_feeds_the_receiver_and_nothing_goes_out_or_comes_in() {
    let rig = Rig::with_fifo(0, IER_RECEIVED);
    rig.put(MCR, MCR_LOOP);
    rig.type_in(b"typed");
    assert!(!rig.irq());
    for byte in *b"loop" {
        rig.put(DATA, byte);
    }
    assert!(rig.irq());
    assert_eq!(rig.drain(), b"loop");
    assert!(rig.sent().is_empty() && !rig.irq());
    rig.put(MCR, 0);
    assert!(rig.irq());
    assert_eq!(rig.drain(), b"typed");
}

#[test]
fn a_loop_connects_the_modem_lines() {
    let rig = Rig::new();
    let pairs = [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)];
    for mcr in 0..16 {
        rig.put(MCR, MCR_LOOP | mcr);
        let expected = pairs.iter().filter(|pair| mcr & pair.0 != 0).map(|pair| pair.1).sum::<u8>();
        assert_eq!(rig.get(MSR) & 0xf0, expected, "{mcr:#x}");
    }
    // As Linux probes: OUT2 and RTS come back as DCD and CTS.
    rig.put(MCR, 0x1a);
    assert_eq!(rig.get(MSR) & 0xf0, 0x90);
    rig.put(MCR, 0);
    assert_eq!(rig.get(MSR) & 0xf0, 0xb0);
}

#[test]
fn changes_of_modem_lines_interrupt_until_the_status_is_read() {
    let rig = Rig::new();
    rig.put(MCR, MCR_LOOP);
    rig.get(MSR);
    rig.put(IER, IER_MODEM_STATUS);
    for (on, off, delta) in [(0x11, 0x10, 0x2), (0x12, 0x10, 0x1), (0x18, 0x10, 0x8)] {
        for mcr in [on, off] {
            assert!(!rig.irq());
            rig.put(MCR, mcr);
            assert!(rig.irq());
            assert_eq!(rig.iir(), IIR_MODEM_STATUS);
            assert_eq!(rig.get(MSR) & 0xf, delta);
            assert_eq!(rig.get(MSR) & 0xf, 0);
        }
    }
    rig.put(MCR, 0x14);
    assert!(!rig.irq(), "a ring counts when it ends");
    rig.put(MCR, 0x10);
    assert_eq!(rig.iir(), IIR_MODEM_STATUS);
    assert_eq!(rig.get(MSR) & 0xf, 0x4);
}

#[test]
fn an_overrun_keeps_the_fifo_and_replaces_the_single_byte() {
    let rig = Rig::with_fifo(0, IER_LINE_STATUS);
    rig.put(MCR, MCR_LOOP);
    for byte in 0..20 {
        rig.put(DATA, byte);
        assert_eq!(rig.irq(), byte >= 16);
    }
    assert_eq!(rig.iir(), IIR_LINE_STATUS);
    assert_eq!(rig.get(LSR), 0x63);
    assert!(!rig.irq(), "reading it takes it back");
    assert_eq!(rig.get(LSR), 0x61);
    assert_eq!(rig.drain(), (0..16).collect::<Vec<_>>());

    rig.put(IIR_FCR, 0);
    rig.put(DATA, b'a');
    rig.put(DATA, b'b');
    assert_eq!(rig.get(LSR), 0x63);
    assert_eq!(rig.drain(), b"b");
}

#[test]
fn of_several_interrupts_the_highest_is_identified() {
    let rig = Rig::with_fifo(0x40, 0);
    rig.put(MCR, MCR_LOOP);
    (0..17).for_each(|byte| rig.put(DATA, byte));
    assert_eq!(rig.iir(), IIR_NONE);
    assert!(!rig.irq());
    rig.put(IER, 0xf);
    assert_eq!(rig.iir(), IIR_LINE_STATUS);
    rig.get(LSR);
    assert_eq!(rig.iir(), IIR_RECEIVED);
    for _ in 0..13 {
        rig.get(DATA);
    }
    assert_eq!(rig.iir(), IIR_TIMEOUT);
    rig.drain();
    assert_eq!(rig.iir(), IIR_THR_EMPTY);
    assert_eq!(rig.iir(), IIR_MODEM_STATUS);
    assert!(rig.irq());
    rig.get(MSR);
    assert_eq!(rig.iir(), IIR_NONE);
    assert!(!rig.irq());
}

#[test]
fn registers_can_lie_apart_and_be_wider() {
    let outside = Arc::new(Outside::default());
    let line = || IrqLine::new(outside.clone(), 10, Trigger::Level);
    let uart = Uart16550::new(BASE.into(), 2, line(), outside.clone()).unwrap();
    assert_eq!(uart.address_range().size(), 32);
    assert_eq!(uart.legal_widths(), WidthSet::one(AccessWidth::Byte) | AccessWidth::Dword.into());
    let scratch = BASE + 4 * SCR;
    uart.handle_write(scratch.into(), AccessWidth::Dword, 0xffff_ff5a).unwrap();
    assert_eq!(uart.handle_read(scratch.into(), AccessWidth::Dword), Ok(0x5a));
    assert_eq!(uart.handle_read(scratch.into(), AccessWidth::Byte), Ok(0x5a));
    uart.handle_write((scratch + 1).into(), AccessWidth::Byte, 1).unwrap();
    assert_eq!(uart.handle_read((scratch + 1).into(), AccessWidth::Byte), Ok(0));
    assert_eq!(uart.handle_read(scratch.into(), AccessWidth::Byte), Ok(0x5a));
    assert_eq!(Rig::new().uart.legal_widths(), AccessWidth::Byte.into());
    for (base, shift) in [(BASE, 3), (BASE, 64), (usize::MAX - 7, 0)] {
        let refused = Uart16550::new(base.into(), shift, line(), outside.clone());
        assert_eq!(refused.err(), Some(AxError::InvalidInput));
    }
}

#[test]
fn the_same_chip_answers_at_io_ports() {
    let outside = Arc::new(Outside::default());
    let line = || IrqLine::new(outside.clone(), 4, Trigger::Level);
    let com1 = Uart16550::at_ports(Port(0x3f8), line(), outside.clone()).unwrap();
    let range = com1.address_range();
    assert_eq!((range.first(), range.last()), (Port(0x3f8), Port(0x3ff)));
    com1.handle_write(Port(0x3f8), AccessWidth::Byte, b'!'.into()).unwrap();
    assert_eq!(com1.handle_read(Port(0x3fd), AccessWidth::Byte), Ok(0x60));
    assert_eq!(*outside.sent.lock().unwrap(), b"!");
    assert!(Uart16550::at_ports(Port(0xfff8), line(), outside.clone()).is_ok());
    let refused = Uart16550::at_ports(Port(0xfff9), line(), outside.clone());
    assert_eq!(refused.err(), Some(AxError::InvalidInput));
}

#[test]
fn reset_lowers_the_line_and_is_power_on() {
    let rig = Rig::with_fifo(0xc0, 0xf);
    rig.type_in(b"0123456789abcdefgh");
    rig.put(LCR, 3);
    rig.put(SCR, 1);
    assert!(rig.irq());
    rig.uart.reset();
    assert!(!rig.irq());
    assert_eq!(rig.uart.state(), Uart16550State::default());
    rig.put(IIR_FCR, ENABLE_FIFO);
    assert_eq!(rig.drain(), b"gh", "what was outside");
}

#[test]
fn the_whole_state_can_be_got_and_set() {
    let rig = Rig::with_fifo(0x80, IER_RECEIVED);
    rig.type_in(b"abc");
    rig.put(MCR, 0xb);
    let state = rig.uart.state();
    let other = Rig::new();
    other.uart.set_state(&state).unwrap();
    assert_eq!(other.uart.state(), state);
    assert!(other.irq());
    assert_eq!(other.drain(), b"abc");
    other.uart.set_state(&Uart16550State::default()).unwrap();
    assert!(!other.irq());
}

#[test]
fn a_state_that_the_chip_cannot_have_changes_nothing() {
    let rig = Rig::new();
    let changes: [fn(&mut Uart16550State); 5] = [
        |state| state.ier = 0x10,
        |state| state.fcr = 0x03,
        |state| state.mcr = 0x20,
        |state| state.modem_deltas = 0x10,
        |state| state.received = Fifo::new(b"ab").unwrap(),
    ];
    for change in changes {
        let mut state = Uart16550State { scr: 1, ..Uart16550State::default() };
        change(&mut state);
        assert_eq!(rig.uart.set_state(&state), Err(AxError::InvalidInput));
        assert_eq!(rig.uart.state(), Uart16550State::default());
    }
    assert_eq!(Fifo::new(&[0; 17]), None);
}

#[test]
fn a_line_to_nowhere_leaves_a_uart_that_can_be_polled() {
    struct Nowhere;
    impl IrqInput for Nowhere {
        fn set_level(&self, _: usize, _: bool) -> AxResult {
            Err(AxError::InvalidInput)
        }
        fn pulse(&self, _: usize) -> AxResult {
            Err(AxError::InvalidInput)
        }
    }
    let outside = Arc::new(Outside::default());
    let line = IrqLine::new(Arc::new(Nowhere), 10, Trigger::Level);
    let uart = Uart16550::new(BASE.into(), 0, line, outside.clone()).unwrap();
    let rig = Rig { uart, outside };
    rig.put(IER, 0xf);
    rig.put(DATA, b'a');
    rig.type_in(b"b");
    assert_eq!((rig.sent(), rig.drain()), (b"a".to_vec(), b"b".to_vec()));
}

#[test]
fn an_echo_that_announces_input_while_it_is_written_to_is_heard() {
    /// Gives back what it gets.
    #[derive(Default)]
    struct Echo {
        inner: Outside,
        uart: StdMutex<Option<Arc<Uart16550>>>,
    }
    impl CharBackend for Echo {
        fn write(&self, bytes: &[u8]) {
            self.inner.typed.lock().unwrap().extend(bytes);
            self.uart.lock().unwrap().as_ref().unwrap().notify_input();
        }
        fn read(&self, buf: &mut [u8]) -> usize {
            self.inner.read(buf)
        }
    }
    let outside = Arc::new(Outside::default());
    let echo = Arc::new(Echo::default());
    let line = IrqLine::new(outside, 10, Trigger::Level);
    let uart = Arc::new(Uart16550::new(BASE.into(), 0, line, echo.clone()).unwrap());
    *echo.uart.lock().unwrap() = Some(uart.clone());
    uart.handle_write(BASE.into(), AccessWidth::Byte, 7).unwrap();
    assert_eq!(uart.handle_read(BASE.into(), AccessWidth::Byte), Ok(7));
    *echo.uart.lock().unwrap() = None;
}

#[test]
fn input_announced_from_many_threads_reaches_a_guest_that_waits_for_the_interrupt() {
    const EACH: usize = 5000;
    let rig = Rig::with_fifo(0x80, IER_RECEIVED);
    let mut received = vec![];
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0..EACH {
                    rig.type_in(&[number as u8]);
                }
            });
        }
        // Disturbs: accesses that have nothing to do with input.
        scope.spawn(|| (0..EACH).for_each(|number| rig.put(SCR, number as u8)));
        let mut idle = 0u64;
        while received.len() < 2 * EACH {
            if rig.irq() {
                idle = 0;
                received.extend(rig.drain());
            } else {
                idle += 1;
                assert!(idle < 50_000_000, "{} received, and no interrupt", received.len());
                thread::yield_now();
            }
        }
    });
    assert_eq!(received.len(), 2 * EACH);
    assert!(!rig.irq());
}

mod model;
