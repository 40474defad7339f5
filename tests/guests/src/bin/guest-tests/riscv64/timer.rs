//! The timer's interrupt comes when it should, and not before.

use axvm_guests::{
    arch::{
        cpu, csr, machine, memory, sbi,
        time::{Source, ms, now, spin, wait_ms},
        trap::{self, Irq},
    },
    ensure, ensure_eq,
    report::{Outcome, Test},
    tests,
};

pub const TESTS: &[Test] = tests![
    a_time_in_the_past_is_due_at_once,
    a_time_far_away_is_not_due,
    a_timer_is_taken_back,
    the_interrupt_comes_while_the_guest_computes_and_not_before_its_time,
    the_interrupt_comes_while_the_guest_sleeps_and_not_before_its_time,
    waiting_ends_with_interrupts_closed_too,
    a_masked_timer_does_not_interrupt,
    a_due_timer_interrupts_when_it_is_unmasked,
    a_later_time_replaces_an_earlier_one,
    a_timer_of_many_ticks_keeps_time,
];

fn pending() -> bool {
    trap::is_pending(Irq::Timer)
}

/// Waits for something, a second at most; whether it came.
///
/// QEMU 7.2 may lose the interrupt of `vstimecmp` when it becomes due just while the guest is
/// entered, until the next entry: where that is what ticks, the guest leaves now and then.
fn wait(mut until: impl FnMut() -> bool) -> bool {
    (0..10).any(|_| {
        let came = wait_ms(100, &mut until);
        if !came && machine::sstc() {
            let _ = sbi::call(sbi::BASE, 0, [0; 5]);
        }
        came
    })
}

fn each(test: fn(Source) -> Outcome) -> Outcome {
    for source in Source::all() {
        axvm_guests::arch::quiet();
        test(source)?;
    }
    Ok(())
}

fn a_time_in_the_past_is_due_at_once() -> Outcome {
    each(|source| {
        for at in [0, now() - 1, now()] {
            csr::set!("sie", csr::STI);
            source.set(at);
            ensure!(wait(pending), "{source:?} at {at}: not pending");
            trap::open();
            let before = trap::taken(Irq::Timer);
            ensure!(wait(|| trap::taken(Irq::Timer) > 0), "{source:?} at {at}: not taken");
            ensure!(before <= 1, "{source:?}: taken {before} times");
            axvm_guests::arch::quiet();
        }
        Ok(())
    })
}

fn a_time_far_away_is_not_due() -> Outcome {
    each(|source| {
        csr::set!("sie", csr::STI);
        trap::open();
        for at in [now() + ms(3_600_000), u64::MAX - 1, u64::MAX, 1 << 63] {
            source.set(at);
            spin(5);
            ensure!(!pending(), "{source:?} at {at:#x}: pending");
            ensure_eq!(trap::taken(Irq::Timer), 0, "{source:?} at {at:#x}: taken");
        }
        Ok(())
    })
}

fn a_timer_is_taken_back() -> Outcome {
    each(|source| {
        source.set(0);
        ensure!(wait(pending), "{source:?}: not pending");
        source.set(u64::MAX);
        ensure!(wait(|| !pending()), "{source:?}: still pending");
        source.set(now() + ms(5));
        source.set(u64::MAX);
        spin(15);
        ensure!(!pending(), "{source:?}: comes though it was taken back");
        Ok(())
    })
}

/// Asks for an interrupt in some milliseconds and waits for it with `idle`.
fn comes(source: Source, idle: fn()) -> Outcome {
    for delay in [1, 7, 30] {
        csr::set!("sie", csr::STI);
        trap::open();
        let before = trap::taken(Irq::Timer);
        let at = now() + ms(delay);
        source.set(at);
        let came = wait(|| {
            if trap::taken(Irq::Timer) == before {
                idle();
            }
            trap::taken(Irq::Timer) > before
        });
        trap::close();
        let end = now();
        ensure!(came, "{source:?} in {delay} ms: does not come");
        let taken = cpu::this().last(Irq::Timer);
        ensure!(taken >= at, "{source:?} in {delay} ms: {} ticks early", at - taken);
        ensure!(end >= at, "{source:?} in {delay} ms: the wait ended early");
        ensure_eq!(trap::taken(Irq::Timer), before + 1, "{source:?} in {delay} ms: taken");
    }
    Ok(())
}

fn the_interrupt_comes_while_the_guest_computes_and_not_before_its_time() -> Outcome {
    each(|source| comes(source, core::hint::spin_loop))
}

fn the_interrupt_comes_while_the_guest_sleeps_and_not_before_its_time() -> Outcome {
    each(|source| {
        comes(source, || {
            // Closed before the look, so that it cannot come between the look and the wait.
            trap::close();
            if trap::taken(Irq::Timer) == 0 || !pending() {
                memory::wait_for_interrupt();
            }
            trap::open();
        })
    })
}

fn waiting_ends_with_interrupts_closed_too() -> Outcome {
    each(|source| {
        csr::set!("sie", csr::STI);
        let at = now() + ms(10);
        source.set(at);
        while !pending() {
            memory::wait_for_interrupt();
            ensure!(now() < at + ms(5000), "{source:?}: it does not come");
        }
        ensure!(now() >= at, "{source:?}: {} ticks early", at - now());
        ensure_eq!(trap::taken(Irq::Timer), 0, "{source:?}: taken");
        // Again, with the interrupt pending: it returns at once.
        memory::wait_for_interrupt();
        Ok(())
    })
}

fn a_masked_timer_does_not_interrupt() -> Outcome {
    each(|source| {
        csr::clear!("sie", csr::STI);
        trap::open();
        source.set(now() + ms(2));
        ensure!(wait(pending), "{source:?}: not pending");
        spin(5);
        ensure_eq!(trap::taken(Irq::Timer), 0, "{source:?}: taken");
        Ok(())
    })
}

fn a_due_timer_interrupts_when_it_is_unmasked() -> Outcome {
    each(|source| {
        source.set(0);
        ensure!(wait(pending), "{source:?}: not pending");
        csr::set!("sie", csr::STI);
        ensure_eq!(trap::taken(Irq::Timer), 0, "{source:?}: taken while closed");
        trap::open();
        ensure!(wait(|| trap::taken(Irq::Timer) == 1), "{source:?}: not taken");
        Ok(())
    })
}

fn a_later_time_replaces_an_earlier_one() -> Outcome {
    each(|source| {
        csr::set!("sie", csr::STI);
        // Closed meanwhile: this hart may lose its turn between the two for longer than that.
        trap::close();
        let start = now();
        source.set(start + ms(5));
        source.set(start + ms(25));
        trap::open();
        ensure!(wait(|| trap::taken(Irq::Timer) > 0), "{source:?}: does not come");
        let late = cpu::this().last(Irq::Timer) - start;
        ensure!(late >= ms(25), "{source:?}: comes after {late} ticks, as if the first counted");
        Ok(())
    })
}

fn a_timer_of_many_ticks_keeps_time() -> Outcome {
    each(|source| {
        csr::set!("sie", csr::STI);
        trap::open();
        let start = now();
        for tick in 1..=100 {
            let at = start + tick * ms(1) / 2;
            source.set(at);
            ensure!(wait(|| trap::taken(Irq::Timer) >= tick), "{source:?}: tick {tick} is lost");
            ensure!(cpu::this().last(Irq::Timer) >= at, "{source:?}: tick {tick} is early");
        }
        ensure_eq!(trap::taken(Irq::Timer), 100, "{source:?}: ticks");
        Ok(())
    })
}
