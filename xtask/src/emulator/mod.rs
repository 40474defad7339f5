//! Machines in an emulator: what they are made of, and their consoles.

mod output;
mod session;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

pub(crate) use session::{End, Input, Session, log_path};

use crate::arch::Arch;
use crate::command::{command, find};
use crate::guest::{Guest, bundle};
use crate::size::{GIB, MIB};

/// The program that is a host on the bare machine.
const HOST: &str = "unikernel";
/// What a host takes beside the guest's memory and the bundle.
const SLACK: u64 = 128 * MIB;

/// A machine to be emulated. It has the memory that what runs on it needs.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub arch: &'a Arch,
    pub cpus: u32,
    /// What to append to the architecture's `-cpu`; empty for nothing.
    pub cpu: &'a str,
    /// Whether an instruction is a nanosecond, exactly.
    pub icount: bool,
}

impl Machine<'_> {
    /// The command that boots the machine, its console on standard input and output.
    fn command(
        &self,
        memory: u64,
        kernel: &Path,
        initrd: Option<&Path>,
        append: &str,
        input: Input,
    ) -> Command {
        let emulator = &self.arch.emulator;
        // Whoever kills us must not leave an emulator behind.
        let mut qemu = match find("setpriv") {
            Some(_) => command("setpriv", &["--pdeathsig", "KILL", emulator.program]),
            None => command(emulator.program, &[]),
        };
        let cpu = [emulator.cpu, self.cpu].into_iter().filter(|part| !part.is_empty());
        let cpu = cpu.collect::<Vec<_>>().join(",");
        qemu.args(["-M", emulator.machine, "-cpu", &cpu, "-smp", &self.cpus.to_string()]);
        qemu.args(["-m", &format!("{}M", memory / MIB)]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        // A person has QEMU's own keys, behind Ctrl-A; a script types every byte as it is.
        let serial = if input == Input::Terminal { "mon:stdio" } else { "stdio" };
        qemu.args(["-serial", serial]);
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        qemu.arg("-kernel").arg(kernel);
        if let Some(initrd) = initrd {
            qemu.arg("-initrd").arg(initrd);
        }
        qemu.args(["-append", append]);
        qemu
    }

    /// Boots a guest's kernel on the machine itself.
    pub(crate) fn boot_straight(
        &self,
        name: &str,
        guest: &Guest,
        input: Input,
        limit: Option<Duration>,
    ) -> Result<Session> {
        let qemu = self.command(
            guest.memory,
            &guest.kernel,
            guest.initrd.as_deref(),
            &guest.cmdline,
            input,
        );
        Session::start(name, qemu, input, limit, None)
    }

    /// Boots a host that runs the guest; `options` are words for the host.
    pub(crate) fn boot(
        &self,
        name: &str,
        host: &Path,
        guest: &Guest,
        options: &str,
        input: Input,
        limit: Option<Duration>,
    ) -> Result<Session> {
        let bundle = bundle::write(self.arch, guest)?;
        let memory = host_memory(guest.memory, bundle.as_file().metadata()?.len());
        let qemu = self.command(memory, host, Some(bundle.path()), options, input);
        Session::start(name, qemu, input, limit, Some(bundle))
    }
}

/// The host program for an architecture, built.
pub(crate) fn host(arch: &Arch) -> Result<PathBuf> {
    arch.build(HOST, HOST)
}

/// The memory that a host needs for a guest's and its bundle.
fn host_memory(guest: u64, bundle: u64) -> u64 {
    let sum = guest.saturating_add(bundle).saturating_add(SLACK);
    sum.max(GIB).checked_next_multiple_of(256 * MIB).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;

    #[test]
    fn a_host_has_room_for_guest_and_bundle() {
        assert_eq!(host_memory(512 * MIB, 33 * MIB), GIB);
        assert_eq!(host_memory(GIB, 33 * MIB), GIB + 256 * MIB);
        assert_eq!(host_memory(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn the_emulator_is_told_all_that_the_machine_is() {
        let machine = Machine { arch: &arch::ALL[0], cpus: 2, cpu: "sstc=false", icount: true };
        let qemu = machine.command(
            GIB,
            Path::new("k"),
            Some(Path::new("i")),
            "stats trace",
            Input::Script,
        );
        let line = crate::command::line(&qemu);
        for part in [
            "qemu-system-riscv64 -M virt -cpu rv64,h=true,sstc=false -smp 2 -m 1024M ",
            " -icount shift=0,sleep=off ",
            " -serial stdio ",
            " -kernel k -initrd i -append stats trace",
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
    }
}
