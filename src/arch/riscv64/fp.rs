//! The floating-point registers of a vCPU: loaded at its first use of them while it is bound,
//! saved when it is unbound and has written them (Privileged 1.13 §12.1.1.5: FS).

#![forbid(unsafe_code)]

use super::{
    Hart,
    csr::{Csr, status},
    state::FpState,
};

/// Whose registers are in the hart.
#[derive(Debug, Default)]
pub(super) struct Fp {
    /// The guest's, unless they are in the hart and dirty.
    guest: FpState,
    /// Whether the guest's are in the hart.
    live: bool,
    /// The host's, and its FS, while the guest's are in the hart.
    host: FpState,
    host_fs: u64,
}

impl Fp {
    /// Puts the guest's registers into the hart. The host's FS is Off from here on, so that it
    /// does not touch them unawares.
    pub(super) fn load(&mut self, hart: &mut impl Hart, sstatus: &mut u64) {
        self.host_fs = hart.read(Csr::Sstatus) & status::FS;
        if self.host_fs != 0 {
            hart.save_fp(&mut self.host);
        } else {
            hart.set(Csr::Sstatus, status::FS_CLEAN);
        }
        hart.load_fp(&self.guest);
        hart.clear(Csr::Sstatus, status::FS);
        self.live = true;
        *sstatus = *sstatus & !status::FS | status::FS_CLEAN;
    }

    /// Brings `guest` up to date; the registers stay in the hart.
    pub(super) fn sync(&mut self, hart: &mut impl Hart, sstatus: &mut u64) -> &FpState {
        if self.live && *sstatus & status::FS == status::FS_DIRTY {
            hart.set(Csr::Sstatus, status::FS_CLEAN);
            hart.save_fp(&mut self.guest);
            hart.clear(Csr::Sstatus, status::FS);
            *sstatus = *sstatus & !status::FS | status::FS_CLEAN;
        }
        &self.guest
    }

    /// Takes the guest's registers out of the hart and gives it back to the host.
    pub(super) fn unload(&mut self, hart: &mut impl Hart, sstatus: &mut u64) {
        if !self.live {
            return;
        }
        self.sync(hart, sstatus);
        if self.host_fs != 0 {
            hart.set(Csr::Sstatus, status::FS_CLEAN);
            hart.load_fp(&self.host);
            hart.clear(Csr::Sstatus, status::FS);
            hart.set(Csr::Sstatus, self.host_fs);
        }
        self.live = false;
        *sstatus &= !status::FS;
    }

    /// Replaces the guest's registers.
    pub(super) fn replace(&mut self, hart: &mut impl Hart, sstatus: &mut u64, with: &FpState) {
        self.unload(hart, sstatus);
        self.guest = *with;
    }
}
