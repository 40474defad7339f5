//! Registers survive whatever brings the guest out.

use axvm_guests::{
    arch::{
        csr,
        harts::{self, Meeting},
        insn::{ECALL, LOAD, STORE, WFI, csrr, load, run, store},
        memory::{self, FREE, Table, peek},
        plic, sbi,
        time::{Source, ms, now, spin},
        trap::Frame,
    },
    ensure, ensure_eq,
    report::{Failure, Outcome, Test},
    tests,
};

pub const TESTS: &[Test] = tests![
    integer_registers_survive_every_kind_of_exit,
    integer_registers_survive_being_preempted_on_both_harts,
    supervisor_registers_survive_exits,
    supervisor_registers_survive_exits_on_both_harts,
    translation_survives_exits,
];

/// Registers of these numbers may have changed; all others have not.
fn kept(what: &str, frame: &Frame, before: &[u64; 32], changed: &[usize]) -> Outcome {
    for reg in (1..32).filter(|reg| !changed.contains(reg)) {
        ensure_eq!(frame.x[reg], before[reg], "{what}: x{reg}");
    }
    Ok(())
}

fn survive(
    what: &str,
    insns: &[u32],
    changed: &[usize],
    change: impl FnOnce(&mut Frame),
) -> Result<Frame, Failure> {
    let mut before = [0; 32];
    let frame = run(insns, |frame| {
        change(frame);
        before = frame.x;
    })?;
    kept(what, &frame, &before, changed)?;
    Ok(frame)
}

/// Memory that no other test touches.
const FRESH: u64 = FREE + 0x2_0000;

fn integer_registers_survive_every_kind_of_exit() -> Outcome {
    let device = plic::enable(plic::context(0), 0);
    for round in 0..20 {
        survive("a call", &[ECALL], &[10, 11], |frame| {
            frame.x[16] = 0;
            frame.x[17] = sbi::BASE;
        })?;
        survive("a device read", &[load(LOAD, 2, 30, 31, 0)], &[30], |frame| {
            frame.x[31] = device;
        })?;
        survive("a device written", &[store(STORE, 2, 30, 31, 0)], &[], |frame| {
            frame.x[31] = device;
        })?;
        let fresh = FRESH + round * 0x2000;
        let frame = survive("a fresh page read", &[load(LOAD, 3, 5, 6, 0)], &[5], |frame| {
            frame.x[6] = fresh;
        })?;
        ensure_eq!(frame.x[5], 0, "what a fresh page holds");
        survive("a fresh page written", &[store(STORE, 3, 5, 6, 0)], &[], |frame| {
            frame.x[6] = fresh + 0x1000;
        })?;
        ensure_eq!(peek::<u64>(fresh + 0x1000), Frame::new(0).x[5], "what was written");
        // Asleep for a moment.
        csr::set!("sie", csr::STI);
        Source::best().set(now() + ms(1));
        survive("sleep", &[WFI], &[], |_| {})?;
        csr::clear!("sie", csr::STI);
        Source::best().set(u64::MAX);
        // An interrupt, taken.
        csr::set!("sie", csr::SSI);
        csr::set!("sip", csr::SSI);
        survive("an interrupt", &[csrr(5, 0xc01)], &[5], |frame| frame.status |= csr::SPIE)?;
        csr::clear!("sie", csr::SSI);
        ensure!(csr::read!("sip") & csr::SSI == 0, "the interrupt was not taken");
    }
    Ok(())
}

/// `time` into x5 until it is x6 or more: about 12 ms, more than a hart's turn on a shared CPU.
fn compute(rounds: u64) -> Outcome {
    for _ in 0..rounds {
        let frame = survive(
            "computing",
            // 1: csrr x5, time; bltu x5, x6, 1b
            &[csrr(5, 0xc01), 0xfe62_eee3],
            &[5],
            |frame| frame.x[6] = now() + ms(12),
        )?;
        ensure!(frame.x[5] >= frame.x[6], "the loop ended early");
    }
    Ok(())
}

static GO: Meeting = Meeting::new();

fn integer_registers_survive_being_preempted_on_both_harts() -> Outcome {
    harts::two()?;
    GO.reset();
    harts::spawn(|| {
        GO.meet()?;
        compute(10)
    })?;
    GO.meet()?;
    let here = compute(10);
    harts::join()?;
    here
}

