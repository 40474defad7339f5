use super::*;
use crate::vcpu::{ConsoleCall, IpiTargets};

const NOT_SUPPORTED: Call = Call::Answer(Err(SbiError::NotSupported));
const INVALID: Call = Call::Answer(Err(SbiError::InvalidParam));

fn call(extension: u64, function: u64, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call::decode(all, function, extension)
}

#[test]
fn base_tells_version_and_exactly_the_extensions_that_answer() {
    let base = |function, arg| match call(0x10, function, &[arg]) {
        Call::Answer(result) => result,
        other => panic!("{other:?}"),
    };
    assert_eq!(base(0, 0), Ok(0x0200_0000));
    assert_eq!(base(1, 0), Ok(IMPLEMENTATION_ID));
    assert_eq!(base(2, 0), Ok(1), "version 0.1");
    for function in 4..=6 {
        assert_eq!(base(function, 0), Ok(0));
    }
    assert_eq!(base(7, 0), Err(SbiError::NotSupported));
    let ids = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x54494d45, 0x735049, 0x52464e43, 0x48534d];
    let rest = [0x53525354, 0x4442434e, 0x53555350, 0x504d55, 0x4e41434c, 0x43505043, u64::MAX];
    for id in ids.into_iter().chain(rest) {
        let there = (0..4).any(|function| call(id, function, &[]) != NOT_SUPPORTED);
        assert_eq!(base(3, id), Ok(there.into()), "{id:#x}");
    }
}

#[test]
fn harts_are_named_by_mask_and_base_or_all() {
    assert_eq!(
        call(0x735049, 0, &[0b101, 4]),
        Call::SendIpi(IpiTargets::Named { base: 4, mask: 0b101 })
    );
    assert_eq!(call(0x735049, 0, &[0b101, u64::MAX]), Call::SendIpi(IpiTargets::All));
    assert_eq!(call(0x735049, 1, &[1, 0]), NOT_SUPPORTED);
}

#[test]
fn fences_keep_their_range_and_address_space() {
    let all = IpiTargets::All;
    let fence = |function| call(0x52464e43, function, &[1, u64::MAX, 0x1000, 0x2000, 7]);
    assert_eq!(fence(0), Call::RemoteFence(all, Fence::Instructions));
    let range = |asid| Fence::Translations { start: 0x1000, size: 0x2000, asid };
    assert_eq!(fence(1), Call::RemoteFence(all, range(None)));
    assert_eq!(fence(2), Call::RemoteFence(all, range(Some(7))));
    for hypervisor in 3..8 {
        assert_eq!(fence(hypervisor), NOT_SUPPORTED);
    }
}

#[test]
fn harts_are_managed() {
    let hsm = |function, args: &[u64]| call(0x48534d, function, args);
    let start = Call::HartStart { hart: 3, entry: 0x8020_0000, arg: 9 };
    assert_eq!(hsm(0, &[3, 0x8020_0000, 9]), start);
    assert_eq!(hsm(1, &[]), Call::HartStop);
    assert_eq!(hsm(2, &[5]), Call::HartStatus { hart: 5 });
    assert_eq!(hsm(3, &[0, 1, 2]), Call::HartSuspend { resume: None });
    assert_eq!(hsm(3, &[0x8000_0000, 1, 2]), Call::HartSuspend { resume: Some((1, 2)) });
    assert_eq!(hsm(3, &[1]), INVALID, "reserved");
    assert_eq!(hsm(3, &[0x8000_0001]), INVALID, "reserved");
    assert_eq!(hsm(3, &[0x1000_0000]), NOT_SUPPORTED, "a platform's");
    assert_eq!(hsm(4, &[]), NOT_SUPPORTED);
}

#[test]
fn states_and_outcomes_have_the_specification_s_numbers() {
    let started = |outcome| registers(hart_start(outcome)).0 as i64;
    assert_eq!(started(Ok(())), 0);
    assert_eq!(started(Err(CpuUpError::InvalidTarget)), -3);
    assert_eq!(started(Err(CpuUpError::InvalidAddress)), -5);
    assert_eq!(started(Err(CpuUpError::AlreadyOn)), -6);
    assert_eq!(started(Err(CpuUpError::OnPending)), -6);
    let status = |power| registers(hart_status(Some(power)));
    assert_eq!(status(CpuPower::On), (0, 0));
    assert_eq!(status(CpuPower::Off), (0, 1));
    assert_eq!(status(CpuPower::OnPending), (0, 2));
    assert_eq!(status(CpuPower::Suspended), (0, 4));
    assert_eq!(registers(hart_status(None)), (-3i64 as u64, 0));
}

#[test]
fn the_machine_goes_down_or_starts_again() {
    let reset = |kind, reason| call(0x53525354, 0, &[kind, reason]);
    assert_eq!(reset(0, 0), Call::Shutdown);
    assert_eq!(reset(0, 1), Call::Shutdown);
    assert_eq!(reset(1, 0), Call::Reboot);
    assert_eq!(reset(2, 0xe000_0000), Call::Reboot);
    assert_eq!(reset(3, 0), INVALID);
    assert_eq!(reset(0, 2), INVALID);
    assert_eq!(reset(0xf000_0000, 0), NOT_SUPPORTED);
    assert_eq!(call(0x08, 0, &[]), Call::Shutdown, "legacy");
}

#[test]
fn the_console_takes_memory_or_bytes() {
    let console = |call, legacy| Call::Console { call, legacy };
    let gpa = 0x8000_1000.into();
    assert_eq!(
        call(0x4442434e, 0, &[5, 0x8000_1000, 0]),
        console(ConsoleCall::Write { gpa, len: 5 }, false)
    );
    assert_eq!(
        call(0x4442434e, 1, &[u64::MAX, 0x8000_1000, 0]),
        console(ConsoleCall::Read { gpa, len: u64::MAX }, false)
    );
    assert_eq!(call(0x4442434e, 0, &[5, 0x8000_1000, 1]), INVALID, "an address above 64 bits");
    assert_eq!(call(0x4442434e, 2, &[0x141]), console(ConsoleCall::WriteByte(0x41), false));
    assert_eq!(call(1, 0, &[0x141]), console(ConsoleCall::WriteByte(0x41), true));
    assert_eq!(call(2, 0, &[]), console(ConsoleCall::ReadByte, true));
}

#[test]
fn what_the_specification_leaves_to_others_is_the_host_s() {
    assert_eq!(call(0x0a00_0001, 2, &[]), Call::Host { nr: 0x0a00_0001_0000_0002 });
    assert_eq!(call(0x0b00_0000, 0, &[]), NOT_SUPPORTED);
    assert_eq!(call(0x07ff_ffff, 0, &[]), NOT_SUPPORTED);
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a guest calls, it is decoded without a panic, and only functions that exist
        /// are served.
        #[test]
        fn any_call_is_decoded(args: [u64; 6], function: u64, extension: u64) {
            let decoded = Call::decode(args, function, extension);
            if function > 16 && extension > 16 && !(0x0800_0000..0x0b00_0000).contains(&extension) {
                prop_assert_eq!(decoded, NOT_SUPPORTED);
            }
        }
    }
}
