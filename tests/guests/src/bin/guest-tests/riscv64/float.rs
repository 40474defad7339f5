//! Floating point: registers survive, nobody sees another's, and FS tells what was written.

use axvm_guests::{
    arch::{
        csr,
        harts::{self, Meeting},
        insn::{ECALL, LOAD, LOAD_FP, STORE_FP, WFI, csrr, csrw, load, run, store},
        memory::{FREE, peek, poke},
        plic, sbi,
        time::{Source, ms, now, spin},
        trap::{Frame, cause},
    },
    ensure, ensure_eq,
    report::{Failure, Outcome, Test},
    tests,
};

pub const TESTS: &[Test] = tests![
    floating_point_that_is_off_is_illegal,
    what_is_read_stays_clean_and_what_is_written_gets_dirty,
    floating_point_registers_survive_exits,
    floating_point_registers_survive_sleep_and_other_harts,
    two_harts_never_see_each_others_floating_point_registers,
    arithmetic_is_right,
];

/// `fcsr`
const FCSR: u32 = 3;
/// fmv.x.d x10, f8; fmv.d.x f8, x10; fadd.d f8, f8, f9
const FROM: u32 = 0xe204_0553;
const TO: u32 = 0xf205_0453;
const ADD: u32 = 0x0294_7453;

fn floating_point_that_is_off_is_illegal() -> Outcome {
    for insn in [FROM, TO, ADD, load(LOAD_FP, 3, 8, 9, 0), csrr(10, FCSR), csrw(FCSR, 10)] {
        let (frame, end) = axvm_guests::arch::insn::attempt(&[insn], |frame| frame.x[9] = FREE);
        ensure_eq!(frame.cause, cause::ILLEGAL, "{insn:#x}: the exception");
        ensure_eq!(frame.pc, end - 4, "{insn:#x}: sepc");
        ensure!([0, insn.into()].contains(&frame.value), "{insn:#x}: stval {:#x}", frame.value);
        ensure_eq!(frame.status & csr::FS, 0, "{insn:#x}: FS");
    }
    Ok(())
}

fn what_is_read_stays_clean_and_what_is_written_gets_dirty() -> Outcome {
    for fs in [csr::FS_INITIAL, csr::FS_CLEAN, csr::FS_DIRTY] {
        let status = |insn: u32| -> Result<u64, Failure> {
            let frame = run(&[insn], |frame| {
                frame.status |= fs;
                frame.x[9] = FREE;
            })?;
            let sd = frame.status & csr::SD != 0;
            let fs = frame.status & csr::FS;
            ensure!(sd == (fs == csr::FS_DIRTY), "{insn:#x}: SD is {sd} with FS {fs:#x}");
            Ok(fs)
        };
        for insn in [FROM, csrr(10, FCSR), store(STORE_FP, 3, 8, 9, 0)] {
            ensure_eq!(status(insn)?, fs, "{insn:#x}: FS");
        }
        for insn in [TO, ADD, load(LOAD_FP, 3, 8, 9, 0), csrw(FCSR, 0)] {
            ensure_eq!(status(insn)?, csr::FS_DIRTY, "{insn:#x}: FS");
        }
    }
    Ok(())
}

/// A hart's own memory for its registers.
fn room(hart: u64) -> u64 {
    FREE + 0x8_0000 + hart * 0x1000
}

fn pattern(seed: u64, reg: u64) -> u64 {
    (0x0123_4567_89ab_cdefu64 ^ seed << 48).rotate_left((seed + reg * 3) as u32) ^ reg
}

fn on(frame: &mut Frame) {
    frame.status |= csr::FS_INITIAL;
}

