//! axvm's host tool: `cargo xtask setup | test | bench`.

mod bare_metal;
mod bench;
mod command;
mod fuzz;
mod setup;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::everything(),
        Command::Test(options) => test::run(&options),
        Command::Bench(Bench::Host { json }) => bench::host(json.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
