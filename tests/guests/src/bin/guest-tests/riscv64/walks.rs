//! Page tables where no memory is: the walk faults, and the access with it.

use axvm_guests::{
    arch::{
        insn::{LOAD, STORE, amo, attempt, load, store},
        memory::{NOTHING, RWX, Table, V, entry, fence_translations},
        trap::{Frame, cause},
        uart,
    },
    ensure_eq,
    report::{Outcome, Test},
    tests,
};

use super::axvm_only;

pub const TESTS: &[Test] = tests![
    a_table_where_nothing_is_gives_an_access_fault_of_the_access,
    a_table_in_a_device_gives_an_access_fault_of_the_access,
    an_entry_that_leads_nowhere_is_an_access_to_nothing,
];

static ROOT: Table = Table::new();
static MIDDLE: Table = Table::new();
static LEAVES: Table = Table::new();

/// Behind the tables of the test.
const BASE: u64 = 0xc000_0000;

fn faults() -> Outcome {
    for offset in [0, 0x12_3450] {
        let address = BASE + offset;
        for (insn, cause) in [
            (load(LOAD, 3, 10, 9, 0), cause::LOAD_ACCESS),
            (store(STORE, 3, 10, 9, 0), cause::STORE_ACCESS),
            (amo(0, 3, 11, 9, 10), cause::STORE_ACCESS),
        ] {
            let (frame, end) = attempt(&[insn], |frame| frame.x[9] = address);
            ensure_eq!(frame.cause, cause, "{insn:#x} at {address:#x}: the exception");
            ensure_eq!(frame.value, address, "{insn:#x} at {address:#x}: stval");
            ensure_eq!(frame.pc, end - 4, "{insn:#x} at {address:#x}: sepc");
            let patterns = Frame::new(0).x;
            ensure_eq!(frame.x[10], patterns[10], "{insn:#x} at {address:#x}: x10");
            ensure_eq!(frame.x[11], patterns[11], "{insn:#x} at {address:#x}: x11");
        }
        let mut frame = Frame::new(address);
        frame.execute();
        ensure_eq!(frame.cause, cause::FETCH_ACCESS, "code at {address:#x}: the exception");
        ensure_eq!(frame.value, address, "code at {address:#x}: stval");
    }
    Ok(())
}

/// Tables at `place`: one that the root leads to, and one that a table in memory leads to.
fn tables_at(place: u64) -> Outcome {
    ROOT.identity();
    ROOT.set(3, entry(place, V));
    ROOT.activate();
    faults()?;
    ROOT.set(3, entry(MIDDLE.address(), V));
    for index in 0..512 {
        MIDDLE.set(index, entry(place, V));
    }
    fence_translations();
    faults()
}

fn a_table_where_nothing_is_gives_an_access_fault_of_the_access() -> Outcome {
    // The emulator itself has it be a page fault.
    axvm_only()?;
    tables_at(NOTHING)
}

fn a_table_in_a_device_gives_an_access_fault_of_the_access() -> Outcome {
    axvm_only()?;
    tables_at(uart::BASE)
}

fn an_entry_that_leads_nowhere_is_an_access_to_nothing() -> Outcome {
    axvm_only()?;
    ROOT.identity();
    ROOT.set(3, entry(MIDDLE.address(), V));
    MIDDLE.set(0, entry(LEAVES.address(), V));
    LEAVES.set(0, entry(NOTHING, RWX));
    ROOT.activate();
    let (frame, end) = attempt(&[load(LOAD, 3, 10, 9, 0)], |frame| frame.x[9] = BASE);
    ensure_eq!(frame.pc, end, "exception {}: sepc", frame.cause);
    ensure_eq!(frame.x[10], u64::MAX, "what was read");
    Ok(())
}
