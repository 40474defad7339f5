//! The registers of a hart, with what hardware does to a write (Privileged 1.13 §12.1, §18.2).

use axvm::arch::riscv64::Csr;

use super::HartConfig;

pub(super) const SIE: u64 = 1 << 1;
pub(super) const SPIE: u64 = 1 << 5;
pub(super) const SPP: u64 = 1 << 8;
pub(super) const VS: u64 = 0b11 << 9;
pub(super) const FS: u64 = 0b11 << 13;
pub(super) const SUM: u64 = 1 << 18;
pub(super) const MXR: u64 = 1 << 19;
pub(super) const UXL_64: u64 = 2 << 32;
pub(super) const SD: u64 = 1 << 63;

pub(super) const GVA: u64 = 1 << 6;
pub(super) const SPV: u64 = 1 << 7;
pub(super) const SPVP: u64 = 1 << 8;
pub(super) const HU: u64 = 1 << 9;
pub(super) const VSXL_64: u64 = 2 << 32;

/// The interrupts at VS level: software, timer, external.
pub(super) const VS_IRQS: u64 = 1 << 2 | 1 << 6 | 1 << 10;
const VSTIP: u64 = 1 << 6;
const STCE: u64 = 1 << 63;

/// `hgatp`: VMID and page number, whose lowest 2 bits are 0.
const VMID_SHIFT: u32 = 44;
const ROOT: u64 = ((1 << 44) - 1) & !3;

/// Exceptions that can be delegated: not calls from HS or VS, and no guest-page fault.
const DELEGABLE: u64 = 0xb1ff | 1 << 18 | 1 << 19;

/// Registers as they are stored; those that are views of others are computed.
pub(super) struct Csrs {
    stored: [u64; Csr::Time as usize + 1],
    pub(super) config: HartConfig,
    pub(super) time: u64,
}

impl Csrs {
    /// After reset: junk where the manual says nothing.
    pub(super) fn new(config: HartConfig) -> Self {
        let mut csrs = Self { stored: [0; Csr::Time as usize + 1], config, time: 0 };
        csrs.stored[Csr::Sstatus as usize] = UXL_64;
        if config.hypervisor {
            // The implementation that is worst for whoever relies on more.
            csrs.stored[Csr::Hie as usize] = VS_IRQS;
            csrs.stored[Csr::Vstvec as usize] = 0xdead_0000;
            csrs.stored[Csr::Vsscratch as usize] = 0xdead_0001;
        }
        csrs
    }

    fn at(&mut self, csr: Csr) -> &mut u64 {
        &mut self.stored[csr as usize]
    }

    #[track_caller]
    fn must_exist(&self, csr: Csr) {
        let base = matches!(csr, Csr::Sstatus | Csr::Scounteren | Csr::Senvcfg | Csr::Time);
        let exists = match csr {
            Csr::Vstimecmp => self.config.hypervisor && self.config.vstimecmp,
            _ => base || self.config.hypervisor,
        };
        assert!(exists, "{csr:?}: illegal instruction");
    }

    #[track_caller]
    pub(super) fn get(&self, csr: Csr) -> u64 {
        self.must_exist(csr);
        let stored = |csr| self.stored[csr as usize];
        match csr {
            Csr::Time => self.time,
            Csr::Vsie => (stored(Csr::Hie) & stored(Csr::Hideleg) & VS_IRQS) >> 1,
            Csr::Hip => {
                let timer = stored(Csr::Henvcfg) & STCE != 0 && self.time >= stored(Csr::Vstimecmp);
                stored(Csr::Hvip) | if timer { VSTIP } else { 0 }
            }
            Csr::Sstatus | Csr::Vsstatus => {
                let value = stored(csr);
                let dirty = value & FS == FS || value & VS == VS;
                value | UXL_64 | if dirty { SD } else { 0 }
            }
            _ => stored(csr),
        }
    }

    #[track_caller]
    pub(super) fn put(&mut self, csr: Csr, value: u64) {
        self.must_exist(csr);
        let config = self.config;
        let writable = match csr {
            Csr::Time | Csr::Hip => panic!("{csr:?} is not for writing"),
            Csr::Vsie => {
                let seen = *self.at(Csr::Hideleg) & VS_IRQS;
                let hie = self.at(Csr::Hie);
                *hie = *hie & !seen | value << 1 & seen;
                return;
            }
            Csr::Hgatp => {
                // An unsupported mode: the write has no effect at all.
                let exists = match value >> 60 {
                    0 => true,
                    8 => config.sv39x4,
                    9 => config.sv48x4,
                    _ => false,
                };
                let vmid = ((1 << config.vmid_bits) - 1) << VMID_SHIFT;
                if !exists {
                    return;
                }
                0xf << 60 | vmid | ROOT
            }
            Csr::Vsatp => {
                let mode = value >> 60;
                if mode != 0 && !(8..=config.satp_mode).contains(&mode) {
                    return;
                }
                u64::MAX
            }
            Csr::Sstatus | Csr::Vsstatus => SIE | SPIE | SPP | VS | FS | SUM | MXR,
            Csr::Hvip | Csr::Hideleg => VS_IRQS,
            Csr::Hie => VS_IRQS | 1 << 12,
            Csr::Hedeleg => DELEGABLE,
            Csr::Henvcfg => 0xf1 | if config.stce { STCE } else { 0 },
            Csr::Senvcfg => 0xf1,
            Csr::Scounteren | Csr::Hcounteren => u32::MAX.into(),
            Csr::Vstvec => !2,
            Csr::Vsepc => !1,
            _ => u64::MAX,
        };
        *self.at(csr) = value & writable;
    }
}
