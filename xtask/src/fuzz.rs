//! The fuzz targets in `fuzz/`, a few seconds each.

use anyhow::{Result, bail};

use crate::command::{cargo, run_quietly};
use crate::setup;

/// What became of the fuzz targets.
pub(crate) enum Outcome {
    /// One line for each.
    Ran(Vec<String>),
    /// There is no nightly toolchain.
    Skipped,
}

/// Runs every target for `seconds`.
pub(crate) fn run(seconds: u32) -> Result<Outcome> {
    if !setup::fuzzing()? {
        return Ok(Outcome::Skipped);
    }
    let (targets, _) = run_quietly(&mut cargo(&["+nightly", "fuzz", "list"]))?;
    let targets: Vec<_> = targets.split_whitespace().collect();
    if targets.is_empty() {
        bail!("`cargo fuzz list` names no target");
    }
    run_quietly(&mut cargo(&["+nightly", "fuzz", "build"]))?;
    let mut ran = Vec::new();
    for target in targets {
        let time = format!("-max_total_time={seconds}");
        // libFuzzer would begin with inputs of a few bytes, which hold hardly an operation.
        let args = ["+nightly", "fuzz", "run", target, "--", &time, "-len_control=0"];
        let (_, stderr) = run_quietly(&mut cargo(&args))?;
        let done = stderr.lines().rev().find(|line| line.starts_with("Done "));
        ran.push(format!("{target}: {}", done.unwrap_or("no summary")));
    }
    Ok(Outcome::Ran(ran))
}
