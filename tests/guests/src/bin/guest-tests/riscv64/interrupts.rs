//! Interrupts from the serial port, through the interrupt controller.

use axvm_guests::{
    arch::{
        cpu, csr, harts,
        harts::Meeting,
        memory,
        plic::{self, UART, claim, complete, context},
        time::{self, ms, now, spin, wait, wait_ms},
        trap::{self, Irq},
        uart,
    },
    ensure, ensure_eq,
    report::{Outcome, Test},
    tests,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    an_empty_transmitter_interrupts_until_it_is_identified,
    what_is_still_due_comes_again_after_completion,
    a_claim_of_nothing_is_nothing,
    a_threshold_and_no_priority_and_no_enable_bit_mask,
    the_handler_is_called_and_sleep_ends,
    what_is_sent_in_a_loop_is_received_with_an_interrupt,
    an_interrupt_goes_to_the_hart_that_it_is_routed_to,
    of_two_harts_one_claims,
    registers_that_nobody_has_read_zero,
];

fn pending() -> bool {
    trap::is_pending(Irq::External)
}

/// The transmitter asks for attention; in a loop, so that what is sent stays here.
fn request() {
    uart::write(uart::MCR, uart::LOOP);
    uart::write(uart::IER, 0);
    uart::write(uart::IER, uart::SENT);
}

fn an_empty_transmitter_interrupts_until_it_is_identified() -> Outcome {
    plic::route(0);
    csr::set!("sie", csr::SEI);
    for round in 0..3 {
        ensure!(!pending(), "round {round}: pending before");
        request();
        ensure!(wait(pending), "round {round}: not pending");
        ensure_eq!(plic::read(plic::pending(0)), 1 << UART, "round {round}: the pending bits");
        ensure_eq!(claim(context(0)), UART, "round {round}: the claim");
        ensure_eq!(claim(context(0)), 0, "round {round}: a second claim");
        ensure!(wait(|| !pending()), "round {round}: pending while it is in service");
        ensure_eq!(uart::read(uart::IIR_FCR) & 15, 2, "round {round}: the identification");
        complete(context(0), UART);
        spin(2);
        ensure!(!pending(), "round {round}: pending after it was completed");
    }
    // A byte sent makes it due again.
    uart::write(uart::DATA, b'x');
    ensure!(wait(pending), "not pending after a byte was sent");
    Ok(())
}

fn what_is_still_due_comes_again_after_completion() -> Outcome {
    plic::route(0);
    request();
    for round in 0..3 {
        ensure!(wait(pending), "round {round}: not pending");
        ensure_eq!(claim(context(0)), UART, "round {round}: the claim");
        complete(context(0), UART);
    }
    Ok(())
}

fn a_claim_of_nothing_is_nothing() -> Outcome {
    for context in [context(0), context(1)] {
        ensure_eq!(claim(context), 0, "context {context}");
    }
    // Completing what was not claimed does nothing.
    plic::route(0);
    for source in [0, 1, UART, 95, 1023, u32::MAX] {
        complete(context(0), source);
    }
    ensure_eq!(claim(context(0)), 0, "after completions");
    // What is enabled for another is not this one's.
    request();
    ensure!(wait(pending), "not pending");
    ensure_eq!(claim(context(1)), 0, "the other context");
    ensure_eq!(claim(context(0)), UART, "its own context");
    Ok(())
}

fn a_threshold_and_no_priority_and_no_enable_bit_mask() -> Outcome {
    let own = context(0);
    plic::route(0);
    request();
    ensure!(wait(pending), "not pending");
    for (what, address, mask, open) in [
        ("a threshold of 7", plic::threshold(own), 7, 0),
        ("a threshold of its priority", plic::threshold(own), 1, 0),
        ("priority 0", plic::priority(UART), 0, 1),
        ("no enable bit", plic::enable(own, 0), 0, 1 << UART),
    ] {
        plic::write(address, mask);
        ensure!(wait(|| !pending()), "pending in spite of {what}");
        plic::write(address, open);
        ensure!(wait(pending), "not pending without {what}");
    }
    plic::write(plic::threshold(own), 1);
    plic::write(plic::priority(UART), 2);
    ensure!(wait(pending), "not pending with a priority above the threshold");
    plic::write(plic::priority(UART), 0);
    ensure_eq!(claim(own), 0, "a claim of priority 0");
    Ok(())
}

fn the_handler_is_called_and_sleep_ends() -> Outcome {
    plic::route(0);
    csr::set!("sie", csr::SEI);
    // Pending already: it does not sleep at all.
    request();
    ensure!(wait(pending), "not pending");
    memory::wait_for_interrupt();
    trap::open();
    ensure!(wait(|| trap::taken(Irq::External) == 1), "not taken");
    ensure_eq!(cpu::this().source(), UART, "the source");
    for round in 2..10 {
        request();
        ensure!(wait(|| trap::taken(Irq::External) == round), "round {round}: not taken");
    }
    spin(2);
    ensure_eq!(trap::taken(Irq::External), 9, "taken");
    Ok(())
}

