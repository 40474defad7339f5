//! What the fuzz targets found, so that it stays found.

use axerrno::AxError;
use axvm::{
    config::{AxVMConfig, VmMemMappingType},
    mm::{FaultOutcome, MappingFlags, PAGE_SIZE_4K, PageSize},
    vm::{AxVM, AxVMRef},
};
use axvm_testkit::{MockHal, X86Like, mock_hal};

const READ_WRITE: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

#[test]
fn lazy_memory_has_no_larger_leaves_than_the_hardware() {
    mock_hal!(struct Hal { arena: 8 << 20 });
    Hal::machine().set_max_leaf(PageSize::Size4K);
    let config = AxVMConfig::new(1, "lazy").with_memory(
        0x4000_0000,
        4 << 20,
        READ_WRITE,
        VmMemMappingType::MapLazyHuge,
    );
    let vm: AxVMRef<Hal, X86Like<Hal>> = AxVM::new(config).unwrap();
    let gpa = 0x4000_0000.into();
    assert_eq!(vm.memory().fault(gpa, MappingFlags::READ), Ok(FaultOutcome::Populated));
    assert!(vm.memory().translate(gpa).is_some());
    assert_eq!(vm.memory().translate((0x4000_0000 + PAGE_SIZE_4K).into()), None);
}

#[test]
fn protect_does_not_make_a_device_memory_nor_the_reverse() {
    mock_hal!(struct Hal { arena: 8 << 20 });
    Hal::machine().regions().add_device(0x9000_0000, PAGE_SIZE_4K);
    let vm: AxVMRef<Hal, X86Like<Hal>> = AxVM::new(AxVMConfig::new(1, "types")).unwrap();
    let (device, memory) = (0x5000_0000.into(), 0x6000_0000.into());
    let flags = READ_WRITE | MappingFlags::DEVICE;
    vm.map_region(device, 0x9000_0000.into(), PAGE_SIZE_4K, flags).unwrap();
    vm.memory().protect(device, PAGE_SIZE_4K, READ_WRITE).unwrap();
    // This went on for ever: memory to the region, a device to the page table.
    assert_eq!(vm.memory().read_obj::<u64>(device), Err(AxError::InvalidInput));
    vm.memory().map_alloc(memory, PAGE_SIZE_4K, READ_WRITE, false).unwrap();
    vm.memory().protect(memory, PAGE_SIZE_4K, MappingFlags::READ | MappingFlags::DEVICE).unwrap();
    assert_eq!(vm.memory().read_obj::<u64>(memory), Ok(0));
}
