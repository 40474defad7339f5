//! The barrier instructions behind [`NptFormat::publish`](super::NptFormat::publish): the
//! target's own on bare metal, a fence elsewhere.

/// Arm: completes all earlier stores before any later one, walkers of the inner-shareable domain
/// included (DDI 0487 D8.2.6 and B2.3.12).
#[inline]
pub(super) fn arm() {
    #[cfg(all(target_arch = "aarch64", target_os = "none"))]
    // SAFETY: a barrier; it neither changes registers or memory nor uses the stack. As the
    // block may be taken to read and write memory, the compiler moves no store across it.
    unsafe {
        core::arch::asm!("dsb ishst", options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
    fallback();
}

/// RISC-V: orders earlier stores before later ones; a hart's implicit reads of page tables
/// observe stores in that order (Privileged 1.13 §12.2.1, §18.5.3).
#[inline]
pub(super) fn riscv() {
    #[cfg(all(target_arch = "riscv64", target_os = "none"))]
    // SAFETY: as for `arm`.
    unsafe {
        core::arch::asm!("fence w, w", options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "riscv64", target_os = "none")))]
    fallback();
}

/// x86 keeps stores in order (SDM vol. 3A 9.2.2): only the compiler must not reorder them, and a
/// release fence is no instruction there.
#[inline]
pub(super) fn x86() {
    fallback();
}

#[inline]
fn fallback() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}
