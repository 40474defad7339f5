//! The state of a PLIC as a value.

use alloc::vec::Vec;

use axerrno::{AxError, AxResult};

use super::{MAX_PRIORITY, Request, VPlic, gateway::LANES};
use crate::sync::atomic::{Ordering, fence};

/// All that a [`VPlic`] holds. The levels of its wires are not its own: whoever restores the
/// devices sets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlicState {
    /// The sources from number 1 on.
    pub sources: Vec<SourceState>,
    /// The vCPUs' S-mode contexts.
    pub harts: Vec<HartState>,
}

/// One interrupt source; by default as at power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// 0, which is never, to [`MAX_PRIORITY`].
    pub priority: u32,
    /// What its request is doing.
    pub request: Request,
}

/// The S-mode context of one hart; by default as at power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HartState {
    /// The enable registers: source `n` is bit `n % 32` of word `n / 32`.
    pub enables: Vec<u32>,
    /// 0 to [`MAX_PRIORITY`].
    pub threshold: u32,
    /// A software interrupt that the vCPU has not been given yet.
    pub software: bool,
}

impl VPlic {
    /// Reads the whole state. It is one moment's when no vCPU runs and no device drives a wire.
    pub fn state(&self) -> PlicState {
        let requests = self.gateways.iter().flat_map(|gateways| gateways.requests());
        let sources = self.priorities.iter().zip(requests).skip(1);
        let sources = sources.map(|(priority, request)| SourceState {
            priority: priority.load(Ordering::Acquire),
            request,
        });
        let harts = self.harts.iter().map(|hart| HartState {
            enables: hart.enables.iter().map(|word| word.load(Ordering::Acquire)).collect(),
            threshold: hart.threshold.load(Ordering::Acquire),
            software: hart.software.load(Ordering::Acquire),
        });
        PlicState { sources: sources.collect(), harts: harts.collect() }
    }

    /// Replaces the whole state while no vCPU runs. Wires that are high and whose request is not
    /// in service are pending afterwards.
    ///
    /// # Errors
    /// `InvalidInput` for a state of another number of sources or vCPUs, or with a value that no
    /// register can hold; nothing is changed then.
    pub fn set_state(&self, state: &PlicState) -> AxResult {
        let fits_hart = |hart: &HartState| {
            let possible = |(word, bits): (usize, &u32)| bits & !self.existing(word) == 0;
            hart.threshold <= MAX_PRIORITY
                && hart.enables.len() == self.sources / 32 + 1
                && hart.enables.iter().enumerate().all(possible)
        };
        let fits = state.sources.len() == self.sources
            && state.harts.len() == self.harts.len()
            && state.sources.iter().all(|source| source.priority <= MAX_PRIORITY)
            && state.harts.iter().all(fits_hart);
        if !fits {
            return Err(AxError::InvalidInput);
        }
        self.install(state);
        fence(Ordering::SeqCst);
        for (vcpu, hart) in self.harts.iter().enumerate() {
            if self.lacks(hart) {
                self.notifier.notify(vcpu);
            }
        }
        Ok(())
    }

    /// Stores a state; what it lacks is as at power-on.
    pub(super) fn install(&self, state: &PlicState) {
        // Source 0 does not exist.
        let source = |number: usize| {
            let state = number.checked_sub(1).and_then(|index| state.sources.get(index));
            state.copied().unwrap_or_default()
        };
        for (number, priority) in self.priorities.iter().enumerate() {
            priority.store(source(number).priority, Ordering::Release);
        }
        for (index, gateways) in self.gateways.iter().enumerate() {
            let numbers = index * LANES..(index + 1) * LANES;
            gateways.set_requests(numbers.map(|number| source(number).request));
        }
        let power_on = HartState::default();
        for (vcpu, hart) in self.harts.iter().enumerate() {
            let state = state.harts.get(vcpu).unwrap_or(&power_on);
            for (index, word) in hart.enables.iter().enumerate() {
                word.store(state.enables.get(index).copied().unwrap_or(0), Ordering::Release);
            }
            hart.threshold.store(state.threshold, Ordering::Release);
            hart.software.store(state.software, Ordering::Release);
        }
    }
}
