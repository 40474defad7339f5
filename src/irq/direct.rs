//! The controller of a VM without an emulated interrupt controller.

use alloc::{boxed::Box, sync::Arc};

use axerrno::{AxError, AxResult};

use super::{EntryState, InterruptController, IrqHw, IrqInput, VcpuNotifier};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The most interrupt numbers that a [`DirectIrq`] can have.
pub const MAX_IRQS: usize = 1024;

/// Which of several pending interrupts goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// The lowest number: Arm and RISC-V.
    LowestFirst,
    /// The highest number: x86 vectors (Intel SDM vol. 3A 11.8.3.1).
    HighestFirst,
}

/// A set of interrupt numbers. Everyone changes it bit by bit, atomically.
type Bits = Box<[AtomicU64]>;

/// What is pending, handed straight to the backend's hardware: no priorities but the number's,
/// no masks, no end of interrupt.
///
/// Lock-free: an edge that becomes pending is offered to the hardware exactly once, or merges
/// with one that is still pending. Device inputs go to vCPU 0. A level input that is asserted is
/// offered at every entry until the device deasserts it.
pub struct DirectIrq {
    edges: Box<[Bits]>,
    /// The levels of the inputs, for vCPU 0.
    levels: Bits,
    irqs: usize,
    priority: Priority,
    notifier: Arc<dyn VcpuNotifier>,
}

impl DirectIrq {
    /// A controller for `vcpus` vCPUs and the interrupt numbers `0 .. irqs`, at most 1024.
    ///
    /// # Errors
    /// `InvalidInput` for no vCPU, or more numbers than that.
    pub fn new(
        vcpus: usize,
        irqs: usize,
        priority: Priority,
        notifier: Arc<dyn VcpuNotifier>,
    ) -> AxResult<Self> {
        if vcpus == 0 || irqs > MAX_IRQS {
            return Err(AxError::InvalidInput);
        }
        let bits = || (0..irqs.div_ceil(64)).map(|_| AtomicU64::new(0)).collect::<Bits>();
        let edges = (0..vcpus).map(|_| bits()).collect();
        Ok(Self { edges, levels: bits(), irqs, priority, notifier })
    }

    /// The word and the bit of an interrupt number.
    fn bit<'a>(&self, bits: &'a Bits, irq: usize) -> AxResult<(&'a AtomicU64, u64)> {
        match bits.get(irq / 64) {
            Some(word) if irq < self.irqs => Ok((word, 1 << (irq % 64))),
            _ => Err(AxError::InvalidInput),
        }
    }

    fn make_pending(&self, vcpu: usize, irq: usize) -> AxResult {
        let (word, bit) = self.bit(self.edges.get(vcpu).ok_or(AxError::NotFound)?, irq)?;
        word.fetch_or(bit, Ordering::AcqRel);
        self.notifier.notify(vcpu);
        Ok(())
    }

    fn level_word(&self, vcpu: usize, index: usize) -> u64 {
        let word = if vcpu == 0 { self.levels.get(index) } else { None };
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Offers what is pending in one word. False when the hardware takes no more.
    fn offer_word(
        &self,
        hw: &mut (impl IrqHw + ?Sized),
        vcpu: usize,
        index: usize,
        edges: &AtomicU64,
    ) -> AxResult<bool> {
        let mut rest = edges.load(Ordering::Acquire) | self.level_word(vcpu, index);
        while rest != 0 {
            let place = match self.priority {
                Priority::LowestFirst => rest.trailing_zeros(),
                Priority::HighestFirst => 63 - rest.leading_zeros(),
            };
            let bit = 1 << place;
            rest &= !bit;
            // Claimed first: an edge that comes from now on is a new one.
            let edge = edges.fetch_and(!bit, Ordering::AcqRel) & bit;
            let level = self.level_word(vcpu, index) & bit;
            if edge | level == 0 {
                continue; // The device has just lowered it.
            }
            let irq = index * 64 + place as usize;
            match hw.inject(irq) {
                Ok(()) => {}
                Err(AxError::InvalidInput) => {
                    log::debug!("interrupt {irq} dropped: the architecture has no such number");
                    if let Some(word) = self.levels.get(index).filter(|_| level != 0) {
                        word.fetch_and(!bit, Ordering::AcqRel);
                    }
                }
                Err(error) => {
                    edges.fetch_or(edge, Ordering::AcqRel);
                    return if error == AxError::ResourceBusy { Ok(false) } else { Err(error) };
                }
            }
        }
        Ok(true)
    }

    fn any_pending(&self, vcpu: usize) -> bool {
        self.edges.get(vcpu).is_some_and(|words| {
            words.iter().enumerate().any(|(index, word)| {
                word.load(Ordering::Acquire) | self.level_word(vcpu, index) != 0
            })
        })
    }
}

impl IrqInput for DirectIrq {
    fn set_level(&self, irq: usize, asserted: bool) -> AxResult {
        let (word, bit) = self.bit(&self.levels, irq)?;
        if !asserted {
            word.fetch_and(!bit, Ordering::AcqRel);
        } else if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.notifier.notify(0);
        }
        Ok(())
    }

    fn pulse(&self, irq: usize) -> AxResult {
        self.make_pending(0, irq)
    }
}

impl<Hw: IrqHw + ?Sized> InterruptController<Hw> for DirectIrq {
    fn inject(&self, vcpu: usize, irq: usize) -> AxResult {
        self.make_pending(vcpu, irq)
    }

    fn pending(&self, vcpu: usize) -> bool {
        self.any_pending(vcpu)
    }

    fn before_entry(&self, vcpu: usize, hw: &mut Hw) -> AxResult<EntryState> {
        let words = self.edges.get(vcpu).ok_or(AxError::NotFound)?;
        let mut offer = |(index, word)| self.offer_word(hw, vcpu, index, word);
        // Each stops at the first word that is not taken whole, or fails.
        let stop = |taken: &AxResult<bool>| *taken != Ok(true);
        let words = words.iter().enumerate();
        let stopped = match self.priority {
            Priority::LowestFirst => words.map(&mut offer).find(stop),
            Priority::HighestFirst => words.rev().map(&mut offer).find(stop),
        };
        stopped.unwrap_or(Ok(true))?;
        Ok(EntryState { in_hardware: false, more: self.any_pending(vcpu) })
    }

    fn after_exit(&self, _: usize, _: &mut Hw) {}

    fn reset(&self) {
        for word in self.edges.iter().flatten() {
            word.store(0, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "direct_tests.rs"]
mod tests;
