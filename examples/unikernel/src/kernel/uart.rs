//! The console's 16550, with registers a byte apart; the firmware has set its speed.

use core::ptr::with_exposed_provenance_mut;

use unikernel::screen::Out;

const DATA: usize = 0;
const INTERRUPT_ENABLE: usize = 1;
const FIFO_CONTROL: usize = 2;
const MODEM_CONTROL: usize = 4;
const LINE_STATUS: usize = 5;

/// Line status: a byte was received, the transmitter takes another, it has sent all.
const RECEIVED: u8 = 1 << 0;
const TAKES: u8 = 1 << 5;
const SENT: u8 = 1 << 6;

/// A 16550.
pub struct Uart {
    base: usize,
}

impl Uart {
    /// The 16550 at this address, with an interrupt for each byte received.
    ///
    /// # Safety
    /// Its registers are there, and it is used through this value alone.
    pub unsafe fn new(base: usize) -> Self {
        let uart = Self { base };
        uart.write(FIFO_CONTROL, 0b111); // FIFOs on and empty, interrupt at the first byte
        uart.write(MODEM_CONTROL, 0b1011); // ready, and the interrupt's output on
        uart.write(INTERRUPT_ENABLE, 1);
        uart
    }

    /// The next byte that was received.
    pub fn get(&mut self) -> Option<u8> {
        (self.read(LINE_STATUS) & RECEIVED != 0).then(|| self.read(DATA))
    }

    /// Waits until everything is sent.
    pub fn drain(&mut self) {
        while self.read(LINE_STATUS) & SENT == 0 {
            core::hint::spin_loop();
        }
    }

    fn register(&self, offset: usize) -> *mut u8 {
        with_exposed_provenance_mut(self.base + offset)
    }

    fn read(&self, offset: usize) -> u8 {
        // SAFETY: a register of the device (`new`).
        unsafe { self.register(offset).read_volatile() }
    }

    fn write(&self, offset: usize, value: u8) {
        // SAFETY: a register of the device (`new`).
        unsafe { self.register(offset).write_volatile(value) };
    }
}

impl Out for Uart {
    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.read(LINE_STATUS) & TAKES == 0 {
                core::hint::spin_loop();
            }
            self.write(DATA, byte);
        }
    }
}