/// Writes patterns to the registers of S-mode, comes out in several ways, and reads them back. No
/// trap may come meanwhile.
fn supervise(hart: u64) -> Outcome {
    let scratch = csr::read!("sscratch");
    let vector = csr::read!("stvec");
    let enabled = csr::read!("sie");
    let counters = csr::read!("scounteren");
    let pattern = |number: u64| (0x1357_9bdf_0246_8ace ^ hart << 32).rotate_left(number as u32 * 7);
    let mut seen = [(0, 0); 7];
    for round in 0..30u64 {
        let values = [0, 1, 2, 3].map(|number| pattern(number + round));
        let interrupts = if round % 2 == 0 { csr::STI | csr::SEI } else { csr::SSI };
        csr::write!("sscratch", values[0]);
        csr::write!("sepc", values[1] & !1);
        csr::write!("stval", values[2]);
        csr::write!("stvec", values[3] & 0x3f_ffff_fffc);
        csr::write!("scause", round);
        csr::write!("sie", interrupts);
        csr::write!("scounteren", 2 * (round & 1));
        match round % 3 {
            0 => {
                let _ = sbi::call(sbi::BASE, 0, [0; 5]);
            }
            1 => {
                plic::read(plic::enable(plic::context(hart as usize), 0));
            }
            _ => spin(12),
        }
        seen = [
            (csr::read!("sscratch"), values[0]),
            (csr::read!("sepc"), values[1] & !1),
            (csr::read!("stval"), values[2]),
            (csr::read!("stvec"), values[3] & 0x3f_ffff_fffc),
            (csr::read!("scause"), round),
            (csr::read!("sie"), interrupts),
            (csr::read!("scounteren"), 2 * (round & 1)),
        ];
        if seen.iter().any(|(seen, wanted)| seen != wanted) {
            break;
        }
    }
    csr::write!("sie", enabled);
    csr::write!("scounteren", counters);
    csr::write!("sscratch", scratch);
    csr::write!("stvec", vector);
    let names = ["sscratch", "sepc", "stval", "stvec", "scause", "sie", "scounteren"];
    for ((seen, wanted), name) in seen.into_iter().zip(names) {
        ensure_eq!(seen, wanted, "{name}");
    }
    Ok(())
}

fn supervisor_registers_survive_exits() -> Outcome {
    supervise(0)
}

fn supervisor_registers_survive_exits_on_both_harts() -> Outcome {
    harts::two()?;
    GO.reset();
    harts::spawn(|| {
        GO.meet()?;
        supervise(1)
    })?;
    GO.meet()?;
    let here = supervise(0);
    harts::join()?;
    here
}

static ROOTS: [Table; 2] = [const { Table::new() }; 2];

/// Each hart maps the same address to a page of its own.
fn translate(hart: u64) -> Outcome {
    let root = &ROOTS[hart as usize];
    let page = 0xc000_0000 + FREE % (1 << 30);
    root.identity();
    // A gigabyte of memory again, so that the page is seen twice.
    root.set(3, memory::entry(0x8000_0000, memory::RWX));
    root.activate();
    let satp = csr::read!("satp");
    for round in 0..20u64 {
        let at = page + 0x8000 + 0x1000 * hart;
        memory::poke(at, round ^ hart << 32);
        match round % 3 {
            0 => spin(5),
            1 => drop(sbi::call(sbi::BASE, 0, [0; 5])),
            _ => drop(plic::read(plic::enable(plic::context(0), 0))),
        }
        ensure_eq!(csr::read!("satp"), satp, "satp");
        ensure_eq!(peek::<u64>(at), round ^ hart << 32, "the page");
        ensure_eq!(peek::<u64>(at - 0x4000_0000), round ^ hart << 32, "the page elsewhere");
    }
    Ok(())
}

fn translation_survives_exits() -> Outcome {
    translate(0)?;
    if harts::two().is_err() {
        return Ok(());
    }
    GO.reset();
    harts::spawn(|| {
        GO.meet()?;
        translate(1)
    })?;
    GO.meet()?;
    let here = translate(0);
    harts::join()?;
    here
}
