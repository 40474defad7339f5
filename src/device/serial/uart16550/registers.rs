//! The chip: registers, FIFO and interrupts, without lock, line and cable.

use super::fifo::{FIFO_SIZE, Fifo};

/// Registers (PC16550D data sheet, table II). With the divisor latch open, the first two are its
/// halves. `IIR` is read, `FCR` written.
pub(super) const DATA: usize = 0;
pub(super) const IER: usize = 1;
pub(super) const IIR_FCR: usize = 2;
pub(super) const LCR: usize = 3;
pub(super) const MCR: usize = 4;
pub(super) const LSR: usize = 5;
pub(super) const MSR: usize = 6;
pub(super) const SCR: usize = 7;

pub(super) const IER_RECEIVED: u8 = 1 << 0;
pub(super) const IER_THR_EMPTY: u8 = 1 << 1;
pub(super) const IER_LINE_STATUS: u8 = 1 << 2;
pub(super) const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_BITS: u8 = 0x0f;

pub(super) const IIR_NONE: u8 = 0x1;
pub(super) const IIR_LINE_STATUS: u8 = 0x6;
pub(super) const IIR_RECEIVED: u8 = 0x4;
pub(super) const IIR_TIMEOUT: u8 = 0xc;
pub(super) const IIR_THR_EMPTY: u8 = 0x2;
pub(super) const IIR_MODEM_STATUS: u8 = 0x0;
/// The FIFOs are on.
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// What is kept: enable, DMA mode (which no pin shows), trigger level.
const FCR_BITS: u8 = 0xc9;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
pub(super) const MCR_LOOP: u8 = 1 << 4;
const MCR_BITS: u8 = 0x1f;

pub(super) const LSR_DATA_READY: u8 = 1 << 0;
pub(super) const LSR_OVERRUN: u8 = 1 << 1;
/// Holding register and shift register are empty.
pub(super) const LSR_SENT: u8 = 0x60;

const MSR_DELTAS: u8 = 0x0f;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// The end of a ring.
const MSR_TERI: u8 = 1 << 2;

/// All that the chip holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart16550State {
    /// The divisor latch: 1.8432 MHz divided by 16 times the baud rate. It changes nothing here.
    pub divisor: u16,
    /// The interrupt enable register; the upper four bits are 0.
    pub ier: u8,
    /// The FIFO control register; the bits that clear a FIFO are 0, and so are the reserved ones.
    pub fcr: u8,
    /// The line control register.
    pub lcr: u8,
    /// The modem control register; the upper three bits are 0.
    pub mcr: u8,
    /// The scratch register.
    pub scr: u8,
    /// A byte came and there was no room, since the line status was last read.
    pub overrun: bool,
    /// The low four bits of the modem status: what changed since it was last read.
    pub modem_deltas: u8,
    /// The interrupt of the empty holding register is due.
    pub thr_empty: bool,
    /// What was received and not read: the FIFO, or one byte when that is off.
    pub received: Fifo,
}

/// As at power-on; the divisor, which the data sheet leaves open, gives 9600 baud.
impl Default for Uart16550State {
    fn default() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            overrun: false,
            modem_deltas: 0,
            thr_empty: false,
            received: Fifo::default(),
        }
    }
}

impl Uart16550State {
    /// Whether a chip can be in this state.
    pub(super) fn is_possible(&self) -> bool {
        self.ier & !IER_BITS == 0
            && self.fcr & !FCR_BITS == 0
            && self.mcr & !MCR_BITS == 0
            && self.modem_deltas & !MSR_DELTAS == 0
            && self.received.as_slice().len() <= self.capacity()
    }

    /// Reads a register.
    pub(super) fn read(&mut self, register: usize) -> u8 {
        let [high, low] = self.divisor.to_be_bytes();
        match register {
            DATA if self.lcr & LCR_DIVISOR != 0 => low,
            DATA => self.received.pop().unwrap_or(0),
            IER if self.lcr & LCR_DIVISOR != 0 => high,
            IER => self.ier,
            IIR_FCR => self.read_iir(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let ready = if self.received.as_slice().is_empty() { 0 } else { LSR_DATA_READY };
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                LSR_SENT | overrun | ready
            }
            MSR => self.modem_lines() | core::mem::take(&mut self.modem_deltas),
            SCR => self.scr,
            _ => 0,
        }
    }

