//! Calls to the firmware that concern no other hart.

use axvm_guests::{
    arch::{
        csr,
        insn::{ECALL, run},
        machine, memory,
        memory::{FREE, NOTHING, peek, poke},
        sbi::{
            self, BASE, DBCN, HSM, INVALID_PARAM, IPI, LEGACY_CLEAR_IPI, LEGACY_GETCHAR,
            LEGACY_PUTCHAR, LEGACY_SET_TIMER, NOT_SUPPORTED, RFENCE, SRST, TIME, call, call_legacy,
        },
        time::wait,
        trap::{self, Irq},
    },
    ensure, ensure_eq, fail,
    report::{Failure, Outcome, Test},
    tests,
};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    the_firmware_says_what_it_is,
    what_the_firmware_probes_is_there,
    what_the_firmware_does_not_have_is_not_supported,
    a_call_changes_a0_and_a1_alone,
    the_console_writes_a_buffer,
    the_console_writes_what_there_is_of_a_buffer_that_ends,
    the_console_refuses_memory_that_is_not_there,
    the_console_takes_bytes,
    the_console_has_nothing_to_read,
    a_reserved_reset_is_refused,
    an_interrupt_to_itself_arrives,
    a_software_interrupt_is_taken_back,
    an_interrupt_to_a_hart_that_does_not_exist_is_refused,
];

/// What a call returned, for a comparison.
fn error(result: Result<u64, i64>) -> i64 {
    result.err().unwrap_or(0)
}

fn the_firmware_says_what_it_is() -> Outcome {
    axvm_only()?;
    ensure_eq!(call(BASE, 0, [0; 5]).unwrap_or(0), 2 << 24, "the specification's version");
    ensure_eq!(call(BASE, 1, [0; 5]).unwrap_or(0), sbi::AXVM, "the implementation");
    for function in 2..=6 {
        ensure!(call(BASE, function, [0; 5]).is_ok(), "function {function} is not there");
    }
    Ok(())
}

fn what_the_firmware_probes_is_there() -> Outcome {
    let there = [BASE, TIME, IPI, RFENCE, HSM, SRST, LEGACY_SET_TIMER, LEGACY_PUTCHAR];
    for extension in there {
        let probed = call(BASE, 3, [extension, 0, 0, 0, 0]);
        ensure!(probed.is_ok_and(|there| there != 0), "{extension:#x}: {probed:?}");
    }
    // PMU, CPPC, NACL, STA; reserved numbers
    axvm_only()?;
    ensure_eq!(call(BASE, 3, [DBCN, 0, 0, 0, 0]).unwrap_or(0), 1, "the console");
    for extension in [0x50_4d55, 0x4350_5043, 0x4e41_434c, 0x53_5441, 9, 0x7fff_ffff, u64::MAX] {
        let probed = call(BASE, 3, [extension, 0, 0, 0, 0]);
        ensure!(probed == Ok(0), "{extension:#x}: {probed:?}");
    }
    Ok(())
}

fn what_the_firmware_does_not_have_is_not_supported() -> Outcome {
    for (extension, function) in [
        (0x7fff_ffff, 0),
        (u64::MAX, u64::MAX),
        (BASE, 7),
        (BASE, u64::MAX),
        (TIME, 1),
        (IPI, 1),
        (RFENCE, 99),
        (HSM, 99),
        (SRST, 1),
    ] {
        let answer = error(call(extension, function, [0; 5]));
        ensure!(answer == NOT_SUPPORTED, "{extension:#x}, {function}: {answer}");
    }
    axvm_only()?;
    // The hypervisor's fences, as guests have no H extension.
    for function in 3..=6 {
        let answer = error(call(RFENCE, function, [1, 0, 0, 0, 0]));
        ensure!(answer == NOT_SUPPORTED, "RFENCE, {function}: {answer}");
    }
    let answer = error(call(DBCN, 3, [0; 5]));
    ensure!(answer == NOT_SUPPORTED, "DBCN, 3: {answer}");
    Ok(())
}

