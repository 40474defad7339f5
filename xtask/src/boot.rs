//! The checks that boot guests in an emulator.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::bench;
use crate::emulator::{self, End, Input, Machine, Session, log_path};
use crate::guest::{Guest, Images, initramfs, programs};
use crate::size::MIB;

/// How long one boot may take from start to end.
const LIMIT: Duration = Duration::from_secs(90);
/// How long to wait for the guest to come up, on a machine that has other work.
const BOOT: Duration = Duration::from_secs(60);
/// How long to wait for an answer of a guest that is up.
const ANSWER: Duration = Duration::from_secs(20);
const LINUX_MEMORY: u64 = 512 * MIB;
const OWN_MEMORY: u64 = 128 * MIB;

/// A check: its name begins with that of its architecture.
pub(crate) struct Check {
    pub name: String,
    pub about: String,
    arch: &'static Arch,
    cpus: u32,
    cpu: &'static str,
    vcpus: u32,
    what: What,
    /// Boot arguments of the host.
    host: &'static str,
}

#[derive(Clone, Copy)]
enum What {
    /// Linux to its marker and power-off, on the emulator itself.
    Straight,
    /// Linux to its marker and power-off.
    Linux,
    Reboot,
    Shell,
    /// The tests in a guest of ours.
    Tests {
        flat: bool,
    },
    /// `bench exits`.
    Bench,
}

/// The checks of an architecture, those first that the others rest on.
pub(crate) fn checks(arch: &'static Arch) -> Vec<Check> {
    let check = |name: &str, about: &str, what, (vcpus, cpus), cpu| Check {
        name: format!("{}-{name}", arch.name),
        about: about.to_owned(),
        arch,
        cpus,
        cpu,
        vcpus,
        what,
        host: "",
    };
    let mut checks = vec![check(
        "straight",
        "the guest's Linux boots on the emulator itself",
        What::Straight,
        (2, 2),
        "",
    )];
    let linux = [
        ("1cpu", "Linux with 1 vCPU boots and powers off, on 2 CPUs", (1, 2)),
        ("2cpu", "Linux with 2 vCPUs boots and powers off, on 2 CPUs", (2, 2)),
        ("2on1", "Linux with 2 vCPUs boots and powers off, on 1 CPU", (2, 1)),
    ];
    for (name, about, numbers) in linux {
        checks.push(check(&format!("linux-{name}"), about, What::Linux, numbers, ""));
    }
    for (lesser, cpu) in arch.emulator.lesser {
        for (name, about, numbers) in linux {
            let name = format!("linux-{lesser}-{name}");
            checks.push(check(&name, &format!("{about}, {lesser}"), What::Linux, numbers, cpu));
        }
        let about = format!("a guest of ours, whose vCPUs share a CPU, {lesser}");
        let tests = What::Tests { flat: false };
        checks.push(check(&format!("elf-{lesser}"), &about, tests, (2, 1), cpu));
    }
    checks.extend([
        check("reboot", "Linux reboots and comes up again", What::Reboot, (2, 2), ""),
        check("shell", "a shell in Linux answers what is typed", What::Shell, (1, 2), ""),
        check("elf", "a guest of ours, as ELF", What::Tests { flat: false }, (2, 2), ""),
        // Both vCPUs share a CPU.
        check("flat", "a guest of ours, as flat image", What::Tests { flat: true }, (2, 1), ""),
        Check {
            host: "retake",
            ..check(
                "retake",
                "Linux reboots on a CPU that was given back and taken again",
                What::Reboot,
                (2, 1),
                "",
            )
        },
        check("bench", "what exits cost can be measured", What::Bench, (1, 1), ""),
    ]);
    checks
}

impl Check {
    /// Makes what is missing, boots, and plays the check's part.
    pub(crate) fn run(&self) -> Result<()> {
        self.arch.set_up()?;
        if let What::Bench = self.what {
            return bench::exits(self.arch, None);
        }
        let guest = self.guest()?;
        let machine = Machine { arch: self.arch, cpus: self.cpus, cpu: self.cpu, icount: false };
        let session = match self.what {
            What::Straight => machine.boot_straight(&self.name, &guest, Input::Script, Some(LIMIT)),
            _ => {
                let host = emulator::host(self.arch)?;
                machine.boot(&self.name, &host, &guest, self.host, Input::Script, Some(LIMIT))
            }
        }?;
        self.play(&guest, session)
            .with_context(|| format!("see {}", log_path(&self.name).display()))
    }