fn what_is_sent_in_a_loop_is_received_with_an_interrupt() -> Outcome {
    plic::route(0);
    uart::write(uart::MCR, uart::LOOP);
    uart::write(uart::IER, uart::RECEIVED);
    spin(1);
    ensure!(!pending(), "pending before");
    for byte in [b'x', 0, 0xff] {
        uart::write(uart::DATA, byte);
        ensure!(wait(pending), "{byte:#x}: not pending");
        ensure_eq!(claim(context(0)), UART, "{byte:#x}: the claim");
        ensure!(uart::read(uart::LSR) & uart::READY != 0, "{byte:#x}: nothing there");
        ensure_eq!(uart::read(uart::DATA), byte, "what was received");
        ensure!(uart::read(uart::LSR) & uart::READY == 0, "{byte:#x}: more is there");
        complete(context(0), UART);
        ensure!(wait(|| !pending()), "{byte:#x}: still pending");
    }
    Ok(())
}

/// Waits for an interrupt, asleep, with its handler on.
fn sleep_until_taken() -> Outcome {
    csr::set!("sie", csr::SEI);
    READY.meet()?;
    // Others may end the sleep, so once more.
    let end = now() + ms(5000);
    while trap::taken(Irq::External) == 0 && now() < end {
        time::nap(10_000);
        trap::open();
        trap::close();
    }
    ensure!(trap::taken(Irq::External) > 0, "the interrupt does not come");
    ensure!(now() < end, "the interrupt does not end the sleep");
    ensure_eq!(cpu::this().source(), UART, "the source");
    TAKEN.fetch_add(trap::taken(Irq::External), Relaxed);
    Ok(())
}

static READY: Meeting = Meeting::new();
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn an_interrupt_goes_to_the_hart_that_it_is_routed_to() -> Outcome {
    harts::two()?;
    csr::set!("sie", csr::SEI);
    trap::open();
    TAKEN.store(0, Relaxed);
    for round in 1..=5 {
        READY.reset();
        plic::route(1);
        harts::spawn(sleep_until_taken)?;
        READY.meet()?;
        spin(if round % 2 == 0 { 5 } else { 0 });
        request();
        harts::join()?;
        ensure_eq!(TAKEN.load(Relaxed), round, "taken by the other hart");
        ensure_eq!(trap::taken(Irq::External), 0, "taken by this hart");
    }
    Ok(())
}

static STOP: AtomicU64 = AtomicU64::new(0);

fn take_until_told() -> Outcome {
    csr::set!("sie", csr::SEI);
    trap::open();
    READY.meet()?;
    let stopped = wait_ms(20_000, || {
        TAKEN.store(trap::taken(Irq::External), Relaxed);
        STOP.load(Relaxed) != 0
    });
    trap::close();
    ensure!(stopped, "not told to stop");
    Ok(())
}

/// Both harts are interrupted; who comes second finds nothing, and no request is lost or served
/// twice.
fn of_two_harts_one_claims() -> Outcome {
    const ROUNDS: u64 = 60;
    harts::two()?;
    READY.reset();
    STOP.store(0, Relaxed);
    TAKEN.store(0, Relaxed);
    plic::route(0);
    plic::route(1);
    harts::spawn(take_until_told)?;
    READY.meet()?;
    let mut own = 0;
    for round in 1..=ROUNDS {
        request();
        // This hart polls, every other time.
        if round % 2 == 0 && claim(context(0)) == UART {
            uart::read(uart::IIR_FCR);
            complete(context(0), UART);
            own += 1;
        }
        let served = wait(|| own + TAKEN.load(Relaxed) >= round);
        ensure!(served, "round {round}: {own} served here, {} there", TAKEN.load(Relaxed));
    }
    STOP.store(1, Relaxed);
    harts::join()?;
    let other = TAKEN.load(Relaxed);
    ensure!(own + other == ROUNDS, "{own} served here, {other} there, of {ROUNDS}");
    Ok(())
}

fn registers_that_nobody_has_read_zero() -> Outcome {
    axvm_only()?;
    let old = plic::read(plic::threshold(context(0)));
    // M-mode's contexts, contexts of harts that do not exist, sources beyond the last.
    for address in [
        plic::enable(0, 0),
        plic::threshold(0),
        plic::threshold(0) + 4,
        plic::enable(127, 0),
        plic::threshold(127),
        plic::priority(0),
        plic::priority(1023),
        plic::enable(context(0), 31),
    ] {
        plic::write(address, 3);
        ensure_eq!(plic::read(address), 0, "{address:#x}");
    }
    ensure_eq!(plic::read(plic::threshold(context(0))), old, "the threshold");
    // Priorities and thresholds have three bits; source 0 has no enable bit.
    plic::write(plic::priority(20), u32::MAX);
    ensure_eq!(plic::read(plic::priority(20)), 7, "a priority");
    plic::write(plic::priority(20), 0);
    plic::write(plic::enable(context(0), 0), u32::MAX);
    ensure_eq!(plic::read(plic::enable(context(0), 0)), u32::MAX - 1, "the enable bits");
    Ok(())
}
