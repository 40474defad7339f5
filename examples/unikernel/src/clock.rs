//! Ticks of the machine's counter and nanoseconds.

/// A counter of a known frequency. Converting costs one multiplication and never overflows: the
/// factors are fixed-point numbers with 32 bits after the point.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    nanos_per_tick: u64,
    ticks_per_nano: u64,
}

const NANOS: u64 = 1_000_000_000;

impl Clock {
    /// A counter of `frequency` ticks per second; none when it is 0 or above 4 GHz.
    pub const fn new(frequency: u64) -> Option<Self> {
        if frequency == 0 || frequency >> 32 != 0 {
            return None;
        }
        Some(Self {
            nanos_per_tick: (((NANOS as u128) << 32) / frequency as u128) as u64,
            // Rounded up, so that a timer is never early.
            ticks_per_nano: (((frequency as u128) << 32).div_ceil(NANOS as u128)) as u64,
        })
    }

    /// The time at a count of ticks, in nanoseconds; at most `u64::MAX`.
    pub const fn nanos(self, ticks: u64) -> u64 {
        fixed(ticks, self.nanos_per_tick, 0)
    }

    /// The first count of ticks at which it is that late; at most `u64::MAX`.
    pub const fn ticks(self, nanos: u64) -> u64 {
        fixed(nanos, self.ticks_per_nano, u32::MAX as u128)
    }
}

const fn fixed(value: u64, factor: u64, round: u128) -> u64 {
    let product = (value as u128 * factor as u128).saturating_add(round) >> 32;
    if product > u64::MAX as u128 { u64::MAX } else { product as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_a_thousand_million_nanoseconds_at_every_frequency() {
        for frequency in
            [1, 32_768, 10_000_000, 24_000_000, 62_500_000, 1_000_000_000, 3_999_999_999]
        {
            let clock = Clock::new(frequency).unwrap();
            for seconds in [1, 3_600, 31_557_600] {
                let nanos = clock.nanos(frequency * seconds);
                let want = seconds * NANOS;
                assert!(nanos <= want && want - nanos <= 1 + (want >> 30), "{frequency}: {nanos}");
            }
        }
    }

    #[test]
    fn a_timer_is_never_early_and_never_does_not_wrap() {
        for frequency in [32_768, 10_000_000, 24_000_000, 62_500_000, 3_333_333_333] {
            let clock = Clock::new(frequency).unwrap();
            for nanos in [0, 1, 99, 100, 10_000_000, 86_400 * NANOS] {
                let exact = (u128::from(nanos) * u128::from(frequency)).div_ceil(u128::from(NANOS));
                assert!(u128::from(clock.ticks(nanos)) >= exact, "{frequency}: {nanos}");
            }
            assert!(clock.ticks(u64::MAX) >= 32_768 * (u64::MAX / NANOS));
            assert_eq!(Clock::new(1).unwrap().nanos(u64::MAX), u64::MAX);
        }
    }

    #[test]
    fn a_frequency_that_cannot_be_is_refused() {
        assert!(Clock::new(0).is_none());
        assert!(Clock::new(1 << 32).is_none());
    }
}
