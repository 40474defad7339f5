//! Decoding a call.

use super::{IMPLEMENTATION_ID, SPEC_VERSION, SbiError, SbiResult};
use crate::vcpu::{ConsoleCall, IpiTargets};

mod eid {
    pub(super) const LEGACY_SET_TIMER: u64 = 0x00;
    pub(super) const LEGACY_PUTCHAR: u64 = 0x01;
    pub(super) const LEGACY_GETCHAR: u64 = 0x02;
    pub(super) const LEGACY_CLEAR_IPI: u64 = 0x03;
    pub(super) const LEGACY_SHUTDOWN: u64 = 0x08;
    pub(super) const BASE: u64 = 0x10;
    pub(super) const TIME: u64 = 0x5449_4d45;
    pub(super) const IPI: u64 = 0x73_5049;
    pub(super) const RFENCE: u64 = 0x5246_4e43;
    pub(super) const HSM: u64 = 0x48_534d;
    pub(super) const SRST: u64 = 0x5352_5354;
    pub(super) const DBCN: u64 = 0x4442_434e;
    /// Experimental, vendor's and firmware's extensions (§3.1).
    pub(super) const HOST: core::ops::RangeInclusive<u64> = 0x0800_0000..=0x0aff_ffff;
}

/// What other harts are to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Fetched instructions.
    Instructions,
    /// Translations, of the addresses `start .. start + size`; all of them when both are 0 or
    /// `size` is all ones (§8).
    Translations {
        /// The first guest-virtual address.
        start: u64,
        /// The length in bytes.
        size: u64,
        /// Of this address space only.
        asid: Option<u64>,
    },
}

/// What a guest asks of its firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// This is the answer.
    Answer(SbiResult),
    /// Sets the next timer interrupt to this value of `time`, and takes back a pending one.
    SetTimer {
        /// All ones for never.
        time: u64,
        /// Whether only a0 is returned.
        legacy: bool,
    },
    /// Makes supervisor software interrupts pending.
    SendIpi(IpiTargets),
    /// Takes back a pending supervisor software interrupt; returns whether there was one, in a0
    /// alone.
    LegacyClearIpi,
    /// Other harts are to forget something.
    RemoteFence(IpiTargets, Fence),
    /// Starts a hart.
    HartStart {
        /// Its id.
        hart: u64,
        /// The physical address where it begins.
        entry: u64,
        /// What it gets in a1.
        arg: u64,
    },
    /// Stops the calling hart.
    HartStop,
    /// Asks for a hart's state.
    HartStatus {
        /// Its id.
        hart: u64,
    },
    /// Suspends the calling hart until an interrupt.
    HartSuspend {
        /// Where it goes on, with which argument, having lost its state; none when it keeps it.
        resume: Option<(u64, u64)>,
    },
    /// Powers the machine off.
    Shutdown,
    /// Resets the machine.
    Reboot,
    /// Uses the console.
    Console {
        /// How.
        call: ConsoleCall,
        /// Whether only a0 is returned: the byte that was read, or -1.
        legacy: bool,
    },
    /// An extension that the specification leaves to whoever makes the firmware.
    Host {
        /// Extension and function: `extension << 32 | function`.
        nr: u64,
    },
}

impl Call {
    /// What the registers a0 to a5, a6 and a7 mean.
    pub const fn decode(args: [u64; 6], function: u64, extension: u64) -> Self {
        match extension {
            eid::LEGACY_SET_TIMER => Self::SetTimer { time: args[0], legacy: true },
            eid::LEGACY_PUTCHAR => {
                Self::Console { call: ConsoleCall::WriteByte(args[0] as u8), legacy: true }
            }
            eid::LEGACY_GETCHAR => Self::Console { call: ConsoleCall::ReadByte, legacy: true },
            eid::LEGACY_CLEAR_IPI => Self::LegacyClearIpi,
            eid::LEGACY_SHUTDOWN => Self::Shutdown,
            eid::BASE => Self::Answer(base(function, args[0])),
            eid::TIME if function == 0 => Self::SetTimer { time: args[0], legacy: false },
            eid::IPI if function == 0 => Self::SendIpi(targets(args[0], args[1])),
            eid::RFENCE => rfence(function, args),
            eid::HSM => hsm(function, args),
            eid::SRST if function == 0 => system_reset(args[0] as u32, args[1] as u32),
            eid::DBCN => debug_console(function, args),
            // A range is not yet const-comparable by `contains`.
            nr if *eid::HOST.start() <= nr && nr <= *eid::HOST.end() => {
                Self::Host { nr: nr << 32 | function & 0xffff_ffff }
            }
            _ => Self::Answer(Err(SbiError::NotSupported)),
        }
    }
}

