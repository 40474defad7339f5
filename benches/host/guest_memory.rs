//! Copies from and to guest memory, beside `vm-memory`.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::report::{Op, random_below};

const READ_U64: Op = Op::instr("read_from_guest_of::<u64>", 60.0).pending();

/// The rows of the table.
pub const OPS: &[Op] = &[READ_U64];

const REGIONS: usize = 4;
const REGION_SIZE: usize = 1 << 20;
/// From the start of one region to the next: there are holes between them.
const STRIDE: usize = 1 << 30;
const READS: usize = 20_000;

/// Runs every case.
pub fn run() {
    vm_memory();
}

/// Random 8-byte-aligned addresses, none of which crosses a region's end.
fn addresses() -> Vec<usize> {
    random_below(REGIONS * REGION_SIZE / 8)
        .take(READS)
        .map(|word| {
            let offset = word * 8;
            offset / REGION_SIZE * STRIDE + offset % REGION_SIZE
        })
        .collect()
}

fn vm_memory() {
    let ranges: Vec<_> =
        (0..REGIONS).map(|region| (GuestAddress((region * STRIDE) as u64), REGION_SIZE)).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("anonymous memory");
    READ_U64
        .each("vm-memory", &addresses(), |gpa| memory.read_obj::<u64>(GuestAddress(gpa as u64)));
}
