//! axvm's host tool: `cargo xtask setup | run | test | bench`.

mod arch;
mod bare_metal;
mod bench;
mod boot;
mod command;
mod emulator;
mod fuzz;
mod guest;
mod run;
mod setup;
mod size;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use arch::Arch;
use clap::{Parser, Subcommand};

/// Builds, tests and measures axvm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need (each does its part by itself).
    Setup,
    /// Boot a guest in a VM, in an emulator.
    Run(run::Options),
    /// Run every check, the one that CI runs.
    Test(test::Options),
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// Count instructions per operation on this machine, with callgrind.
    Host {
        /// Write a list of {op, value, unit, limit, peers} here, one object a row.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Count what a guest's exits cost, in an emulator whose clock counts instructions.
    Exits {
        /// The architecture.
        #[arg(long, default_value = "riscv64", value_parser = Arch::parse)]
        arch: &'static Arch,
        /// Write a list of {op, value, unit, limit, peers} here, one object a row.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(options) => return status(run::run(&options)),
        Command::Setup => setup::everything(),
        Command::Test(options) => test::run(&options),
        Command::Bench(Bench::Host { json }) => bench::host(json.as_deref()),
        Command::Bench(Bench::Exits { arch, json }) => bench::exits(arch, json.as_deref()),
    };
    status(done.map(|()| ExitCode::SUCCESS))
}

/// Shows what went wrong.
fn status(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
