//! The 16550A UART.

mod fifo;
mod registers;

use alloc::sync::Arc;

use axerrno::{AxError, AxResult};

use self::{fifo::FIFO_SIZE, registers::IIR_NONE};
use super::CharBackend;
use crate::{
    device::{BaseDeviceOps, DeviceAddrRange, EmuDeviceType, PortRange, WidthSet},
    irq::IrqLine,
    mm::{GpaRange, GuestPhysAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering, fence},
    },
    vcpu::{AccessWidth, Port},
};

pub use fifo::Fifo;
pub use registers::Uart16550State;

/// Registers.
const COUNT: usize = 8;
/// The largest distance between registers is 4 bytes.
const MAX_SHIFT: u32 = 2;

/// A 16550A (TI PC16550D, TL16C550C) at guest-physical addresses, or at I/O ports.
///
/// Bytes take no time on this line. What the guest writes is sent before the access ends, so the
/// transmitter is always empty, and its FIFO is never seen; the interrupt that says so is due
/// again after each byte. What the backend has is received when there is room for it, so nothing
/// overruns but a loop-back. Bytes below the FIFO's trigger level make the timeout interrupt due
/// at once. Baud rate, word length, parity and breaks change nothing.
///
/// At the other end is a terminal that is always ready: CTS, DSR and DCD are active. OUT2 does
/// not gate the interrupt.
pub struct Uart16550<R = GpaRange> {
    range: R,
    reg_shift: u32,
    line: IrqLine,
    backend: Arc<dyn CharBackend>,
    chip: Mutex<Chip>,
    /// Input was announced and nobody has looked yet.
    input: AtomicBool,
}

struct Chip {
    state: Uart16550State,
    /// The backend may have more than fitted when it was last asked.
    more: bool,
}

impl Uart16550 {
    /// A UART with its registers at `base`, `1 << reg_shift` bytes apart; `reg_shift` is at most
    /// 2. They are accessed with 8 bits, or with as many as they are apart. `line` is a level
    /// line.
    ///
    /// # Errors
    /// `InvalidInput` for another shift, or when the registers overflow the address space.
    pub fn new(
        base: GuestPhysAddr,
        reg_shift: u32,
        line: IrqLine,
        backend: Arc<dyn CharBackend>,
    ) -> AxResult<Self> {
        let size = if reg_shift <= MAX_SHIFT { COUNT << reg_shift } else { 0 };
        let range = GpaRange::new(base, size).ok_or(AxError::InvalidInput)?;
        Ok(Self::with_range(range, reg_shift, line, backend))
    }
}

impl Uart16550<PortRange> {
    /// A UART at eight I/O ports from `first` on: COM1 is at `0x3f8`. `line` is a level line.
    ///
    /// # Errors
    /// `InvalidInput` when there are no eight ports from there.
    pub fn at_ports(first: Port, line: IrqLine, backend: Arc<dyn CharBackend>) -> AxResult<Self> {
        let last = first.0.checked_add(COUNT as u16 - 1).ok_or(AxError::InvalidInput)?;
        let range = PortRange::new(first, Port(last)).ok_or(AxError::InvalidInput)?;
        Ok(Self::with_range(range, 0, line, backend))
    }
}

impl<R> Uart16550<R> {
    fn with_range(range: R, reg_shift: u32, line: IrqLine, backend: Arc<dyn CharBackend>) -> Self {
        let chip = Chip { state: Uart16550State::default(), more: true };
        let (chip, input) = (Mutex::new(chip), AtomicBool::new(false));
        Self { range, reg_shift, line, backend, chip, input }
    }

    /// Says that the backend has input. Callable from any CPU, also from an interrupt handler:
    /// it never waits. If the chip is being accessed, whoever does that looks afterwards.
    pub fn notify_input(&self) {
        self.input.swap(true, Ordering::AcqRel);
        self.serve_input();
    }

    /// Reads the whole state.
    pub fn state(&self) -> Uart16550State {
        self.access(|chip| chip.state.clone())
    }

