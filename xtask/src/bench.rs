//! Instructions per operation: runs `benches/host` under callgrind, joins the rows that it
//! prints (see its `report.rs`) with callgrind's dumps, and compares with the limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::{cargo, command, line, root, run_quietly};
use crate::setup;

/// The name that the program gives to the crate that the limits are for.
const OURS: &str = "axvm";

/// A line that the program prints after `@bench `.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Op {
        op: String,
        unit: String,
        limit: Option<f64>,
    },
    Dump {
        op: String,
        who: String,
        dump: String,
        divide: u64,
        pauses: u64,
        rounds: u64,
        less: Option<String>,
    },
    Value {
        op: String,
        who: String,
        value: f64,
    },
}

/// An operation's figures.
#[derive(Serialize)]
struct Row {
    op: String,
    value: Option<f64>,
    unit: String,
    /// None for a row that gates nothing.
    limit: Option<f64>,
    peers: BTreeMap<String, f64>,
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
    let rows = rows(&stdout, &dumps(&folder)?)?;
    print_table(&rows);
    if let Some(json) = json {
        write_json(&rows, json)?;
    }
    check(&rows)
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
fn rows(stdout: &str, dumps: &BTreeMap<String, f64>) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    // What an empty region costs, one exclusion within a region, and a round of the loop.
    let (mut empty, mut pause, mut round) = (0.0, 0.0, 0.0);
    for line in stdout.lines().filter_map(|line| line.strip_prefix("@bench ")) {
        let (op, who, value) = match serde_json::from_str(line).with_context(|| line.to_owned())? {
            Line::Op { op, unit, limit } => {
                rows.push(Row { op, value: None, unit, limit, peers: BTreeMap::new() });
                continue;
            }
            Line::Value { op, who, value } => (op, who, value),
            Line::Dump { op, who, dump, divide, pauses, rounds, less } => {
                let cost = |dump: &String| {
                    dumps.get(dump).with_context(|| format!("no dump {dump}: {line}"))
                };
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
                    _ => {}
                }
                (op, who, net / divide as f64)
            }
        };
        if op.is_empty() {
            continue;
        }
        let row = rows.iter_mut().find(|row| row.op == op);
        let row = row.with_context(|| format!("an operation was not declared: {line}"))?;
        let value = (value * 10.0).round() / 10.0;
        let previous =
            if who == OURS { row.value.replace(value) } else { row.peers.insert(who, value) };
        if previous.is_some() {
            bail!("measured twice: {line}");
        }
    }
    if rows.is_empty() {
        bail!("the bench program declared no operation");
    }
    println!(
        "(subtracted from all alike: an empty region {empty}, an exclusion {pause:.2}, a round of \
         the loop {round:.2})"
    );
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    let width = rows.iter().map(|row| row.op.len()).max().unwrap_or(0);
    println!("{:width$}  {:>8}  {:6}  {:>6}  peers", "op", "value", "unit", "limit");
    for Row { op, value, unit, limit, peers, .. } in rows {
        let figure = |value: &Option<f64>| value.map_or("-".to_owned(), |value| value.to_string());
        let (value, limit) = (figure(value), figure(limit));
        let peers: Vec<_> = peers.iter().map(|(who, value)| format!("{who} {value}")).collect();
        println!("{op:width$}  {value:>8}  {unit:6}  {limit:>6}  {}", peers.join(", "));
    }
}

fn write_json(rows: &[Row], file: &Path) -> Result<()> {
    let rows = rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(file, format!("[\n{}\n]\n", rows.join(",\n")))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn check(rows: &[Row]) -> Result<()> {
    let complaints: Vec<_> = rows
        .iter()
        .filter_map(|Row { op, value, unit, limit, .. }| match (*value, *limit) {
            (Some(value), Some(limit)) if value > limit => {
                Some(format!("{op}: {value} {unit}, limit {limit}"))
            }
            (None, _) => Some(format!("{op}: not measured")),
            _ => None,
        })
        .collect();
    if !complaints.is_empty() {
        bail!("missing or over the limit:\n  {}", complaints.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALIBRATION: &str = r#"
@bench {"op":"","who":"empty","dump":"a","divide":1,"pauses":0,"rounds":0,"less":null}
@bench {"op":"","who":"pauses","dump":"b","divide":1,"pauses":10,"rounds":0,"less":null}
@bench {"op":"","who":"rounds","dump":"e","divide":1,"pauses":0,"rounds":10,"less":null}
"#;

    fn joined(lines: &str) -> Result<Vec<Row>> {
        let dumps = [("a", 6.0), ("b", 96.0), ("c", 1024.0), ("d", 206.0), ("e", 56.0)];
        let dumps = dumps.map(|(name, cost)| (name.to_owned(), cost)).into();
        rows(&format!("noise\n{CALIBRATION}{lines}"), &dumps)
    }

    #[test]
    fn a_figure_is_net_of_region_exclusions_loop_and_baseline() -> Result<()> {
        let rows = joined(
            r#"@bench {"op":"x","unit":"instr","limit":80}
@bench {"op":"x","who":"axvm","dump":"c","divide":10,"pauses":2,"rounds":4,"less":"d"}
@bench {"op":"x","who":"other","dump":"c","divide":10,"pauses":2,"rounds":0,"less":null}"#,
        )?;
        assert_eq!(rows[0].value, Some(78.0));
        assert_eq!(rows[0].peers["other"], 100.0);
        check(&rows)
    }

    #[test]
    fn a_figure_over_its_limit_fails() -> Result<()> {
        let rows = joined(
            r#"@bench {"op":"x","unit":"frames","limit":3}
@bench {"op":"x","who":"axvm","value":4}"#,
        )?;
        assert!(check(&rows).is_err());
        Ok(())
    }

    #[test]
    fn a_figure_that_is_missing_fails() -> Result<()> {
        let rows = joined(r#"@bench {"op":"x","unit":"instr","limit":3}"#)?;
        assert!(check(&rows).is_err());
        Ok(())
    }

    #[test]
    fn a_row_without_a_limit_is_shown_and_gates_nothing() -> Result<()> {
        let op = r#"@bench {"op":"x","unit":"instr","limit":null}"#;
        check(&joined(&format!("{op}\n@bench {{\"op\":\"x\",\"who\":\"axvm\",\"value\":9}}"))?)
    }
}
