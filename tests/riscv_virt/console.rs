//! The console, by the 16550 with its interrupt and by the firmware.

use axvm::{arch::riscv64::Csr, config::EmulatedDeviceConfig, device::EmuDeviceType};
use axvm_testkit::MockHart;

use crate::support::*;

const VSEI: u64 = 1 << 10;
const DBCN: u64 = 0x4442_434e;
const INVALID_PARAM: u64 = -3i64 as u64;

/// `hvip` as the guest finds it at its next entry.
fn hvip_at_entry(machine: &Virt) -> u64 {
    let (tell, told) = std::sync::mpsc::channel();
    once(machine, 0, move |guest| {
        tell.send(guest.cpu.get(Csr::Hvip)).unwrap();
        axvm_testkit::interrupt(1)
    });
    told.recv().unwrap()
}

#[test]
fn what_the_guest_writes_to_the_uart_is_printed() {
    let (machine, terminal) = booted(config(1));
    for byte in "it lives\n".bytes() {
        assert_ne!(load(&machine, UART + 5, true) & 0x20, 0, "there is room");
        store(&machine, UART, byte.into(), true);
    }
    assert_eq!(terminal.take(), "it lives\n");
}

#[test]
fn what_is_typed_interrupts_the_guest_until_it_is_read() {
    let (machine, terminal) = booted(config(1));
    // Source 10: priority, enabled for the S-mode context of hart 0; the UART's receive interrupt.
    store(&machine, PLIC + 4 * UART_IRQ as u64, 1, false);
    store(&machine, PLIC + 0x2080, 1 << UART_IRQ, false);
    store(&machine, PLIC + 0x20_1000, 0, false);
    store(&machine, UART + 1, 1, true);
    assert_eq!(hvip_at_entry(&machine), 0);
    terminal.type_in("hi");
    machine.notify_input();
    assert_eq!(hvip_at_entry(&machine), VSEI);
    assert_eq!(Hart::with(|cpu| cpu.get(Csr::Hvip)), 0, "and the host is not kept awake by it");
    assert_eq!(load(&machine, PLIC + 0x20_1004, false), UART_IRQ as u64, "the guest claims it");
    assert_eq!(hvip_at_entry(&machine), 0);
    assert_eq!(load(&machine, UART, true), b'h'.into());
    store(&machine, PLIC + 0x20_1004, UART_IRQ as u64, false);
    assert_eq!(hvip_at_entry(&machine), VSEI, "there is more to be read");
    assert_eq!(load(&machine, PLIC + 0x20_1004, false), UART_IRQ as u64);
    assert_eq!(load(&machine, UART, true), b'i'.into());
    store(&machine, PLIC + 0x20_1004, UART_IRQ as u64, false);
    assert_eq!(hvip_at_entry(&machine), 0);
    assert_eq!(load(&machine, UART + 5, true) & 1, 0, "nothing is left");
}

#[test]
fn the_firmwares_console_prints_the_guests_memory() {
    let (machine, terminal) = booted(config(1));
    let text = RAM + 0x1ff_fff0;
    machine.vm.memory().write(text.into(), b"across two pages of the guest").unwrap();
    assert_eq!(ecall(&machine, 0, [DBCN, 0, 29, text as u64, 0]), (0, 29));
    assert_eq!(terminal.take(), "across two pages of the guest");
    assert_eq!(ecall(&machine, 0, [DBCN, 2, b'!'.into(), 9, 0]), (0, 0));
    assert_eq!(ecall(&machine, 0, [1, 0, b'?'.into(), 9, 0]), (0, 9), "legacy: a1 is kept");
    assert_eq!(terminal.take(), "!?");
}

/// Upstream: the guest's length was an allocation of the host's.
#[test]
fn lengths_and_addresses_of_a_hostile_guest_do_no_harm() {
    let (machine, terminal) = booted(config(1));
    machine.vm.memory().write(RAM.into(), &[b'x'; 0x2000]).unwrap();
    let (error, count) = ecall(&machine, 0, [DBCN, 0, u64::MAX, RAM as u64, 0]);
    assert_eq!((error, count as usize), (0, terminal.take().len()));
    assert!((1..=0x2000).contains(&count), "a part of it: {count}");
    for function in [0, 1] {
        terminal.type_in("lost?");
        for (at, high) in [(0, 0), (UART, 0), (u64::MAX, 0), (RAM as u64 - 1, 0), (RAM as u64, 1)] {
            let done = ecall(&machine, 0, [DBCN, function, 5, at, high]);
            assert_eq!(done, (INVALID_PARAM, 0), "{function} {at:#x}");
        }
        assert_eq!(terminal.take(), "");
    }
    // Nothing of what was typed is lost.
    assert_eq!(ecall(&machine, 0, [DBCN, 1, 5, RAM as u64, 0]), (0, 5));
    let mut read = [0; 6];
    machine.vm.memory().read(RAM.into(), &mut read).unwrap();
    assert_eq!(&read, b"lost?x");
}

#[test]
fn typed_bytes_come_by_the_firmware_too() {
    let (machine, terminal) = booted(config(1));
    assert_eq!(ecall(&machine, 0, [2, 0, 0, 7, 0]), (u64::MAX, 7), "nothing was typed");
    terminal.type_in("ab");
    assert_eq!(ecall(&machine, 0, [2, 0, 0, 7, 0]), (b'a'.into(), 7));
    assert_eq!(ecall(&machine, 0, [DBCN, 1, 64, RAM as u64, 0]), (0, 1));
    assert_eq!(ecall(&machine, 0, [DBCN, 1, 64, RAM as u64, 0]), (0, 0));
}

/// From one entry to the next through the whole VM: no register is touched but `hvip`, by the
/// interrupt controller, when it was told of a change.
#[test]
fn an_access_to_a_device_touches_no_register_of_the_hart() {
    let (machine, _) = booted(config(1));
    Hart::with(|cpu| {
        // The first entry of a run asks the controller.
        cpu.script(|_| axvm_testkit::guest_page_fault(21, UART + 5, 0x4503));
        cpu.script(|guest| {
            guest.cpu.take_touched();
            axvm_testkit::guest_page_fault(21, UART + 5, 0x4503)
        });
        cpu.script(|guest| {
            assert_eq!(guest.cpu.take_touched(), []);
            calling(guest, [0x10, 0, 0, 0, 0])
        });
        cpu.script(|guest| {
            assert_eq!(guest.cpu.take_touched(), []);
            axvm_testkit::interrupt(5)
        });
    });
    machine.vm.run_vcpu(0).unwrap();
    assert!(Hart::with(|cpu| cpu.is_done()));
}

/// Without an interrupt controller its interrupt leads nowhere; the guest polls.
#[test]
fn a_uart_without_a_plic_is_polled() {
    let uart = device("uart", EmuDeviceType::Console, UART, 0x100);
    let config = bare(1).with_emu_device(EmulatedDeviceConfig { irq_id: UART_IRQ, ..uart });
    let (machine, terminal) = booted(config);
    store(&machine, UART + 1, 1, true);
    terminal.type_in("x");
    machine.notify_input();
    assert_eq!(hvip_at_entry(&machine), 0);
    assert_eq!(load(&machine, UART, true), b'x'.into());
    store(&machine, UART, b'y'.into(), true);
    assert_eq!(terminal.take(), "y");
}
