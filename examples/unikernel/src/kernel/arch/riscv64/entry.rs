//! Where harts begin, and where their traps go.

use core::arch::global_asm;

// The boot hart: a0 = hart id, a1 = device tree (the Linux boot protocol, which OpenSBI follows).
//
// The MMU stays off: physical addresses are virtual ones, and there is no page table to keep.
// `sstatus.FS` is off: nothing here computes with floating point, so that registers which a guest
// left behind stay as they are, and a use by mistake is an exception and not a corrupted guest.
global_asm!(
    ".section .text.entry, \"ax\"",
    ".globl _start",
    "_start:",
    // Only one hart begins here. OpenSBI 1.1 marks a hart as started first and says where
    // after: one that looks in between comes here too (its old address). It is stopped, and
    // `start_cpu` starts it again.
    "    la t0, booted",
    "    li t1, 1",
    ".option push",
    ".option arch, +a",
    "    amoswap.w t1, t1, (t0)",
    ".option pop",
    "    bnez t1, stray",
    "    csrw sie, zero",
    "    csrw satp, zero",
    "    li t0, 0x6002", // FS and SIE
    "    csrc sstatus, t0",
    ".option push",
    ".option norelax",
    "    la gp, __global_pointer$",
    ".option pop",
    "    la t0, __bss_start",
    "    la t1, __bss_end",
    "1:  bgeu t0, t1, 2f",
    "    sd zero, (t0)",
    "    addi t0, t0, 8",
    "    j 1b",
    "2:  la sp, __boot_stack_top",
    "    mv tp, zero",
    "    call {boot}",
    "stray:",
    "    li a7, {hsm}",
    "    li a6, {hart_stop}",
    "    ecall",
    "3:  wfi",
    "    j 3b",
    // Not in .bss, which the first hart clears.
    ".pushsection .data.booted, \"aw\"",
    ".balign 4",
    "booted: .word 0",
    ".popsection",
    // The others: a0 = hart id, a1 = the top of the stack, on which lies what `tp` shall be (SBI
    // 1.0 §9.1), and the stack's address, to be sure.
    ".globl secondary_entry",
    "secondary_entry:",
    "    ld t0, 8(a1)",
    "    bne t0, a1, stray",
    "    csrw sie, zero",
    "    csrw satp, zero",
    "    li t0, 0x6002",
    "    csrc sstatus, t0",
    ".option push",
    ".option norelax",
    "    la gp, __global_pointer$",
    ".option pop",
    "    mv sp, a1",
    "    ld tp, (sp)",
    "    call {secondary}",
    hsm = const super::sbi::HSM,
    hart_stop = const super::sbi::HART_STOP,
    boot = sym super::boot,
    secondary = sym crate::kernel::secondary,
);

// A trap comes while Rust code runs, on its stack: what a function may change is kept. One trap
// does not interrupt another, so `sepc` and `sstatus` stay.
global_asm!(
    ".balign 4",
    ".globl trap_entry",
    "trap_entry:",
    "    addi sp, sp, -128",
    "    sd ra, 0(sp)",
    "    sd t0, 8(sp)",
    "    sd t1, 16(sp)",
    "    sd t2, 24(sp)",
    "    sd t3, 32(sp)",
    "    sd t4, 40(sp)",
    "    sd t5, 48(sp)",
    "    sd t6, 56(sp)",
    "    sd a0, 64(sp)",
    "    sd a1, 72(sp)",
    "    sd a2, 80(sp)",
    "    sd a3, 88(sp)",
    "    sd a4, 96(sp)",
    "    sd a5, 104(sp)",
    "    sd a6, 112(sp)",
    "    sd a7, 120(sp)",
    "    csrr a0, scause",
    "    csrr a1, sepc",
    "    csrr a2, stval",
    "    call {trap}",
    "    ld ra, 0(sp)",
    "    ld t0, 8(sp)",
    "    ld t1, 16(sp)",
    "    ld t2, 24(sp)",
    "    ld t3, 32(sp)",
    "    ld t4, 40(sp)",
    "    ld t5, 48(sp)",
    "    ld t6, 56(sp)",
    "    ld a0, 64(sp)",
    "    ld a1, 72(sp)",
    "    ld a2, 80(sp)",
    "    ld a3, 88(sp)",
    "    ld a4, 96(sp)",
    "    ld a5, 104(sp)",
    "    ld a6, 112(sp)",
    "    ld a7, 120(sp)",
    "    addi sp, sp, 128",
    "    sret",
    trap = sym super::trap::trap,
);

unsafe extern "C" {
    /// Where a secondary hart begins.
    pub fn secondary_entry();
    /// Where traps go.
    pub fn trap_entry();
}
