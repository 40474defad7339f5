//! Every check, in order.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::arch::{self, Arch};
use crate::command::{cargo, line, run as stream, run_quietly};
use crate::{bare_metal, bench, boot, fuzz, setup};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out what needs an emulator.
    #[arg(long, conflicts_with = "arch")]
    host: bool,
    /// Only what boots guests of this architecture.
    #[arg(long, value_parser = Arch::parse)]
    arch: Option<&'static Arch>,
    /// Run only the steps with this name, or whose name begins so; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Name the steps and stop.
    #[arg(long)]
    list: bool,
    /// How long each fuzz target runs.
    #[arg(long, value_name = "N", default_value_t = 5)]
    fuzz_seconds: u32,
}

/// One check.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Options) -> Result<Passed>,
}

/// A check of either kind.
enum Any {
    Host(&'static Step),
    Boot(boot::Check),
}

impl Any {
    fn name(&self) -> &str {
        match self {
            Self::Host(step) => step.name,
            Self::Boot(check) => &check.name,
        }
    }

    fn about(&self) -> &str {
        match self {
            Self::Host(step) => step.about,
            Self::Boot(check) => &check.about,
        }
    }

    fn run(&self, options: &Options) -> Result<Passed> {
        match self {
            Self::Host(step) => (step.run)(options),
            Self::Boot(check) => check.run().map(|()| Passed::Ok),
        }
    }
}

/// How a check that did not fail ended.
enum Passed {
    Ok,
    /// With the reason, and what to do about it.
    Skipped(String),
}

/// The steps that need no emulator.
const HOST: &[Step] = &[
    Step { name: "fmt", about: "the code is formatted", run: fmt },
    Step { name: "clippy", about: "no lint warns, without features and with all", run: clippy },
    Step { name: "doc", about: "the documentation builds without warnings", run: doc },
    Step { name: "test", about: "unit, integration, property and doc tests", run: test },
    Step { name: "loom", about: "every interleaving of the lock-free types", run: loom },
    Step { name: "fuzz", about: "each fuzz target for a few seconds", run: fuzz_targets },
    Step {
        name: "bare-metal-x86_64",
        about: "the library builds for x86_64-unknown-none",
        run: |_| build(bare_metal::TARGETS[0]),
    },
    Step {
        name: "bare-metal-aarch64",
        about: "the library builds for aarch64-unknown-none-softfloat",
        run: |_| build(bare_metal::TARGETS[1]),
    },
    Step {
        name: "bare-metal-riscv64",
        about: "the library builds for riscv64gc-unknown-none-elf",
        run: |_| build(bare_metal::TARGETS[2]),
    },
    Step { name: "bench", about: "no operation costs more than its limit", run: bench_host },
];

/// Runs the chosen steps, all of them even when one fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = steps(options);
    if steps.is_empty() {
        bail!("no step has such a name; see --list");
    }
    if options.list {
        steps.iter().for_each(|step| println!("{:28} {}", step.name(), step.about()));
        return Ok(());
    }
    let start = Instant::now();
    let mut summary = Vec::new();
    let mut failed = 0;
    for step in steps {
        println!("==> {}: {}", step.name(), step.about());
        let start = Instant::now();
        let result = step.run(options);
        let seconds = start.elapsed().as_secs_f64();
        let outcome = match result {
            Ok(Passed::Ok) => "ok".to_owned(),
            Ok(Passed::Skipped(why)) => format!("skipped: {why}"),
            Err(error) => {
                failed += 1;
                format!("FAILED: {error:#}")
            }
        };
        println!("<== {} {outcome} ({seconds:.1} s)\n", step.name());
        summary.push(format!("{:28} {seconds:7.1} s  {outcome}", step.name()));
    }
    println!("{}", summary.join("\n"));
    println!("{:28} {:7.1} s", "total", start.elapsed().as_secs_f64());
    if failed > 0 {
        bail!("{failed} of {} steps failed", summary.len());
    }
    Ok(())
}

/// The chosen steps: those of the host, then those that boot.
fn steps(options: &Options) -> Vec<Any> {
    let host = if options.arch.is_none() { HOST } else { &[] };
    let arches = match options.arch {
        _ if options.host => Vec::new(),
        Some(arch) => vec![arch],
        None => arch::ALL.iter().collect(),
    };
    let steps = host.iter().map(Any::Host);
    let steps = steps.chain(arches.into_iter().flat_map(boot::checks).map(Any::Boot));
    let chosen = |step: &Any| {
        options.only.is_empty() || options.only.iter().any(|name| step.name().starts_with(name))
    };
    steps.filter(chosen).collect()
}

fn fmt(_: &Options) -> Result<Passed> {
    run_quietly(&mut cargo(&["fmt", "--all", "--check"]))?;
    run_quietly(&mut cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    Ok(Passed::Ok)
}

fn clippy(_: &Options) -> Result<Passed> {
    for features in ["--no-default-features", "--all-features"] {
        let args = ["clippy", "--workspace", "--all-targets", features, "--", "-D", "warnings"];
        run_quietly(&mut cargo(&args))?;
    }
    Ok(Passed::Ok)
}

fn doc(_: &Options) -> Result<Passed> {
    let args = ["doc", "--no-deps", "--workspace", "--all-features"];
    run_quietly(cargo(&args).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Passed::Ok)
}

fn test(_: &Options) -> Result<Passed> {
    streamed(&mut cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]))
}

fn loom(_: &Options) -> Result<Passed> {
    let mut cargo = cargo(&["test", "--package", "axvm", "--release", "--lib"]);
    cargo.args(["--target-dir", "target/loom", "loom_"]).env("RUSTFLAGS", "--cfg loom");
    streamed(&mut cargo)
}

fn fuzz_targets(options: &Options) -> Result<Passed> {
    match fuzz::run(options.fuzz_seconds)? {
        fuzz::Outcome::Ran(lines) => {
            lines.iter().for_each(|line| println!("{line}"));
            Ok(Passed::Ok)
        }
        fuzz::Outcome::Skipped => {
            let install = setup::INSTALL_NIGHTLY;
            Ok(Passed::Skipped(format!("no nightly toolchain; to have it: {install}")))
        }
    }
}

fn build(target: &str) -> Result<Passed> {
    bare_metal::build_library(target)?;
    Ok(Passed::Ok)
}

fn bench_host(_: &Options) -> Result<Passed> {
    bench::host(None)?;
    Ok(Passed::Ok)
}

fn streamed(command: &mut std::process::Command) -> Result<Passed> {
    println!("{}", line(command));
    stream(command)?;
    Ok(Passed::Ok)
}
