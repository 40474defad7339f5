//! Instructions per exit: a guest of ours measures its own exits, in an emulated machine whose
//! clock counts instructions.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::report::{Report, lines};
use crate::arch::Arch;
use crate::emulator::{self, End, Input, Machine};
use crate::guest::{Images, programs};
use crate::size::MIB;

const LIMIT: Duration = Duration::from_secs(180);
const MEMORY: u64 = 128 * MIB;

/// Measures, prints the table, writes it to `json`, and fails when a limit is exceeded.
pub(crate) fn exits(arch: &Arch, json: Option<&Path>) -> Result<()> {
    arch.set_up()?;
    let host = emulator::host(arch)?;
    let program = arch.build(programs::PACKAGE, programs::BENCH)?;
    let guest = Images::new(arch, Some(&program), None)?.guest(arch, &[], "", 1, MEMORY);
    let machine = Machine { arch, cpus: 1, cpu: "", icount: true };
    let log = format!("{}-bench-exits", arch.name);
    let session = machine.boot(&log, &host, &guest, "", Input::Script, Some(LIMIT))?;
    let End::Stopped(stopped) = session.wait()? else {
        bail!("time ran out; see {}", emulator::log_path(&log).display());
    };
    if let Err(error) = stopped.judge(&guest.name) {
        bail!("{error:#}; see {}", emulator::log_path(&log).display());
    }
    let mut report = Report::default();
    lines(&stopped.rest).try_for_each(|line| report.line(line))?;
    report.finish(json)
}