fn a_call_changes_a0_and_a1_alone() -> Outcome {
    for (extension, function, a0, a1) in
        [(BASE, 0, 0, None), (BASE, 99, NOT_SUPPORTED as u64, None), (BASE, 3, 0, Some(1))]
    {
        let mut before = [0; 32];
        let frame = run(&[ECALL], |frame| {
            frame.x[10] = if a1.is_some() { TIME } else { frame.x[10] };
            frame.x[16] = function;
            frame.x[17] = extension;
            before = frame.x;
        })?;
        ensure_eq!(frame.x[10], a0, "{function}: a0");
        ensure_eq!(frame.x[11], a1.unwrap_or(frame.x[11]), "{function}: a1");
        for reg in (1..10).chain(12..32) {
            ensure_eq!(frame.x[reg], before[reg], "{function}: x{reg}");
        }
    }
    Ok(())
}

/// There is a console extension, or the test is skipped.
fn console() -> Outcome {
    if call(BASE, 3, [DBCN, 0, 0, 0, 0]) == Ok(0) {
        return Err(Failure::Skipped("no console extension"));
    }
    Ok(())
}

fn text(at: u64, text: &[u8]) {
    for (offset, &byte) in text.iter().enumerate() {
        poke(at + offset as u64, byte);
    }
}

fn the_console_writes_a_buffer() -> Outcome {
    console()?;
    ensure!(call(DBCN, 0, [0, FREE, 0, 0, 0]) == Ok(0), "nothing");
    let words = b"written by the firmware\r\n";
    // Across a page boundary.
    let at = FREE + 0x1000 - 7;
    text(at, words);
    let len = words.len() as u64;
    let (mut at, end) = (at, at + len);
    while at < end {
        match call(DBCN, 0, [end - at, at, 0, 0, 0]) {
            Ok(written) if written > 0 && written <= end - at => at += written,
            other => fail!("{other:?} for {} bytes", end - at),
        }
    }
    Ok(())
}

/// The end of RAM: 128 MiB at least, and a multiple of them.
fn ram_end() -> u64 {
    let mib = 1u64 << 20;
    let mut end = 0x8800_0000;
    // The device tree lies high.
    while end < machine::tree().end {
        end += 128 * mib;
    }
    end
}

fn the_console_writes_what_there_is_of_a_buffer_that_ends() -> Outcome {
    console()?;
    axvm_only()?;
    // The last page may be the device tree's; writing is only done where it is not.
    let end = ram_end();
    let tree = machine::tree();
    let words = b"ends\r\n";
    let at = end - words.len() as u64;
    if tree.contains(&at) || tree.contains(&(end - 1)) {
        return Err(Failure::Skipped("the device tree lies at the end of memory"));
    }
    text(at, words);
    for len in [100, 1 << 20, 1 << 40, u64::MAX] {
        let answer = call(DBCN, 0, [len, at, 0, 0, 0]);
        let some = answer.is_ok_and(|written| written > 0 && written <= words.len() as u64);
        ensure!(some || answer == Err(INVALID_PARAM), "{len:#x} bytes: {answer:?}");
    }
    Ok(())
}

fn the_console_refuses_memory_that_is_not_there() -> Outcome {
    console()?;
    for function in [0, 1] {
        for (len, low, high) in [
            (1, NOTHING, 0),
            (1 << 40, NOTHING, 0),
            (u64::MAX, NOTHING, 0),
            (1, FREE, 1),
            (16, u64::MAX - 3, 0),
            (1, FREE, u64::MAX),
        ] {
            let answer = error(call(DBCN, function, [len, low, high, 0, 0]));
            ensure!(
                answer == INVALID_PARAM,
                "{function}: {len:#x} at {high:#x},{low:#x}: {answer}"
            );
        }
    }
    Ok(())
}

fn the_console_takes_bytes() -> Outcome {
    for byte in *b"a legacy call\r\n" {
        ensure_eq!(call_legacy(LEGACY_PUTCHAR, byte.into()), 0, "the legacy call");
    }
    console()?;
    for byte in *b"one by one\r\n" {
        // Bits above the byte do not count.
        let answer = call(DBCN, 2, [0xabcd_ef00 | u64::from(byte), 0, 0, 0, 0]);
        ensure!(answer.is_ok(), "write_byte: {answer:?}");
    }
    Ok(())
}

