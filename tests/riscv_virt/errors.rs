//! Configurations and images that make no machine: what the caller and the log are told.

use std::sync::Arc;

use axerrno::AxErrorKind::{self, AlreadyExists, BadState, InvalidInput, Unsupported};
use axvm::{
    config::{AxVMConfig, EmulatedDeviceConfig},
    device::EmuDeviceType,
    machine::{Images, riscv_virt},
};
use axvm_testkit::{LogCapture, MockHal, MockHart, mock_hal, mock_hart};

use crate::{
    files::{elf, load, riscv_image},
    support::*,
};

#[track_caller]
fn refused_on<H: MockHal, P: MockHart>(
    config: AxVMConfig,
    images: Images,
    kind: AxErrorKind,
    words: &[&str],
) {
    let log = LogCapture::start();
    let frames = H::machine().arena().allocated();
    let terminal = Arc::new(Terminal::default());
    let made = riscv_virt::new_vm::<H, P>(config, images, terminal.clone());
    assert_eq!(made.err(), Some(kind.into()), "{words:?}");
    let said: Vec<_> = log.records().into_iter().map(|record| record.message).collect();
    for word in words {
        assert!(said.iter().any(|line| line.contains(word)), "{word:?} is not in {said:?}");
    }
    assert_eq!(Arc::strong_count(&terminal), 1, "nothing is left of it");
    assert_eq!(H::machine().arena().allocated(), frames);
}

mock_hal!(struct Refused { counter_hz: 10_000_000 });
mock_hart!(struct Kind on Refused {});

/// One after the other: frames are counted.
#[test]
fn what_does_not_fit_or_is_malformed_is_named() {
    let image = |bytes: Vec<u8>| Images { kernel: bytes.leak(), ..flat() };
    let big: &'static [u8] = vec![0; RAM_SIZE].leak();
    let at = |change: fn(&mut AxVMConfig)| {
        let mut config = config(1);
        change(&mut config);
        config
    };
    let beyond = RAM as u64 + RAM_SIZE as u64 - 0x1000;
    let mut truncated = elf(RAM as u64, &[load(RAM as u64, 0x1000, 0x1000)]);
    truncated.truncate(0x100);
    for (config, images, words) in [
        (config(1), image(vec![]), "image: file length = 0x0"),
        (config(1), image(truncated), "ELF"),
        (config(1), image(elf(beyond, &[load(beyond, 0x100, 0x2000)])), "kernel"),
        (config(1), image(riscv_image(0x1000, 0x20_0000, 1 << 40)), "kernel"),
        (config(1), Images { initrd: Some(big), ..flat() }, "initial RAM disk"),
        (config(1), Images { initrd: Some(&[]), ..flat() }, "initial RAM disk"),
        (config(1), Images { dtb: Some(big), ..flat() }, "device tree"),
        (at(|c| c.image.dtb_load_gpa = Some(0x1000.into())), flat(), "device tree"),
        (at(|c| c.image.dtb_load_gpa = Some(KERNEL.into())), flat(), "device tree"),
        (at(|c| c.image.kernel_load_gpa = 0x1000.into()), flat(), "kernel"),
        (at(|c| c.image.entry_point = (KERNEL + 0x10_0000).into()), flat(), "kernel"),
        (at(|c| c.image.cmdline = Some("a\0b".into())), flat(), "NUL"),
        (at(|c| c.memory_regions.clear()), flat(), "memory"),
        (at(|c| c.cpu_num = 0), flat(), "cpu_num"),
    ] {
        refused_on::<Refused, Kind>(config, images, InvalidInput, &[words]);
    }
}

#[test]
fn devices_that_the_machine_does_not_have_are_refused() {
    use EmuDeviceType::{Console, InterruptController};
    mock_hal!(struct Own { counter_hz: 10_000_000 });
    mock_hart!(struct Kind on Own {});
    let plic = || device("plic", InterruptController, PLIC, 0x60_0000);
    let uart = |irq_id| EmulatedDeviceConfig { irq_id, ..device("tty", Console, UART, 0x100) };
    let with = |devices: Vec<EmulatedDeviceConfig>| {
        devices.into_iter().fold(bare(1), AxVMConfig::with_emu_device)
    };
    let list = |cfg_list| EmulatedDeviceConfig { cfg_list, ..plic() };
    let moved =
        |base_gpa: u64, device| EmulatedDeviceConfig { base_gpa: base_gpa as usize, ..device };
    for (devices, kind, words) in [
        (vec![EmulatedDeviceConfig { length: 0x1000, ..plic() }], InvalidInput, "plic"),
        (vec![list(vec![0])], InvalidInput, "sources"),
        (vec![list(vec![1024])], InvalidInput, "sources"),
        (vec![list(vec![usize::MAX])], InvalidInput, "plic"),
        (vec![plic(), uart(96)], InvalidInput, "interrupt 96"),
        (vec![plic(), uart(usize::MAX)], InvalidInput, "tty"),
        (vec![plic(), uart(0)], InvalidInput, "interrupt 0"),
        (vec![plic(), moved(0x4000_0000, plic())], Unsupported, "plic"),
        (vec![plic(), uart(1), moved(0x2000_0000, uart(2))], Unsupported, "tty"),
        (vec![plic(), moved(PLIC + 0x1000, uart(1))], AlreadyExists, ""),
        (vec![plic(), moved(RAM as u64, uart(1))], AlreadyExists, ""),
        (vec![device("gic", EmuDeviceType::GpptRedistributor, UART, 0x1000)], Unsupported, "gic"),
    ] {
        refused_on::<Own, Kind>(with(devices), flat(), kind, &[words]);
    }
}

#[test]
fn a_host_that_cannot_run_guests_says_so() {
    mock_hal!(struct Own { counter_hz: 10_000_000 });
    mock_hart!(struct WithoutH on Own { hypervisor: false });
    refused_on::<Own, WithoutH>(config(1), flat(), Unsupported, &["hypervisor"]);
}

#[test]
fn a_frequency_that_is_not_known_or_not_told_to_a_guest_is_an_error() {
    mock_hal!(struct Silent);
    mock_hart!(struct Kind on Silent {});
    refused_on::<Silent, Kind>(config(1), flat(), BadState, &["`time`"]);
    mock_hal!(struct Fast { counter_hz: 1 << 32 });
    mock_hart!(struct FastKind on Fast {});
    refused_on::<Fast, FastKind>(config(1), flat(), InvalidInput, &["4294967296 Hz"]);
}