    /// Writes a register. A byte that goes out on the line is returned.
    pub(super) fn write(&mut self, register: usize, value: u8) -> Option<u8> {
        match register {
            DATA if self.lcr & LCR_DIVISOR != 0 => {
                self.divisor = self.divisor & 0xff00 | u16::from(value);
            }
            DATA => {
                // Sent at once, and the holding register is empty anew.
                self.thr_empty = true;
                if !self.is_looped() {
                    return Some(value);
                }
                self.receive(value);
            }
            IER if self.lcr & LCR_DIVISOR != 0 => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            IER => {
                // Who enables it while the register is empty, which it always is, gets one.
                self.thr_empty |= value & !self.ier & IER_THR_EMPTY != 0;
                self.ier = value & IER_BITS;
            }
            IIR_FCR => self.write_fcr(value),
            LCR => self.lcr = value,
            MCR => self.write_mcr(value),
            SCR => self.scr = value,
            // The status registers: a write is for the factory's test.
            _ => {}
        }
        None
    }

    /// A byte from the line, or the looped transmitter. Without room, the FIFO keeps what it
    /// has, and the receiver buffer takes the new one.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.room() > 0 {
            self.received.push(byte);
            return;
        }
        self.overrun = true;
        if !self.has_fifo() {
            self.received.clear();
            self.received.push(byte);
        }
    }

    /// How many bytes the receiver can take.
    pub(super) fn room(&self) -> usize {
        self.capacity().saturating_sub(self.received.as_slice().len())
    }

    /// Whether the transmitter feeds the receiver, and both are off the line.
    pub(super) fn is_looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    /// The interrupt of the highest priority that is due and enabled (table IV).
    pub(super) fn interrupt(&self) -> u8 {
        let due = |enable: u8, condition: bool| self.ier & enable != 0 && condition;
        let received = self.received.as_slice().len();
        if due(IER_LINE_STATUS, self.overrun) {
            IIR_LINE_STATUS
        } else if due(IER_RECEIVED, received >= self.trigger()) {
            IIR_RECEIVED
        } else if due(IER_RECEIVED, received > 0) {
            // Four character times pass in no time.
            IIR_TIMEOUT
        } else if due(IER_THR_EMPTY, self.thr_empty) {
            IIR_THR_EMPTY
        } else if due(IER_MODEM_STATUS, self.modem_deltas != 0) {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn has_fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.has_fifo() { FIFO_SIZE } else { 1 }
    }

    /// How many bytes make the received-data interrupt due.
    fn trigger(&self) -> usize {
        match self.fcr >> 6 {
            _ if !self.has_fifo() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn read_iir(&mut self) -> u8 {
        let id = self.interrupt();
        if id == IIR_THR_EMPTY {
            self.thr_empty = false;
        }
        if self.has_fifo() { id | IIR_FIFO } else { id }
    }

    /// The other bits count only together with the enable bit, whose change empties the FIFOs.
    fn write_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        if enable != self.has_fifo() || enable && value & FCR_CLEAR_RECEIVER != 0 {
            self.received.clear();
        }
        self.fcr = if enable { value & FCR_BITS } else { self.fcr & !FCR_ENABLE };
    }

    fn write_mcr(&mut self, value: u8) {
        let old = self.modem_lines();
        self.mcr = value & MCR_BITS;
        let new = self.modem_lines();
        let changed = (old ^ new) >> 4 & !MSR_TERI;
        let ring_ended = if old & !new & MSR_RI != 0 { MSR_TERI } else { 0 };
        self.modem_deltas |= changed | ring_ended;
    }

    /// The modem's lines: there is one, and it is ready; or the looped outputs.
    fn modem_lines(&self) -> u8 {
        if !self.is_looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let pairs =
            [(MCR_DTR, MSR_DSR), (MCR_RTS, MSR_CTS), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        let set = pairs.iter().filter(|(output, _)| self.mcr & output != 0);
        set.fold(0, |lines, (_, input)| lines | input)
    }
}
