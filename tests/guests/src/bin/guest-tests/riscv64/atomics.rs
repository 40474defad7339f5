//! Atomics and floating-point accesses to devices are refused, and so is code in them.

use axvm_guests::{
    arch::{
        csr,
        insn::{LOAD_FP, STORE_FP, amo, attempt, compressed, len, load, load_sp, store, store_sp},
        memory::{FREE, NOTHING, Table, peek, poke},
        plic,
        trap::{Frame, cause},
        uart,
    },
    ensure, ensure_eq, fail,
    report::{Outcome, Test},
    tests,
};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    an_atomic_on_a_device_is_a_store_access_fault,
    a_load_reserved_from_a_device_is_a_load_access_fault,
    a_store_conditional_to_a_device_fails_or_is_a_store_access_fault,
    a_floating_point_access_to_a_device_is_an_access_fault,
    code_in_a_device_or_in_nothing_is_a_fetch_access_fault,
    atomics_on_memory_do_what_they_say,
];

static ROOT: Table = Table::new();

/// Places without memory, aligned to 8 bytes.
fn places() -> [u64; 3] {
    [plic::enable(plic::context(0), 0), uart::BASE, NOTHING]
}

/// What a fault is to look like, of the instruction that the attempt began with.
fn refused(frame: &Frame, cause: u64, place: u64, insn: u32) -> Outcome {
    ensure_eq!(frame.cause, cause, "{insn:#x} at {place:#x}: the exception");
    ensure_eq!(frame.value, place, "{insn:#x} at {place:#x}: stval");
    Ok(())
}

/// With translation off and on.
fn twice(test: fn() -> Outcome) -> Outcome {
    test()?;
    ROOT.identity();
    ROOT.activate();
    test()
}

fn an_atomic_on_a_device_is_a_store_access_fault() -> Outcome {
    axvm_only()?;
    twice(|| {
        plic::write(places()[0], 0x2468);
        for place in places() {
            // swap, add, xor, and, or, min, max, minu, maxu; of 4 and 8 bytes
            for funct5 in [1, 0, 4, 12, 8, 16, 20, 24, 28] {
                for funct3 in [2, 3] {
                    let insn = amo(funct5, funct3, 11, 9, 10);
                    let (frame, end) = attempt(&[insn], |frame| frame.x[9] = place);
                    refused(&frame, cause::STORE_ACCESS, place, insn)?;
                    ensure_eq!(frame.pc, end - 4, "{insn:#x}: sepc");
                    ensure_eq!(frame.x[11], Frame::new(0).x[11], "{insn:#x}: rd");
                }
            }
        }
        ensure_eq!(plic::read(places()[0]), 0x2468, "the device");
        Ok(())
    })
}

const LR: u32 = 2;
const SC: u32 = 3;

fn a_load_reserved_from_a_device_is_a_load_access_fault() -> Outcome {
    axvm_only()?;
    twice(|| {
        for place in places() {
            for funct3 in [2, 3] {
                let insn = amo(LR, funct3, 11, 9, 0);
                let (frame, end) = attempt(&[insn], |frame| frame.x[9] = place);
                refused(&frame, cause::LOAD_ACCESS, place, insn)?;
                ensure_eq!(frame.pc, end - 4, "{insn:#x}: sepc");
                ensure_eq!(frame.x[11], Frame::new(0).x[11], "{insn:#x}: rd");
            }
        }
        Ok(())
    })
}

fn a_store_conditional_to_a_device_fails_or_is_a_store_access_fault() -> Outcome {
    twice(|| {
        plic::write(places()[0], 0x2468);
        for place in places() {
            for funct3 in [2, 3] {
                let insn = amo(SC, funct3, 11, 9, 10);
                // The reservation is of memory, and the store goes elsewhere.
                let (frame, end) = attempt(&[amo(LR, funct3, 12, 8, 0), insn], |frame| {
                    frame.x[8] = FREE;
                    frame.x[9] = place;
                });
                if frame.pc == end {
                    ensure!(frame.x[11] != 0, "{insn:#x} at {place:#x} succeeded");
                    continue;
                }
                refused(&frame, cause::STORE_ACCESS, place, insn)?;
                ensure_eq!(frame.pc, end - 4, "{insn:#x}: sepc");
            }
        }
        ensure_eq!(plic::read(places()[0]), 0x2468, "the device");
        Ok(())
    })
}

fn a_floating_point_access_to_a_device_is_an_access_fault() -> Outcome {
    axvm_only()?;
    // flw, fld, c.fld, c.fldsp; fsw, fsd, c.fsd, c.fsdsp
    let loads = [
        load(LOAD_FP, 2, 8, 9, 0),
        load(LOAD_FP, 3, 8, 9, 0),
        compressed(1, 8, 9, 0),
        load_sp(1, 8, 0),
    ];
    let stores = [
        store(STORE_FP, 2, 8, 9, 0),
        store(STORE_FP, 3, 8, 9, 0),
        compressed(5, 8, 9, 0),
        store_sp(5, 8, 0),
    ];
    plic::write(places()[0], 0x2468);
    for place in places() {
        let loads = loads.map(|insn| (insn, cause::LOAD_ACCESS));
        for (insn, cause) in loads.into_iter().chain(stores.map(|insn| (insn, cause::STORE_ACCESS)))
        {
            let (frame, end) = attempt(&[insn], |frame| {
                frame.status |= csr::FS_INITIAL;
                frame.x[9] = place;
                frame.x[2] = place;
            });
            refused(&frame, cause, place, insn)?;
            let len = len(insn);
            ensure_eq!(frame.pc, end - len, "{insn:#x}: sepc");
        }
    }
    ensure_eq!(plic::read(places()[0]), 0x2468, "the device");
    Ok(())
}

fn code_in_a_device_or_in_nothing_is_a_fetch_access_fault() -> Outcome {
    axvm_only()?;
    twice(|| {
        for place in [NOTHING, uart::BASE, plic::BASE, 0x7fff_fffe] {
            let mut frame = Frame::new(place);
            frame.execute();
            refused(&frame, cause::FETCH_ACCESS, place, 0)?;
            ensure_eq!(frame.pc, place, "sepc");
        }
        Ok(())
    })
}

fn atomics_on_memory_do_what_they_say() -> Outcome {
    for (funct5, wanted) in [(1, 0x33u64), (0, 0x88), (4, 0x66), (12, 0x11), (8, 0x77)] {
        poke(FREE, 0x55u64);
        let (frame, end) = attempt(&[amo(funct5, 3, 11, 9, 10)], |frame| {
            frame.x[9] = FREE;
            frame.x[10] = 0x33;
        });
        ensure_eq!(frame.pc, end, "exception {}: sepc", frame.cause);
        ensure_eq!(frame.x[11], 0x55, "function {funct5}: the old value");
        ensure_eq!(peek::<u64>(FREE), wanted, "function {funct5}: the new value");
    }
    // A reservation that a few instructions later still holds, at the first or a later time.
    for _ in 0..100 {
        let (frame, end) = attempt(&[amo(LR, 3, 11, 9, 0), amo(SC, 3, 12, 9, 10)], |frame| {
            frame.x[9] = FREE;
            frame.x[10] = 0x99;
        });
        ensure_eq!(frame.pc, end, "exception {}: sepc", frame.cause);
        if frame.x[12] == 0 {
            ensure_eq!(peek::<u64>(FREE), 0x99, "what was stored");
            return Ok(());
        }
    }
    fail!("store-conditional never succeeds")
}