fn the_console_has_nothing_to_read() -> Outcome {
    axvm_only()?;
    ensure_eq!(call_legacy(LEGACY_GETCHAR, 0), u64::MAX, "the legacy call");
    console()?;
    poke(FREE, 0x5555_5555u32);
    ensure!(call(DBCN, 1, [4, FREE, 0, 0, 0]) == Ok(0), "read");
    ensure_eq!(peek::<u32>(FREE), 0x5555_5555, "the buffer");
    Ok(())
}

fn a_reserved_reset_is_refused() -> Outcome {
    // Types are 32 bits; those of vendors may be unknown or refused.
    for (kind, reason) in [(3, 0), (0xefff_ffff, 0), (0, 2), (0, 0xdfff_ffff), (1, 3)] {
        let answer = error(call(SRST, 0, [kind, reason, 0, 0, 0]));
        let known = answer == INVALID_PARAM || answer == NOT_SUPPORTED && !sbi::is_axvm();
        ensure!(known, "type {kind:#x}, reason {reason:#x}: {answer}");
    }
    axvm_only()?;
    let answer = error(call(SRST, 0, [0xf000_0000, 0, 0, 0, 0]));
    ensure!(answer == NOT_SUPPORTED, "a vendor's type: {answer}");
    Ok(())
}

fn own() -> u64 {
    machine::hart(0)
}

fn pending() -> bool {
    csr::read!("sip") & csr::SSI != 0
}

fn an_interrupt_to_itself_arrives() -> Outcome {
    // Polled, then taken; by a mask, by its own base, and as one of all.
    for (round, (mask, base)) in
        [(1 << own(), 0), (1, own()), (0, u64::MAX)].into_iter().enumerate()
    {
        let taken = round as u64;
        trap::close();
        csr::set!("sie", csr::SSI);
        ensure!(!pending(), "pending before it was sent");
        ensure!(sbi::send_ipi(mask, base) == Ok(0), "mask {mask}, base {base:#x}");
        ensure!(wait(pending), "mask {mask}, base {base:#x}: not pending");
        memory::wait_for_interrupt();
        ensure_eq!(trap::taken(Irq::Software), taken, "taken while closed");
        trap::open();
        ensure!(wait(|| trap::taken(Irq::Software) == taken + 1), "mask {mask}: not taken");
        ensure!(!pending(), "pending after it was taken");
    }
    // Nobody.
    trap::close();
    ensure!(sbi::send_ipi(0, 0) == Ok(0), "to nobody");
    ensure!(!pending(), "pending though it was for nobody");
    // The guest may set it by itself.
    csr::set!("sip", csr::SSI);
    ensure!(pending(), "sip.SSIP cannot be set");
    trap::open();
    ensure!(wait(|| trap::taken(Irq::Software) == 4), "its own is not taken");
    Ok(())
}

fn a_software_interrupt_is_taken_back() -> Outcome {
    ensure!(sbi::send_ipi(1, own()) == Ok(0), "send");
    ensure!(wait(pending), "not pending");
    csr::clear!("sip", csr::SSI);
    ensure!(!pending(), "sip.SSIP cannot be cleared");
    axvm_only()?;
    ensure!(sbi::send_ipi(1, own()) == Ok(0), "send");
    ensure!(wait(pending), "not pending");
    ensure_eq!(call_legacy(LEGACY_CLEAR_IPI, 0), 1, "the legacy call with one pending");
    ensure!(!pending(), "still pending");
    ensure_eq!(call_legacy(LEGACY_CLEAR_IPI, 0), 0, "the legacy call with none pending");
    Ok(())
}

fn an_interrupt_to_a_hart_that_does_not_exist_is_refused() -> Outcome {
    axvm_only()?;
    for (mask, base) in
        [(1, 64), (1 << 63, 0), (1, u64::MAX - 1), (3, 1 << 40), (1 << own() | 1 << 40, 0)]
    {
        for (extension, name) in [(IPI, "IPI"), (RFENCE, "RFENCE")] {
            let answer = error(call(extension, 0, [mask, base, 0, 0, 0]));
            ensure!(answer == INVALID_PARAM, "{name}: mask {mask:#x}, base {base:#x}: {answer}");
        }
    }
    ensure!(!pending(), "one was sent all the same");
    Ok(())
}
