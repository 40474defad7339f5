//! Loads and stores to devices, and to where nothing is.

use axvm_guests::{
    arch::{
        insn::{LOAD, STORE, attempt, load, run, store},
        memory::{AD, FREE, NOTHING, R, RWX, Table, V, entry, fence_translations, peek, poke},
        plic,
        trap::{Frame, cause},
        uart,
    },
    ensure, ensure_eq, fail,
    report::{Outcome, Test},
    tests,
};

use super::{
    axvm_only,
    forms::{Form, LOADS, SP, STORES},
};

pub const TESTS: &[Test] = tests![
    every_load_brings_what_the_device_holds_to_its_register_alone,
    every_store_gives_the_device_its_register,
    loads_and_stores_reach_devices_through_page_tables,
    offsets_are_added_to_the_base,
    a_load_of_x0_is_an_access_all_the_same,
    the_base_may_be_loaded,
    nothing_reads_ones_and_ignores_writes,
    a_width_that_the_device_does_not_take_touches_nothing,
    an_access_across_a_page_boundary_is_refused_or_right,
    a_device_is_not_touched_by_what_a_page_table_forbids,
];

static ROOT: Table = Table::new();
static MIDDLE: Table = Table::new();
static LEAVES: Table = Table::new();

/// A register that reads back what it is given, for each width that devices here take.
fn device(width: u32) -> Option<u64> {
    match width {
        1 => Some(uart::BASE + uart::SCR),
        4 => Some(plic::enable(plic::context(0), 0)),
        _ => None,
    }
}

/// Values with and without the sign bit; the PLIC has no source 0.
fn values(width: u32) -> [u32; 2] {
    if width == 1 { [0xa5, 0x5a] } else { [0x8000_5af2, 0x7fff_a50c] }
}

fn put(width: u32, value: u32) {
    match (width, device(width)) {
        (1, _) => uart::write(uart::SCR, value as u8),
        (_, Some(address)) => plic::write(address, value),
        _ => {}
    }
}

fn get(width: u32) -> u32 {
    match (width, device(width)) {
        (1, _) => uart::read(uart::SCR).into(),
        (_, Some(address)) => plic::read(address),
        _ => 0,
    }
}

/// The base for a form that goes with `reg`: another register.
fn base(form: &Form, reg: usize) -> usize {
    [SP, 9, 8].into_iter().find(|&base| base != reg && form.can_name(reg.max(8), base)).unwrap_or(9)
}

/// All registers but `reg` are as they were.
fn others_kept(frame: &Frame, before: &Frame, reg: usize) -> Result<(), usize> {
    match (1..32).find(|&other| other != reg && frame.x[other] != before.x[other]) {
        Some(other) => Err(other),
        None => Ok(()),
    }
}

fn check_load(form: &Form, reg: usize, address: u64, value: u64, offset: i32) -> Outcome {
    let base = base(form, reg);
    if !form.can_name(reg, base) {
        return Ok(());
    }
    let mut before = Frame::new(0);
    before.x[base] = address.wrapping_sub(offset as u64);
    let frame = run(&[form.load(reg, base, offset)], |frame| frame.x = before.x)?;
    let name = form.name;
    ensure_eq!(frame.x[reg], form.extend(value), "{name} x{reg}, {offset}(x{base})");
    if let Err(other) = others_kept(&frame, &before, reg) {
        fail!("{name} x{reg}: x{other} has changed to {:#x}", frame.x[other]);
    }
    Ok(())
}

fn check_loads() -> Outcome {
    for form in &LOADS {
        let Some(address) = device(form.width) else { continue };
        for value in values(form.width) {
            put(form.width, value);
            for reg in 1..32 {
                check_load(form, reg, address, value.into(), 0)?;
            }
        }
    }
    Ok(())
}

fn every_load_brings_what_the_device_holds_to_its_register_alone() -> Outcome {
    check_loads()
}

fn check_store(form: &Form, reg: usize, address: u64, value: u32, offset: i32) -> Outcome {
    let base = base(form, reg);
    if !form.can_name(reg, base) {
        return Ok(());
    }
    put(form.width, 0);
    let mut before = Frame::new(0);
    before.x[base] = address.wrapping_sub(offset as u64);
    // What lies above the width is not to be seen by the device.
    let above = if form.width == 1 { !0xff } else { !0xffff_ffff };
    before.x[reg] = 0x1234_5678_9abc_def0 & above | u64::from(value);
    let value = if reg == 0 { 0 } else { value };
    let frame = run(&[form.store(reg, base, offset)], |frame| frame.x = before.x)?;
    let name = form.name;
    ensure_eq!(get(form.width), value, "{name} x{reg}, {offset}(x{base})");
    if let Err(other) = others_kept(&frame, &before, 0) {
        fail!("{name} x{reg}: x{other} has changed to {:#x}", frame.x[other]);
    }
    Ok(())
}

fn check_stores() -> Outcome {
    for form in &STORES {
        let Some(address) = device(form.width) else { continue };
        for value in values(form.width) {
            for reg in 0..32 {
                check_store(form, reg, address, value, 0)?;
            }
        }
    }
    Ok(())
}

fn every_store_gives_the_device_its_register() -> Outcome {
    check_stores()
}

fn loads_and_stores_reach_devices_through_page_tables() -> Outcome {
    ROOT.identity();
    ROOT.activate();
    check_loads()?;
    check_stores()
}

