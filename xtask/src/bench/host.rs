//! Instructions per operation: runs `benches/host` under callgrind, joins the rows that it
//! prints (see its `report.rs`) with callgrind's dumps, and compares with the limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::report::{Report, lines};
use crate::command::{cargo, command, line, root, run_quietly};
use crate::setup;

/// A line of the program that says that a dump is one measurement of an operation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dump {
    op: String,
    who: String,
    dump: String,
    divide: u64,
    pauses: u64,
    rounds: u64,
    less: Option<String>,
}

/// Measures, prints the table, writes it to `json`, and fails when a limit is exceeded.
pub(crate) fn host(json: Option<&Path>) -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        bail!("`bench host` counts with callgrind on x86-64 Linux only");
    }
    setup::valgrind()?;
    let program = build()?;
    let folder = root().join("target/bench");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut valgrind = command("valgrind", &["-q", "--tool=callgrind", "--collect-atstart=no"]);
    valgrind
        .arg(format!("--callgrind-out-file={}", folder.join("callgrind.out").display()))
        .arg(program)
        // Callgrind counts each round of a `rep stosb` as an instruction, hardware the whole as
        // one. So glibc's `memset` is told to use vector stores instead, which count alike.
        .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_stosb_threshold=1000000000");
    let (stdout, _) = run_quietly(&mut valgrind)?;
    report(&stdout, &dumps(&folder)?)?.finish(json)
}

/// Builds the program and returns its file.
fn build() -> Result<PathBuf> {
    let mut build = cargo(&["bench", "--package", "axvm", "--bench", "host", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let (messages, _) = run_quietly(&mut build)?;
    messages
        .lines()
        .filter_map(|message| serde_json::from_str::<serde_json::Value>(message).ok())
        .filter(|message| message["target"]["name"] == "host")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("no executable came from: {}", line(&build)))
}

/// Every dump's name and its instructions.
fn dumps(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let mut dumps = BTreeMap::new();
    for file in folder.read_dir()? {
        let text = fs::read_to_string(file?.path())?;
        let field = |prefix| text.lines().find_map(|line| line.strip_prefix(prefix));
        // The last dump, at the program's end, has no name.
        if let Some(name) = field("desc: Trigger: Client Request: ") {
            let cost = field("summary: ").or_else(|| field("totals: "));
            let cost = cost.with_context(|| format!("no total in the dump {name}"))?;
            dumps.insert(name.trim().to_owned(), cost.trim().parse()?);
        }
    }
    Ok(dumps)
}

/// Joins the program's lines with the dumps.
fn report(stdout: &str, dumps: &BTreeMap<String, f64>) -> Result<Report> {
    let mut report = Report::default();
    // What an empty region costs, one exclusion within a region, and a round of the loop.
    let (mut empty, mut pause, mut round) = (0.0, 0.0, 0.0);
    for line in lines(stdout) {
        let Ok(measurement) = serde_json::from_str(line) else {
            report.line(line)?;
            continue;
        };
        let Dump { op, who, dump, divide, pauses, rounds, less } = measurement;
        let cost =
            |dump: &String| dumps.get(dump).with_context(|| format!("no dump {dump}: {line}"));
        let less = match less {
            Some(less) => cost(&less)? - empty,
            None => 0.0,
        };
        let cost = cost(&dump)?;
        let (pauses, rounds) = (pauses as f64, rounds as f64);
        let net = cost - empty - less - pause * pauses - round * rounds;
        match (op.as_str(), who.as_str()) {
            ("", "empty") => empty = *cost,
            ("", "pauses") => pause = (cost - empty) / pauses,
            ("", "rounds") => round = (cost - empty) / rounds,
            _ => report.measured(&op, who, net / divide as f64)?,
        }
    }
    println!(
        "(subtracted from all alike: an empty region {empty}, an exclusion {pause:.2}, a round of \
         the loop {round:.2})"
    );
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALIBRATION: &str = r#"
@bench {"op":"","who":"empty","dump":"a","divide":1,"pauses":0,"rounds":0,"less":null}
@bench {"op":"","who":"pauses","dump":"b","divide":1,"pauses":10,"rounds":0,"less":null}
@bench {"op":"","who":"rounds","dump":"e","divide":1,"pauses":0,"rounds":10,"less":null}
"#;

    fn joined(lines: &str) -> Result<Report> {
        let dumps = [("a", 6.0), ("b", 96.0), ("c", 1024.0), ("d", 206.0), ("e", 56.0)];
        let dumps = dumps.map(|(name, cost)| (name.to_owned(), cost)).into();
        report(&format!("noise\n{CALIBRATION}{lines}"), &dumps)
    }

    #[test]
    fn a_figure_is_net_of_region_exclusions_loop_and_baseline() -> Result<()> {
        let report = joined(
            r#"@bench {"op":"x","unit":"instr","limit":80}
@bench {"op":"x","who":"axvm","dump":"c","divide":10,"pauses":2,"rounds":4,"less":"d"}
@bench {"op":"x","who":"other","dump":"c","divide":10,"pauses":2,"rounds":0,"less":null}"#,
        )?;
        assert_eq!(report.rows()[0].value, Some(78.0));
        assert_eq!(report.rows()[0].peers["other"], 100.0);
        report.check()
    }
}