/// §4. Vendor, architecture and implementation of the machine are 0: not told.
const fn base(function: u64, extension: u64) -> SbiResult {
    match function {
        0 => Ok(SPEC_VERSION),
        1 => Ok(IMPLEMENTATION_ID),
        2 => Ok(version()),
        3 => Ok(matches!(
            extension,
            eid::LEGACY_SET_TIMER
                ..=eid::LEGACY_CLEAR_IPI
                    | eid::LEGACY_SHUTDOWN
                    | eid::BASE
                    | eid::TIME
                    | eid::IPI
                    | eid::RFENCE
                    | eid::HSM
                    | eid::SRST
                    | eid::DBCN
        ) as u64),
        4..=6 => Ok(0),
        _ => Err(SbiError::NotSupported),
    }
}

/// The crate's version, as 16 bits each of major and minor number.
const fn version() -> u64 {
    const fn number(text: &str) -> u64 {
        let (bytes, mut i, mut number) = (text.as_bytes(), 0, 0);
        while i < bytes.len() {
            number = number * 10 + (bytes[i] - b'0') as u64;
            i += 1;
        }
        number
    }
    const VERSION: u64 =
        number(env!("CARGO_PKG_VERSION_MAJOR")) << 16 | number(env!("CARGO_PKG_VERSION_MINOR"));
    VERSION
}

/// A hart mask; a base of all ones means every hart (§3.1, hart list parameter).
const fn targets(mask: u64, base: u64) -> IpiTargets {
    if base == u64::MAX { IpiTargets::All } else { IpiTargets::Named { base, mask } }
}

/// §8.
const fn rfence(function: u64, [mask, base, start, size, asid, _]: [u64; 6]) -> Call {
    let fence = match function {
        0 => Fence::Instructions,
        1 => Fence::Translations { start, size, asid: None },
        2 => Fence::Translations { start, size, asid: Some(asid) },
        _ => return Call::Answer(Err(SbiError::NotSupported)),
    };
    Call::RemoteFence(targets(mask, base), fence)
}

/// §9.
const fn hsm(function: u64, [first, second, third, ..]: [u64; 6]) -> Call {
    match function {
        0 => Call::HartStart { hart: first, entry: second, arg: third },
        1 => Call::HartStop,
        2 => Call::HartStatus { hart: first },
        // Types are 32 bits; all but the two default ones are reserved or a platform's own.
        3 => match first as u32 {
            0 => Call::HartSuspend { resume: None },
            0x8000_0000 => Call::HartSuspend { resume: Some((second, third)) },
            0x1000_0000..=0x7fff_ffff | 0x9000_0000..=u32::MAX => {
                Call::Answer(Err(SbiError::NotSupported))
            }
            _ => Call::Answer(Err(SbiError::InvalidParam)),
        },
        _ => Call::Answer(Err(SbiError::NotSupported)),
    }
}

/// §10.1.
const fn system_reset(kind: u32, reason: u32) -> Call {
    match (kind, reason) {
        (_, 2..=0xdfff_ffff) | (3..=0xefff_ffff, _) => Call::Answer(Err(SbiError::InvalidParam)),
        (0, _) => Call::Shutdown,
        (1 | 2, _) => Call::Reboot,
        (0xf000_0000.., _) => Call::Answer(Err(SbiError::NotSupported)),
    }
}

/// §12. Addresses have 64 bits: the upper half must be 0.
const fn debug_console(function: u64, [first, low, high, ..]: [u64; 6]) -> Call {
    let gpa = crate::mm::GuestPhysAddr::from_usize(low as usize);
    let call = match function {
        0 | 1 if high != 0 => return Call::Answer(Err(SbiError::InvalidParam)),
        0 => ConsoleCall::Write { gpa, len: first },
        1 => ConsoleCall::Read { gpa, len: first },
        2 => ConsoleCall::WriteByte(first as u8),
        _ => return Call::Answer(Err(SbiError::NotSupported)),
    };
    Call::Console { call, legacy: false }
}
