//! The architectures that guests boot on: one entry each.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{find, root};
use crate::{bare_metal, setup};

/// All that differs from one architecture to another.
#[derive(Debug)]
pub(crate) struct Arch {
    /// As `uname -m` and the command line call it.
    pub name: &'static str,
    /// The target that host programs and guests of ours are built for.
    pub target: &'static str,
    /// The emulator of machines whose hypervisor extension the host uses.
    pub emulator: Emulator,
    /// Where Debian's kernel and busybox come from.
    pub debian: Debian,
    /// The machine that a guest finds itself in.
    pub guest: Layout,
}

/// A QEMU.
#[derive(Debug)]
pub(crate) struct Emulator {
    pub program: &'static str,
    /// The Debian packages that have it; the first that the machine's release knows.
    pub packages: &'static [&'static str],
    pub machine: &'static str,
    pub cpu: &'static str,
    /// CPUs with less than `cpu`, that the boot tests are repeated on: a name, and what to
    /// append to `cpu`.
    pub lesser: &'static [(&'static str, &'static str)],
}

/// Names in Debian's archive.
#[derive(Debug)]
pub(crate) struct Debian {
    /// The release's code name.
    pub suite: &'static str,
    /// Another name of it in the archive, while it is that: for when a mirror has not finished
    /// with the first one.
    pub alias: Option<&'static str>,
    pub arch: &'static str,
    /// How the name of the kernel's package begins and ends; a version is between.
    pub kernel: (&'static str, &'static str),
    /// How the boot file's path in the package begins.
    pub boot_file: &'static str,
}

/// A guest's memory map and devices.
#[derive(Debug)]
pub(crate) struct Layout {
    pub ram: u64,
    /// Where a flat image is loaded, and entered.
    pub load: u64,
    /// Linux's name of the console.
    pub console: &'static str,
    pub devices: &'static [Device],
}

/// An emulated device.
#[derive(Debug)]
pub(crate) struct Device {
    pub name: &'static str,
    pub base: u64,
    pub length: u64,
    pub irq: u32,
    /// The kind, in axvisor's numbers.
    pub kind: u32,
}

/// Every architecture with a backend that boots.
pub(crate) static ALL: [Arch; 1] = [Arch {
    name: "riscv64",
    target: "riscv64gc-unknown-none-elf",
    emulator: Emulator {
        program: "qemu-system-riscv64",
        packages: &["qemu-system-riscv", "qemu-system-misc"],
        machine: "virt",
        cpu: "rv64,h=true",
        lesser: &[("nosstc", "sstc=false")],
    },
    debian: Debian {
        suite: "trixie",
        alias: Some("stable"),
        arch: "riscv64",
        kernel: ("linux-image-6.12.", "-riscv64"),
        boot_file: "./boot/vmlinux-",
    },
    guest: Layout {
        ram: 0x8000_0000,
        load: 0x8020_0000,
        console: "ttyS0",
        devices: &[
            Device { name: "plic", base: 0xc00_0000, length: 0x60_0000, irq: 0, kind: 0x1 },
            Device { name: "uart", base: 0x1000_0000, length: 0x100, irq: 10, kind: 0x2 },
        ],
    },
}];

impl Arch {
    /// The entry of that name, for the command line.
    pub(crate) fn parse(name: &str) -> Result<&'static Self, String> {
        ALL.iter().find(|arch| arch.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|arch| arch.name).collect();
            format!("no such architecture; there is: {}", names.join(", "))
        })
    }

    /// Sees to the emulator.
    pub(crate) fn set_up(&self) -> Result<()> {
        if find(self.emulator.program).is_none() {
            let why = format!("{} emulates {}", self.emulator.program, self.name);
            setup::apt_first_of(&why, self.emulator.packages)?;
        }
        Ok(())
    }

    /// A folder for what is made or fetched for guests of this architecture.
    pub(crate) fn folder(&self) -> PathBuf {
        root().join("target/guests").join(self.name)
    }

    /// Builds a program of the workspace for the bare machine, and returns its file.
    pub(crate) fn build(&self, package: &str, program: &str) -> Result<PathBuf> {
        bare_metal::build_program(self.target, package, program)
    }
}
