//! Announced input against accesses, checked by loom in every order.

use super::*;
use crate::{
    irq::{IrqInput, Trigger},
    sync::atomic::AtomicUsize,
};
use loom::thread;

struct Input(AtomicBool);

impl IrqInput for Input {
    fn set_level(&self, _: usize, asserted: bool) -> AxResult {
        self.0.swap(asserted, Ordering::AcqRel);
        Ok(())
    }

    fn pulse(&self, _: usize) -> AxResult {
        Ok(())
    }
}

/// Bytes that were typed and not read.
struct Typed(AtomicUsize);

impl CharBackend for Typed {
    fn write(&self, _: &[u8]) {}

    fn read(&self, buf: &mut [u8]) -> usize {
        let typed = self.0.swap(0, Ordering::AcqRel);
        assert!(typed <= buf.len());
        typed
    }
}

fn uart() -> (Arc<Uart16550>, Arc<Typed>, Arc<Input>) {
    let input = Arc::new(Input(AtomicBool::new(false)));
    let typed = Arc::new(Typed(AtomicUsize::new(0)));
    let line = IrqLine::new(input.clone(), 0, Trigger::Level);
    let uart = Uart16550::new(0.into(), 0, line, typed.clone()).unwrap();
    for (register, value) in [(registers::IIR_FCR, 1), (registers::IER, 1)] {
        uart.handle_write(register.into(), AccessWidth::Byte, value).unwrap();
    }
    (Arc::new(uart), typed, input)
}

fn type_one(uart: &Uart16550, typed: &Typed) {
    typed.0.fetch_add(1, Ordering::AcqRel);
    uart.notify_input();
}

#[test]
fn loom_input_that_is_announced_during_an_access_is_received() {
    loom::model(|| {
        let (uart, typed, input) = uart();
        let (other, keyboard) = (uart.clone(), typed.clone());
        let thread = thread::spawn(move || type_one(&other, &keyboard));
        uart.handle_read(registers::LSR.into(), AccessWidth::Byte).unwrap();
        thread.join().unwrap();
        assert_eq!(typed.0.load(Ordering::Acquire), 0, "left behind");
        assert!(input.0.load(Ordering::Acquire), "no interrupt");
    });
}

#[test]
fn loom_of_two_announcements_none_is_lost() {
    loom::model(|| {
        let (uart, typed, _) = uart();
        let (other, keyboard) = (uart.clone(), typed.clone());
        let thread = thread::spawn(move || type_one(&other, &keyboard));
        type_one(&uart, &typed);
        thread.join().unwrap();
        assert_eq!(uart.state().received.as_slice().len(), 2);
    });
}