/// Fills all registers, and `fcsr`.
fn fill(hart: u64, seed: u64) -> Outcome {
    let mut insns = [csrw(FCSR, 10); 33];
    for reg in 0..32 {
        poke(room(hart) + 8 * reg, pattern(seed, reg));
        insns[reg as usize] = load(LOAD_FP, 3, reg as usize, 9, 8 * reg as i32);
    }
    run(&insns, |frame| {
        on(frame);
        frame.x[9] = room(hart);
        frame.x[10] = seed & 0x1f | (seed & 3) << 5;
    })?;
    Ok(())
}

/// All registers are as they were filled.
fn check(hart: u64, seed: u64, after: &str) -> Outcome {
    let mut insns = [csrr(10, FCSR); 33];
    for reg in 0..32 {
        insns[reg] = store(STORE_FP, 3, reg, 9, 8 * reg as i32);
    }
    for reg in 0..32 {
        poke(room(hart) + 8 * reg, 0u64);
    }
    let frame = run(&insns, |frame| {
        on(frame);
        frame.x[9] = room(hart);
    })?;
    for reg in 0..32 {
        let seen = peek::<u64>(room(hart) + 8 * reg);
        ensure_eq!(seen, pattern(seed, reg), "f{reg} after {after}");
    }
    ensure_eq!(frame.x[10], seed & 0x1f | (seed & 3) << 5, "fcsr after {after}");
    Ok(())
}

fn floating_point_registers_survive_exits() -> Outcome {
    let device = plic::enable(plic::context(0), 0);
    for seed in 0..10 {
        fill(0, seed)?;
        check(0, seed, "nothing")?;
        run(&[ECALL], |frame| {
            frame.x[16] = 0;
            frame.x[17] = sbi::BASE;
        })?;
        check(0, seed, "a call")?;
        // With floating point on while the guest is out.
        run(&[load(LOAD, 2, 10, 9, 0)], |frame| {
            frame.status |= csr::FS_CLEAN;
            frame.x[9] = device;
        })?;
        check(0, seed, "a device read")?;
        peek::<u64>(FREE + 0x9_0000 + seed * 0x1000);
        check(0, seed, "a fresh page")?;
    }
    Ok(())
}

fn doze() -> Outcome {
    csr::set!("sie", csr::STI);
    Source::best().set(now() + ms(2));
    run(&[WFI], |_| {})?;
    csr::clear!("sie", csr::STI);
    Source::best().set(u64::MAX);
    Ok(())
}

fn floating_point_registers_survive_sleep_and_other_harts() -> Outcome {
    for seed in 0..10 {
        fill(0, seed)?;
        doze()?;
        check(0, seed, "sleep")?;
        spin(12);
        check(0, seed, "a turn")?;
    }
    Ok(())
}

static GO: Meeting = Meeting::new();

/// For a third of a second.
fn compete(hart: u64) -> Outcome {
    GO.meet()?;
    let end = now() + ms(300);
    let mut seed = hart;
    while now() < end {
        fill(hart, seed)?;
        for _ in 0..20 {
            check(hart, seed, "the other hart's use")?;
        }
        if seed % 8 < 2 {
            doze()?;
            check(hart, seed, "sleep and the other hart's use")?;
        }
        // The other hart's are even where these are odd.
        seed += 2;
    }
    Ok(())
}

fn two_harts_never_see_each_others_floating_point_registers() -> Outcome {
    harts::two()?;
    GO.reset();
    harts::spawn(|| compete(1))?;
    let here = compete(0);
    harts::join()?;
    here
}

fn arithmetic_is_right() -> Outcome {
    poke(FREE, 1.5f64.to_bits());
    poke(FREE + 8, 2.25f64.to_bits());
    let insns =
        [load(LOAD_FP, 3, 8, 9, 0), load(LOAD_FP, 3, 9, 9, 8), ADD, store(STORE_FP, 3, 8, 9, 16)];
    run(&insns, |frame| {
        on(frame);
        frame.x[9] = FREE;
        frame.x[10] = 0;
    })?;
    ensure_eq!(peek::<u64>(FREE + 16), 3.75f64.to_bits(), "1.5 + 2.25");
    Ok(())
}
