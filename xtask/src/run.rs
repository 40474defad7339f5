//! `cargo xtask run`: a guest in a VM, in an emulator.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::arch::Arch;
use crate::emulator::{self, End, Input, Machine};
use crate::guest::{Images, initramfs};
use crate::size;

/// The exit status when time ran out, that of timeout(1).
const OUT_OF_TIME: u8 = 124;
/// How long a guest may take that nobody types at, in seconds.
const LIMIT: u64 = 120;

/// What to run, and on what.
#[derive(Args)]
pub(crate) struct Options {
    /// The architecture.
    #[arg(long, default_value = "riscv64", value_parser = Arch::parse)]
    arch: &'static Arch,
    /// The guest's kernel, in any format that a VM boots [default: Debian's Linux].
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's initrd [default: with Debian's Linux, busybox; with --kernel, none].
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More words for the guest's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// The number of the guest's CPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// The guest's memory: a number and K, M or G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::guest_memory)]
    memory: u64,
    /// The number of the machine's CPUs.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Have the host print the exits by reason.
    #[arg(long)]
    stats: bool,
    /// Have the host print each exit.
    #[arg(long)]
    trace: bool,
    /// Count: an instruction takes a nanosecond of the machine's time, and two runs are alike.
    #[arg(long)]
    icount: bool,
    /// End the run after so many seconds, with status 124 [default: 120, with -i none].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Open a shell in the guest, on this terminal.
    #[arg(short, long)]
    interactive: bool,
}

impl Options {
    /// Words for the host.
    fn host_options(&self) -> String {
        let words = [(self.stats, "stats"), (self.trace, "trace")];
        let words = words.into_iter().filter_map(|(given, word)| given.then_some(word));
        words.collect::<Vec<_>>().join(" ")
    }

    fn limit(&self) -> Option<Duration> {
        let default = (!self.interactive).then_some(LIMIT);
        self.timeout.or(default).map(Duration::from_secs)
    }
}

/// Runs the guest. The status is 0 when its VM powered itself off, 1 when it did not, 124 when
/// time ran out.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Options { arch, vcpus, memory, cpus, icount, interactive, .. } = *options;
    let images = Images::new(arch, options.kernel.as_deref(), options.initrd.as_deref())?;
    arch.set_up()?;
    let host = emulator::host(arch)?;
    let (input, words): (_, &[_]) = if interactive {
        println!("to leave: `poweroff -f` in the guest, or the keys Ctrl-A X");
        (Input::Terminal, &[initramfs::SHELL])
    } else {
        (Input::Nobody, &[])
    };
    let guest = images.guest(arch, words, &options.append, vcpus, memory);
    let machine = Machine { arch, cpus, cpu: "", icount };
    let session =
        machine.boot("run", &host, &guest, &options.host_options(), input, options.limit())?;
    let stopped = match session.wait()? {
        End::Stopped(stopped) => stopped,
        End::OutOfTime => {
            eprintln!("error: time ran out");
            return Ok(ExitCode::from(OUT_OF_TIME));
        }
    };
    stopped.judge(&guest.name)?;
    Ok(ExitCode::SUCCESS)
}
