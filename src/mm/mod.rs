//! Guest memory: addresses, the address space and its regions, the nested page table, TLB
//! maintenance by VM, and access to guest memory.
//!
//! From outside, touch [`AddrSpace`]; the walker below it ([`npt`]) is public for tests,
//! benches and for backends, which describe their page-table format to it.

mod access;
mod addr;
mod fault;
mod frames;
mod image;
pub mod npt;
mod quarantine;
mod region;
mod reset;
mod source;
mod space;
pub mod tlb;

pub use access::{GuestAtomic, HostSegment};
pub use addr::{GpaRange, GuestPhysAddr, HostPhysAddr, HostVirtAddr, PAGE_SIZE_4K};
pub use fault::FaultOutcome;
pub(crate) use region::Origin;
pub(crate) use source::Source;
pub use space::AddrSpace;
/// The end of the guest-physical address space, unless the hardware's is smaller (exclusive).
pub const ADDRESS_LIMIT: usize = 0x7fff_ffff_f000;

pub use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