fn offsets_are_added_to_the_base() -> Outcome {
    for form in &LOADS {
        let Some(address) = device(form.width) else { continue };
        let [value, _] = values(form.width);
        put(form.width, value);
        for &offset in form.offsets() {
            check_load(form, 10, address, value.into(), offset)?;
        }
    }
    for form in &STORES {
        let Some(address) = device(form.width) else { continue };
        let [value, _] = values(form.width);
        for &offset in form.offsets() {
            check_store(form, 10, address, value, offset)?;
        }
    }
    Ok(())
}

fn a_load_of_x0_is_an_access_all_the_same() -> Outcome {
    uart::write(uart::MCR, uart::LOOP);
    uart::write(uart::DATA, b'x');
    ensure!(uart::read(uart::LSR) & uart::READY != 0, "the loop brings nothing");
    run(&[load(LOAD, 0, 0, 9, 0)], |frame| frame.x[9] = uart::BASE)?;
    ensure!(uart::read(uart::LSR) & uart::READY == 0, "the byte is still there");
    Ok(())
}

fn the_base_may_be_loaded() -> Outcome {
    put(4, 0x8000_0002);
    let base = plic::enable(plic::context(0), 0);
    let frame = run(&[load(LOAD, 2, 9, 9, 0)], |frame| frame.x[9] = base)?;
    ensure_eq!(frame.x[9], 0xffff_ffff_8000_0002, "lw x9, (x9)");
    Ok(())
}

fn nothing_reads_ones_and_ignores_writes() -> Outcome {
    axvm_only()?;
    for address in [NOTHING, 0x1000, 0x2000_0008, 0x7fff_fff8, 0xb00_0000, uart::BASE + 0x1000] {
        for form in &LOADS {
            check_load(form, 10, address, u64::MAX, 0)?;
        }
        for form in &STORES {
            let base = base(form, 10);
            run(&[form.store(10, base, 0)], |frame| frame.x[base] = address)?;
        }
        ensure_eq!(peek::<u64>(address), u64::MAX, "{address:#x} after stores");
    }
    Ok(())
}

fn a_width_that_the_device_does_not_take_touches_nothing() -> Outcome {
    axvm_only()?;
    let enable = plic::enable(plic::context(0), 0);
    put(4, 0x8000_5af2);
    put(1, 0x5a);
    for (address, width) in [(enable, 4), (uart::BASE, 1)] {
        for form in LOADS.iter().filter(|form| form.width != width) {
            check_load(form, 10, address, u64::MAX, 0)?;
        }
        for form in STORES.iter().filter(|form| form.width != width) {
            let base = base(form, 10);
            run(&[form.store(10, base, 0)], |frame| frame.x[base] = address)?;
        }
    }
    ensure_eq!(get(4), 0x8000_5af2, "the enable bits");
    ensure_eq!(get(1), 0x5a, "the scratch register");
    Ok(())
}

/// Maps a page of RAM at 0xc000_0000 (with a page before it), and behind it the page of context
/// 1's threshold. Returns the boundary's address, and the RAM page's.
fn boundary() -> (u64, u64) {
    let ram = FREE;
    ROOT.identity();
    ROOT.set(3, entry(MIDDLE.address(), V));
    MIDDLE.set(0, entry(LEAVES.address(), V));
    LEAVES.set(0, entry(ram, RWX));
    LEAVES.set(1, entry(plic::threshold(plic::context(0)), RWX));
    ROOT.activate();
    (0xc000_1000, ram)
}

fn an_access_across_a_page_boundary_is_refused_or_right() -> Outcome {
    axvm_only()?;
    let threshold = plic::threshold(plic::context(0));
    let (boundary, ram) = boundary();
    let misaligned = |frame: &Frame, causes: [u64; 2]| {
        causes.contains(&frame.cause) && (boundary - 2..boundary + 2).contains(&frame.value)
    };
    plic::write(threshold, 5);
    poke(ram + 0xffe, 0x1234u16);
    let (frame, end) = attempt(&[load(LOAD, 2, 10, 9, 0)], |frame| frame.x[9] = boundary - 2);
    let (read, kept) = (frame.x[10], Frame::new(0).x[10]);
    let refused = misaligned(&frame, [cause::LOAD_MISALIGNED, cause::LOAD_ACCESS]) && read == kept;
    let right = frame.pc == end && read == 0x5_1234;
    let (cause, value) = (frame.cause, frame.value);
    ensure!(refused || right, "lw brings {read:#x}, exception {cause}, value {value:#x}");
    let (frame, end) = attempt(&[store(STORE, 2, 10, 9, 0)], |frame| {
        frame.x[9] = boundary - 2;
        frame.x[10] = 0x3_0006;
    });
    let now = plic::read(threshold);
    let refused = misaligned(&frame, [cause::STORE_MISALIGNED, cause::STORE_ACCESS]) && now == 5;
    let right = frame.pc == end && now == 3 && peek::<u16>(ram + 0xffe) == 6;
    let (cause, value) = (frame.cause, frame.value);
    ensure!(refused || right, "sw makes it {now:#x}, exception {cause}, value {value:#x}");
    Ok(())
}

fn a_device_is_not_touched_by_what_a_page_table_forbids() -> Outcome {
    let threshold = plic::threshold(plic::context(0));
    let (device, _) = boundary();
    plic::write(threshold, 5);
    LEAVES.set(1, entry(threshold, V | R | AD));
    fence_translations();
    let (frame, _) = attempt(&[store(STORE, 2, 10, 9, 0)], |frame| frame.x[9] = device);
    ensure_eq!(frame.cause, cause::STORE_PAGE, "the exception");
    ensure_eq!(frame.value, device, "stval");
    let frame = run(&[load(LOAD, 2, 10, 9, 0)], |frame| frame.x[9] = device)?;
    ensure_eq!(frame.x[10], 5, "the threshold");
    Ok(())
}
