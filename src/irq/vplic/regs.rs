//! The registers (RISC-V PLIC 1.0.0, "Memory Map").

use axerrno::AxResult;

use super::{VPlic, WINDOW_SIZE};
use crate::{
    device::{BaseDeviceOps, EmuDeviceType, WidthSet},
    mm::{GpaRange, GuestPhysAddr},
    sync::atomic::Ordering,
    vcpu::AccessWidth,
};

const PENDING: usize = 0x1000;
const PENDING_END: usize = 0x1080;
const ENABLE: usize = 0x2000;
/// Bytes of enable bits in one context.
const ENABLE_STRIDE: usize = 0x80;
const CONTEXT: usize = 0x20_0000;
/// Bytes from one context's threshold to the next one's.
const CONTEXT_STRIDE: usize = 0x1000;

/// What is behind an offset. Sources, words and harts may be more than there are.
#[derive(Clone, Copy)]
enum Register {
    Priority { source: usize },
    Pending { word: usize },
    Enable { vcpu: usize, word: usize },
    Threshold { vcpu: usize },
    Claim { vcpu: usize },
}

impl Register {
    /// None for what no PLIC has, an M-mode context's registers, and an access that is not
    /// aligned.
    fn at(offset: usize) -> Option<Self> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        Some(match offset {
            ..PENDING => Self::Priority { source: offset / 4 },
            PENDING..PENDING_END => Self::Pending { word: (offset - PENDING) / 4 },
            PENDING_END..ENABLE => return None,
            ENABLE..CONTEXT => {
                let offset = offset - ENABLE;
                let vcpu = supervisor(offset / ENABLE_STRIDE)?;
                Self::Enable { vcpu, word: offset % ENABLE_STRIDE / 4 }
            }
            CONTEXT.. => {
                let offset = offset - CONTEXT;
                let vcpu = supervisor(offset / CONTEXT_STRIDE)?;
                match offset % CONTEXT_STRIDE {
                    0 => Self::Threshold { vcpu },
                    4 => Self::Claim { vcpu },
                    _ => return None,
                }
            }
        })
    }
}

/// The vCPU whose S-mode context this is.
fn supervisor(context: usize) -> Option<usize> {
    (context % 2 == 1).then_some(context / 2)
}

impl VPlic {
    fn read(&self, register: Register) -> Option<u32> {
        Some(match register {
            Register::Priority { source } => self.priorities.get(source)?.load(Ordering::Acquire),
            Register::Pending { word } => self.pending_word(word),
            Register::Enable { vcpu, word } => {
                self.harts.get(vcpu)?.enables.get(word)?.load(Ordering::Acquire)
            }
            Register::Threshold { vcpu } => self.harts.get(vcpu)?.threshold.load(Ordering::Acquire),
            Register::Claim { vcpu } => self.claim(vcpu),
        })
    }

    fn write(&self, register: Register, value: u32) -> Option<()> {
        match register {
            Register::Priority { source } => self.set_priority(source, value),
            Register::Pending { .. } => None,
            Register::Enable { vcpu, word } => self.set_enables(vcpu, word, value),
            Register::Threshold { vcpu } => self.set_threshold(vcpu, value),
            Register::Claim { vcpu } => self.complete(vcpu, value),
        }
    }

    fn register(&self, addr: GuestPhysAddr) -> Option<Register> {
        Register::at(addr.as_usize().checked_sub(self.range.start().as_usize())?)
    }
}

/// Registers that do not exist read 0 and ignore writes.
impl BaseDeviceOps<GpaRange> for VPlic {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::InterruptController
    }

    /// [`WINDOW_SIZE`] bytes from the base.
    fn address_range(&self) -> GpaRange {
        self.range
    }

    fn handle_read(&self, addr: GuestPhysAddr, _: AccessWidth) -> AxResult<usize> {
        let value = self.register(addr).and_then(|register| self.read(register));
        Ok(value.unwrap_or(0) as usize)
    }

    fn handle_write(&self, addr: GuestPhysAddr, _: AccessWidth, value: usize) -> AxResult {
        let _ = self.register(addr).and_then(|register| self.write(register, value as u32));
        Ok(())
    }

    /// 32 bits.
    fn legal_widths(&self) -> WidthSet {
        AccessWidth::Dword.into()
    }

    /// Nothing: the VM resets its interrupt controller after its devices, which lower their
    /// lines first.
    fn reset(&self) {}
}

const _: () = assert!(CONTEXT + 2 * crate::vcpu::MAX_VCPUS * CONTEXT_STRIDE <= WINDOW_SIZE);
