//! Sets of vCPUs.

#![forbid(unsafe_code)]

/// The most vCPUs a VM can have.
pub const MAX_VCPUS: usize = 64;

/// A set of a VM's vCPUs, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuMask(u64);

impl CpuMask {
    /// The set whose bit `i` says whether vCPU `i` is in it.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit `i` says whether vCPU `i` is in the set.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of one vCPU; empty when `vcpu` is not below [`MAX_VCPUS`].
    pub const fn one(vcpu: usize) -> Self {
        if vcpu < MAX_VCPUS { Self(1 << vcpu) } else { Self(0) }
    }

    /// The first `count` vCPUs, at most [`MAX_VCPUS`].
    pub const fn first(count: usize) -> Self {
        if count >= MAX_VCPUS { Self(u64::MAX) } else { Self((1 << count) - 1) }
    }

    /// Whether no vCPU is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `vcpu` is in the set.
    pub const fn contains(self, vcpu: usize) -> bool {
        vcpu < MAX_VCPUS && self.0 >> vcpu & 1 != 0
    }

    /// The set without those of `other`.
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The vCPUs in the set, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let vcpu = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (vcpu < MAX_VCPUS).then_some(vcpu)
        })
    }
}

impl From<usize> for CpuMask {
    fn from(vcpu: usize) -> Self {
        Self::one(vcpu)
    }
}

impl FromIterator<usize> for CpuMask {
    fn from_iter<I: IntoIterator<Item = usize>>(vcpus: I) -> Self {
        Self(vcpus.into_iter().fold(0, |bits, vcpu| bits | Self::one(vcpu).0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_mask_holds_exactly_what_was_put_in() {
        let mask: CpuMask = [0, 5, 63, 64].into_iter().collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(mask.contains(63) && !mask.contains(64) && !mask.contains(1));
        assert_eq!(CpuMask::first(64).bits(), u64::MAX);
        assert_eq!(CpuMask::first(3).minus(CpuMask::one(1)).bits(), 0b101);
    }
}
