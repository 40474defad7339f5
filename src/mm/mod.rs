//! Guest memory: addresses, the address space and its regions, the nested page table, TLB
//! maintenance by VM, and access to guest memory.
//!
//! From outside, touch [`AddrSpace`]; the walker below it ([`npt`]) is public for tests,
//! benches and for backends, which describe their page-table format to it.

mod addr;
pub mod npt;
pub mod tlb;

pub use addr::{GpaRange, GuestPhysAddr, HostPhysAddr, HostVirtAddr, PAGE_SIZE_4K};
pub use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