    fn guest(&self) -> Result<Guest> {
        let arch = self.arch;
        let words: &[_] = match self.what {
            What::Reboot => &[initramfs::REBOOT],
            What::Shell => &[initramfs::SHELL],
            _ => &[],
        };
        let (images, memory) = match self.what {
            What::Tests { flat } => {
                let mut program = arch.build(programs::PACKAGE, programs::TESTS)?;
                if flat {
                    let image = arch.folder().join(programs::TESTS).with_extension("bin");
                    programs::flatten(&program, arch.guest.load, &image)?;
                    program = image;
                }
                (Images::new(arch, Some(&program), None)?, OWN_MEMORY)
            }
            _ => (Images::new(arch, None, None)?, LINUX_MEMORY),
        };
        Ok(images.guest(arch, words, "", self.vcpus, memory))
    }

    fn play(&self, guest: &Guest, mut session: Session) -> Result<()> {
        match self.what {
            What::Straight => {
                self.marker(&mut session)?;
                let End::Stopped(stopped) = session.wait()? else { bail!("it did not power off") };
                if !stopped.status.success() {
                    bail!("the emulator ended with {}", stopped.status);
                }
                return Ok(());
            }
            // It has a session of its own.
            What::Bench => {}
            What::Linux => self.marker(&mut session)?,
            What::Reboot => {
                for answer in ["reboot", "poweroff"] {
                    self.marker(&mut session)?;
                    session.expect(initramfs::QUESTION, ANSWER)?;
                    session.type_line(answer)?;
                }
            }
            What::Shell => {
                self.marker(&mut session)?;
                converse(self.arch, &mut session)?;
            }
            What::Tests { .. } => {
                let output = session.expect(programs::SUMMARY, BOOT)?;
                let counts = session.expect("\n", ANSWER)?;
                let summary = format!("{}{}", programs::SUMMARY, counts.trim_end());
                let passed = programs::passed(&output, &summary)?;
                println!("{passed} tests in the guest passed");
            }
        }
        let End::Stopped(stopped) = session.wait()? else { bail!("it did not power off") };
        let ending = stopped.judge(&guest.name)?;
        println!("vm {}: {}, {} exits", ending.name, ending.how, ending.exits);
        if ending.exits == 0 {
            bail!("a guest cannot have powered off without an exit");
        }
        Ok(())
    }

    /// Waits until Linux is up, with the CPUs that it was given.
    fn marker(&self, session: &mut Session) -> Result<()> {
        let line = session.expect_line(initramfs::MARKER, BOOT)?;
        println!("{line} after {:.1} s", session.elapsed().as_secs_f64());
        check_marker(&line, self.arch.name, self.vcpus)
    }
}

/// Whether the line is `GUEST-MARKER <arch> uptime=<seconds> cpus=<vcpus>`.
fn check_marker(line: &str, arch: &str, vcpus: u32) -> Result<()> {
    let words: Vec<_> = line.split_whitespace().skip(1).collect();
    let &[machine, uptime, cpus] = words.as_slice() else { bail!("not three words: {line}") };
    let uptime: Option<f64> = uptime.strip_prefix("uptime=").and_then(|time| time.parse().ok());
    if machine != arch || !uptime.is_some_and(|time| time > 0.0) {
        bail!("not a machine of {arch} that is up: {line}");
    }
    if cpus != format!("cpus={vcpus}") {
        bail!("not with {vcpus} vCPUs: {line}");
    }
    Ok(())
}

/// Types at a shell and reads its answers, which differ from what is typed: that is echoed.
fn converse(arch: &Arch, session: &mut Session) -> Result<()> {
    let paste: String = ('a'..='z').cycle().take(600).collect();
    for (typed, answer) in [
        ("echo answer $((6*7))".to_owned(), "\nanswer 42\r\n".to_owned()),
        ("uname -m".to_owned(), format!("\n{}\r\n", arch.name)),
        (format!("echo {paste} | tr a-z A-Z"), format!("\n{}\r\n", paste.to_uppercase())),
    ] {
        session.expect(initramfs::PROMPT, ANSWER)?;
        session.type_line(&typed)?;
        session.expect(&answer, ANSWER)?;
    }
    session.expect(initramfs::PROMPT, ANSWER)?;
    session.type_line("poweroff -f")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;

    #[test]
    fn the_marker_tells_machine_and_cpus() {
        let good = "GUEST-MARKER riscv64 uptime=1.33 cpus=2";
        assert!(check_marker(good, "riscv64", 2).is_ok());
        for (line, arch, vcpus) in [
            (good, "riscv64", 1),
            (good, "aarch64", 2),
            ("GUEST-MARKER riscv64 uptime= cpus=2", "riscv64", 2),
            ("GUEST-MARKER riscv64 uptime=0.00 cpus=2", "riscv64", 2),
            ("GUEST-MARKER riscv64 uptime=1.0 cpus=20", "riscv64", 2),
            ("GUEST-MARKER riscv64", "riscv64", 2),
        ] {
            assert!(check_marker(line, arch, vcpus).is_err(), "{line}");
        }
    }

    #[test]
    fn names_of_checks_are_different() {
        let mut names: Vec<_> = arch::ALL.iter().flat_map(checks).map(|check| check.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