    /// Replaces the whole state; the interrupt line follows.
    ///
    /// # Errors
    /// `InvalidInput` for bits that a register lacks, or more received bytes than there is room
    /// for; nothing is changed then.
    pub fn set_state(&self, state: &Uart16550State) -> AxResult {
        if !state.is_possible() {
            return Err(AxError::InvalidInput);
        }
        self.access(|chip| {
            *chip = Chip { state: state.clone(), more: true };
            self.refill(chip);
            self.drive(chip);
        });
        Ok(())
    }

    /// Does something with the chip. Announced input that comes meanwhile finds it locked and is
    /// left to the one who unlocks it.
    fn access<T>(&self, act: impl FnOnce(&mut Chip) -> T) -> T {
        let result = act(&mut self.chip.lock());
        self.serve_input();
        result
    }

    /// Takes announced input, unless someone has the lock, who then does it.
    fn serve_input(&self) {
        loop {
            // One side announces and finds the lock taken, the other one unlocks and finds
            // nothing announced: not both.
            fence(Ordering::SeqCst);
            if !self.input.load(Ordering::Acquire) {
                return;
            }
            let Some(mut chip) = self.chip.try_lock() else { return };
            // Taken back first: what comes from here on is announced anew.
            if self.input.swap(false, Ordering::AcqRel) {
                self.pull(&mut chip);
                self.drive(&chip);
            }
        }
    }

    /// Reads from the backend what there is room for.
    fn pull(&self, chip: &mut Chip) {
        let mut bytes = [0; FIFO_SIZE];
        // What a looped receiver does not hear stays with the backend.
        let room = if chip.state.is_looped() { 0 } else { chip.state.room() };
        let read = match bytes.get_mut(..room) {
            Some(free) if room > 0 => self.backend.read(free).min(room),
            _ => 0,
        };
        bytes.iter().take(read).for_each(|byte| chip.state.receive(*byte));
        chip.more = read == room;
    }

    /// Gets more when all that was received is gone.
    fn refill(&self, chip: &mut Chip) {
        if chip.more && chip.state.received.as_slice().is_empty() {
            self.pull(chip);
        }
    }

    /// Sets the interrupt line. Under the lock, so that it ends at the last level.
    fn drive(&self, chip: &Chip) {
        let result = match chip.state.interrupt() {
            IIR_NONE => self.line.deassert(),
            _ => self.line.assert(),
        };
        // A line to nowhere is the host's choice: the guest polls.
        let _ = result;
    }

    /// The register at an offset, if one begins there.
    fn register(&self, offset: usize) -> Option<usize> {
        let register = offset >> self.reg_shift;
        (register << self.reg_shift == offset && register < COUNT).then_some(register)
    }
}

impl<R: DeviceAddrRange> Uart16550<R> {
    fn register_at(&self, addr: R::Addr) -> Option<usize> {
        let (first, _) = self.range.bounds();
        self.register(R::number(addr).checked_sub(first)?)
    }
}

/// A read between the registers is 0, and a write there is ignored.
impl<R: DeviceAddrRange + Send + Sync> BaseDeviceOps<R> for Uart16550<R> {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Console
    }

    fn address_range(&self) -> R {
        self.range
    }

    fn handle_read(&self, addr: R::Addr, _: AccessWidth) -> AxResult<usize> {
        let Some(register) = self.register_at(addr) else { return Ok(0) };
        let value = self.access(|chip| {
            let value = chip.state.read(register);
            self.refill(chip);
            self.drive(chip);
            value
        });
        Ok(value.into())
    }

    fn handle_write(&self, addr: R::Addr, _: AccessWidth, value: usize) -> AxResult {
        let Some(register) = self.register_at(addr) else { return Ok(()) };
        self.access(|chip| {
            // Before anybody is told that it was sent.
            if let Some(byte) = chip.state.write(register, value as u8) {
                self.backend.write(&[byte]);
            }
            self.refill(chip);
            self.drive(chip);
        });
        Ok(())
    }

    /// 8 bits, and as many as the registers are apart.
    fn legal_widths(&self) -> WidthSet {
        let apart = AccessWidth::try_from(1 << self.reg_shift).unwrap_or(AccessWidth::Byte);
        WidthSet::one(AccessWidth::Byte) | apart.into()
    }

    /// What was typed and not received stays with the backend.
    fn reset(&self) {
        self.access(|chip| {
            *chip = Chip { state: Uart16550State::default(), more: true };
            self.drive(chip);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
