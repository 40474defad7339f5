//! The copy into a guest's memory.

use axerrno::AxError;
use axvm::{
    boot::{Plan, Request, load},
    config::{
        AxVMConfig,
        VmMemMappingType::{MapAlloc, MapLazy},
    },
    mm::MappingFlags,
    vm::AxVM,
};
use axvm_testkit::{MockHal, RiscvLike, gpa_range, mock_hal};

use crate::{
    files::{elf, filler, load as segment},
    kernel,
};

const BASE: usize = 0x8000_0000;
const PAGE: usize = 0x1000;
const R: MappingFlags = MappingFlags::READ;
const RX: MappingFlags = R.union(MappingFlags::EXECUTE);
const RW: MappingFlags = R.union(MappingFlags::WRITE);

mock_hal!(struct Hal { arena: 8 << 20 });
mock_hal!(struct Lazy { arena: 8 << 20 });
mock_hal!(struct Refusing { arena: 8 << 20 });

/// Code that the guest may not write, data of which lazy memory is, and things given to it.
fn config() -> AxVMConfig {
    AxVMConfig::new(1, "loaded").with_memory(BASE, 2 * PAGE, RX, MapAlloc).with_memory(
        BASE + 2 * PAGE,
        64 * PAGE,
        RW,
        MapLazy,
    )
}

#[test]
fn everything_is_where_the_plan_says_and_again_after_a_reset() {
    let at = BASE as u64;
    let file = elf(at, &[segment(at, 0x123, 0x1fff), segment(at + 0x2ffd, 0x1005, 0x4000)]);
    let file: &'static [u8] = file.leak();
    let initrd: &'static [u8] = vec![7; 0x1801].leak();
    let ram = [gpa_range(BASE, 66 * PAGE)];
    let request =
        Request { initrd: Some(initrd), dtb_room: 0x800, ..Request::new(&ram, kernel(file)) };
    let plan = Plan::new(&request).unwrap();
    let vm = AxVM::<Hal, RiscvLike<Hal>>::new(config()).unwrap();
    // What was there before.
    vm.memory().write_image((BASE + 0x100).into(), &[0xee; 0x7000]).unwrap();
    vm.load_images(move |vm| load(vm.memory(), &plan, b"tree")).unwrap();
    let mut all = vec![0; 66 * PAGE];
    vm.memory().read(BASE.into(), &mut all).unwrap();
    let mut expected = vec![0; 66 * PAGE];
    expected[0x100..0x7100].fill(0xee);
    expected[..0x1fff].fill(0);
    expected[..0x123].fill(filler(0));
    expected[0x2ffd..0x6ffd].fill(0);
    expected[0x2ffd..0x2ffd + 0x1005].fill(filler(1));
    let initrd_at = plan.initrd().unwrap().start().as_usize() - BASE;
    expected[initrd_at..initrd_at + 0x1801].fill(7);
    let dtb_at = plan.dtb().unwrap().start().as_usize() - BASE;
    expected[dtb_at..dtb_at + 4].copy_from_slice(b"tree");
    assert!(all == expected);
    // The guest still may not write its code.
    let byte = vm.write_to_guest_of(BASE.into(), &0u8);
    assert_eq!(byte, Err(AxError::InvalidInput));
    // A reset loads again.
    vm.memory().write_image((BASE + 0x10).into(), &[0xdd; 0x7000]).unwrap();
    vm.shutdown().unwrap();
    vm.reset().unwrap();
    vm.memory().read(BASE.into(), &mut all).unwrap();
    expected.iter_mut().filter(|byte| **byte == 0xee).for_each(|byte| *byte = 0);
    assert!(all == expected);
    drop(vm);
    Hal::machine().assert_balanced();
}

#[test]
fn memory_that_is_zero_by_itself_is_not_taken_for_it() {
    let config = AxVMConfig::new(1, "lazy").with_memory(BASE, 64 * PAGE, RW, MapLazy).with_memory(
        BASE + 64 * PAGE,
        PAGE,
        RW | MappingFlags::DEVICE,
        MapLazy,
    );
    let vm = AxVM::<Lazy, RiscvLike<Lazy>>::new(config).unwrap();
    let at = BASE as u64;
    let file = elf(at, &[segment(at, 0x10, 40 * PAGE as u64)]);
    let ram = [gpa_range(BASE, 64 * PAGE)];
    let plan = Plan::new(&Request::new(&ram, kernel(&file))).unwrap();
    let before = Lazy::machine().arena().allocated() - vm.memory().table_frames();
    load(vm.memory(), &plan, &[]).unwrap();
    let after = Lazy::machine().arena().allocated() - vm.memory().table_frames();
    assert_eq!(after - before, 1);
    let byte = |at: usize| vm.read_from_guest_of::<u8>((BASE + at).into());
    assert_eq!((byte(15), byte(16), byte(40 * PAGE - 1)), (Ok(filler(0)), Ok(0), Ok(0)));
    // What is no memory, or a device's, is not zeroed.
    for start in [63, 64, 65, 0] {
        let zero = vm.memory().zero_image((BASE + start * PAGE + 1).into(), 66 * PAGE);
        assert_eq!(zero, Err(AxError::InvalidInput));
        let write = vm.memory().write_image((BASE + 64 * PAGE - 1).into(), &[1; 2]);
        assert_eq!(write, Err(AxError::InvalidInput));
    }
    assert_eq!(vm.memory().zero_image(usize::MAX.into(), 2), Err(AxError::InvalidInput));
}

#[test]
fn a_device_tree_that_is_longer_than_its_place_is_refused() {
    let vm = AxVM::<Refusing, RiscvLike<Refusing>>::new(config()).unwrap();
    let ram = [gpa_range(BASE, 66 * PAGE)];
    let at = Some(BASE.into());
    let request = Request { kernel_at: at, ..Request::new(&ram, kernel(&[0x13; 8])) };
    let refused = |request: &Request<'_, '_>, dtb: &[u8]| {
        let loaded = load(vm.memory(), &Plan::new(request).unwrap(), dtb);
        assert_eq!(loaded, Err(AxError::InvalidInput));
        assert_eq!(vm.read_from_guest_of::<u64>(BASE.into()), Ok(0), "nothing was written");
    };
    refused(&request, &[1]);
    refused(&Request { dtb_room: 16, ..request }, &[1; 17]);
    // A plan for other memory than this VM has.
    let ram = [gpa_range(BASE, 128 * PAGE)];
    let plan = Plan::new(&Request { ram: &ram, dtb_room: 16, ..request }).unwrap();
    assert_eq!(load(vm.memory(), &plan, &[1; 16]), Err(AxError::InvalidInput));
}
