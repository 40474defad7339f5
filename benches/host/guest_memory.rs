//! Copies from and to guest memory, beside `vm-memory`.

use axvm::config::{AxVMConfig, VmMemMappingType};
use axvm::mm::MappingFlags;
use axvm::vm::{AxVM, AxVMRef};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::{Host, Loader};
use crate::report::{OURS, Op, random_below};

/// In 4 KiB leaves, where the walk is longest.
const READ_U64: Op = Op::instr("read_from_guest_of::<u64>", 60.0);
const READ_U64_2M: Op = Op::instr("read_from_guest_of::<u64>, 2 MiB leaf", 60.0);

/// The rows of the table.
pub const OPS: &[Op] = &[READ_U64, READ_U64_2M];

const REGIONS: usize = 4;
const REGION_SIZE: usize = 1 << 22;
/// From the start of one region to the next: there are holes between them.
const STRIDE: usize = 1 << 30;
const READS: usize = 20_000;

/// Runs every case.
pub fn run() {
    vm_memory();
    ours(READ_U64, VmMemMappingType::MapLazy);
    ours(READ_U64_2M, VmMemMappingType::MapAlloc);
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

/// The same regions in a VM. Lazy ones are populated beforehand, in 4 KiB leaves; allocated ones
/// are in 2 MiB leaves.
fn ours(op: Op, kind: VmMemMappingType) {
    let ram = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
    let config = (0..REGIONS).fold(AxVMConfig::new(2, "bench"), |config, region| {
        config.with_memory(region * STRIDE, REGION_SIZE, ram, kind)
    });
    let vm: AxVMRef<Host, Loader> = AxVM::new(config).expect("a VM");
    for page in (0..REGIONS * REGION_SIZE).step_by(4096) {
        let gpa = page / REGION_SIZE * STRIDE + page % REGION_SIZE;
        vm.write_to_guest_of(gpa.into(), &page).expect("RAM");
    }
    assert_eq!(vm.read_from_guest_of(0x3000.into()), Ok(0x3000_u64));
    let vm = &*vm;
    op.each(OURS, &addresses(), |gpa| vm.read_from_guest_of::<u64>(gpa.into()));
}
