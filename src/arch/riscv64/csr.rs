//! Control and status registers: those that a guest owns, and the bits that the backend reads
//! (RISC-V Privileged 1.13; hypervisor extension §18.2).

#![forbid(unsafe_code)]

/// A register that the backend touches. VS registers stand for the guest's supervisor registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Csr {
    Sstatus,
    Scounteren,
    Senvcfg,
    Hstatus,
    Hedeleg,
    Hideleg,
    Hcounteren,
    Henvcfg,
    Htimedelta,
    Hvip,
    Hip,
    Hie,
    Hgatp,
    Vsstatus,
    Vsie,
    Vstvec,
    Vsscratch,
    Vsepc,
    Vscause,
    Vstval,
    Vsatp,
    Vstimecmp,
    Time,
}

/// `sstatus` and `vsstatus` (§12.1.1).
pub(super) mod status {
    pub(crate) const SIE: u64 = 1 << 1;
    pub(crate) const SPIE: u64 = 1 << 5;
    pub(crate) const SPP: u64 = 1 << 8;
    pub(crate) const FS: u64 = 0b11 << 13;
    pub(crate) const FS_CLEAN: u64 = 0b10 << 13;
    pub(crate) const FS_DIRTY: u64 = 0b11 << 13;
    /// UXL = 2: U-mode has 64 bits.
    pub(crate) const UXL_64: u64 = 2 << 32;
}

/// `hstatus` (§18.2.1).
pub(super) mod hstatus {
    /// The trap came from V = 1; a return goes there.
    pub(crate) const SPV: u64 = 1 << 7;
    /// The nominal privilege of HLV, HLVX and HSV: set for VS.
    pub(crate) const SPVP: u64 = 1 << 8;
    /// WFI in VS-mode raises a virtual-instruction exception, if it does not end soon.
    pub(crate) const VTW: u64 = 1 << 21;
    /// VSXL = 2: VS-mode has 64 bits.
    pub(crate) const VSXL_64: u64 = 2 << 32;
}

/// Interrupts at VS level, in `hvip`, `hip`, `hie` and `hideleg` (§18.2.2, §18.2.3).
pub(super) mod irq {
    pub(crate) const VSSI: u64 = 1 << 2;
    pub(crate) const VSTI: u64 = 1 << 6;
    pub(crate) const VSEI: u64 = 1 << 10;
    pub(crate) const ALL: u64 = VSSI | VSTI | VSEI;
}

/// `scause` (§12.1.8, §18.6.1).
pub(super) mod cause {
    pub(crate) const INTERRUPT: u64 = 1 << 63;
    pub(crate) const FETCH_ACCESS: u64 = 1;
    pub(crate) const ILLEGAL: u64 = 2;
    pub(crate) const LOAD_ACCESS: u64 = 5;
    pub(crate) const STORE_ACCESS: u64 = 7;
    pub(crate) const ECALL_VS: u64 = 10;
    pub(crate) const FETCH_GUEST_PAGE: u64 = 20;
    pub(crate) const LOAD_GUEST_PAGE: u64 = 21;
    pub(crate) const VIRTUAL: u64 = 22;
    pub(crate) const STORE_GUEST_PAGE: u64 = 23;

    /// What the guest gets without an exit: exceptions that are its own whatever the host thinks.
    /// Illegal instructions are not among them, as the first use of floating point is one.
    pub(crate) const DELEGATED: u64 = 1 << 0 // misaligned fetch
        | 1 << FETCH_ACCESS
        | 1 << 3 // breakpoint
        | 1 << 4 // misaligned load
        | 1 << LOAD_ACCESS
        | 1 << 6 // misaligned store
        | 1 << STORE_ACCESS
        | 1 << 8 // call from U-mode
        | 1 << 12 // page faults
        | 1 << 13
        | 1 << 15;
    /// The exceptions that the guest's own handler knows: 0 to 15 but for calls, which have
    /// causes of their own at each level.
    pub(crate) const GUEST_S: u64 = 0xb1ff | 1 << 18 | 1 << 19;
}

/// `hcounteren`: the guest reads `time`, and no other counter.
pub(super) const HCOUNTEREN: u64 = 1 << 1;

/// `henvcfg`: the guest has Sstc (§18.2.6).
pub(super) const HENVCFG_STCE: u64 = 1 << 63;

/// `hgatp` (§18.2.10) and `vsatp`: mode in 63:60, VMID in 57:44, root's page number in 43:0.
pub(super) mod atp {
    pub(crate) const MODE_SHIFT: u32 = 60;
    pub(crate) const SV39: u64 = 8;
    pub(crate) const SV48: u64 = 9;
    pub(crate) const SV57: u64 = 10;
    pub(crate) const VMID_SHIFT: u32 = 44;
    pub(crate) const VMID: u64 = 0x3fff << VMID_SHIFT;
    pub(crate) const PPN: u64 = (1 << 44) - 1;
}

/// The guest's supervisor registers that VS registers stand for, and two that the hypervisor
/// extension does not double (`scounteren` and `senvcfg` act in VU-mode as they are).
macro_rules! guest_csrs {
    ($($(#[$doc:meta])* $field:ident: $csr:ident,)*) => {
        /// The guest's supervisor registers. This declaration is the only list of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct GuestCsrs {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl GuestCsrs {
            /// Reads them all from the hart.
            #[inline(always)]
            pub(super) fn read(hart: &mut impl super::Hart) -> Self {
                Self { $($field: hart.read(Csr::$csr),)* }
            }

            /// Writes them all to the hart.
            #[inline(always)]
            pub(super) fn write(&self, hart: &mut impl super::Hart) {
                $(hart.write(Csr::$csr, self.$field);)*
            }
        }
    };
}

guest_csrs! {
    /// `sstatus` of the guest, its FS and VS included.
    vsstatus: Vsstatus,
    /// `sie`.
    vsie: Vsie,
    /// `stvec`.
    vstvec: Vstvec,
    /// `sscratch`.
    vsscratch: Vsscratch,
    /// `sepc`.
    vsepc: Vsepc,
    /// `scause`.
    vscause: Vscause,
    /// `stval`.
    vstval: Vstval,
    /// `satp`.
    vsatp: Vsatp,
    /// Pending interrupts that software drives: VSSIP, VSTIP, VSEIP.
    hvip: Hvip,
    /// `scounteren`.
    scounteren: Scounteren,
    /// `senvcfg`.
    senvcfg: Senvcfg,
}
