//! The figures of a bench: its table, its list in JSON, and its limits.
//!
//! A bench program prints lines of JSON after `@bench `: `{op, unit, limit}` declares an operation,
//! in the table's order, with a null limit for one that gates nothing; `{op, who, value}` is what
//! it costs in the crate that the limits are for, or in a peer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What begins a line for us.
const PREFIX: &str = "@bench ";
/// The name that programs give to the crate that the limits are for.
const OURS: &str = "axvm";

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Op { op: String, unit: String, limit: Option<f64> },
    Value { op: String, who: String, value: f64 },
}

/// An operation's figures.
#[derive(Serialize)]
pub(super) struct Row {
    op: String,
    pub value: Option<f64>,
    unit: String,
    /// None for a row that gates nothing.
    limit: Option<f64>,
    pub peers: BTreeMap<String, f64>,
}

/// What a bench has found.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

/// The lines for us, without what they begin with.
pub(super) fn lines(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.strip_prefix(PREFIX))
}

impl Report {
    /// Takes a declaration or a value.
    pub(super) fn line(&mut self, line: &str) -> Result<()> {
        match serde_json::from_str(line).with_context(|| line.to_owned())? {
            Line::Op { op, unit, limit } => {
                if self.rows.iter().any(|row| row.op == op) {
                    bail!("declared twice: {line}");
                }
                self.rows.push(Row { op, value: None, unit, limit, peers: BTreeMap::new() });
                Ok(())
            }
            Line::Value { op, who, value } => self.measured(&op, who, value),
        }
    }

    /// Takes what an operation costs.
    pub(super) fn measured(&mut self, op: &str, who: String, value: f64) -> Result<()> {
        let row = self.rows.iter_mut().find(|row| row.op == op);
        let row = row.with_context(|| format!("an operation was not declared: {op}"))?;
        let value = (value * 10.0).round() / 10.0;
        let previous = if who == OURS {
            row.value.replace(value)
        } else {
            row.peers.insert(who.clone(), value)
        };
        if previous.is_some() {
            bail!("measured twice: {op} of {who}");
        }
        Ok(())
    }

    /// The rows, in the order of their declaration.
    #[cfg(test)]
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Prints the table, writes it to `json`, and fails when a limit is exceeded.
    pub(super) fn finish(&self, json: Option<&Path>) -> Result<()> {
        self.print();
        if let Some(json) = json {
            self.write(json)?;
        }
        self.check()
    }

    fn print(&self) {
        let width = self.rows.iter().map(|row| row.op.len()).max().unwrap_or(0);
        println!("{:width$}  {:>8}  {:6}  {:>6}  peers", "op", "value", "unit", "limit");
        for Row { op, value, unit, limit, peers } in &self.rows {
            let figure =
                |value: &Option<f64>| value.map_or("-".to_owned(), |value| value.to_string());
            let (value, limit) = (figure(value), figure(limit));
            let peers: Vec<_> = peers.iter().map(|(who, value)| format!("{who} {value}")).collect();
            println!("{op:width$}  {value:>8}  {unit:6}  {limit:>6}  {}", peers.join(", "));
        }
    }

    fn write(&self, file: &Path) -> Result<()> {
        let rows = self.rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        fs::write(file, format!("[\n{}\n]\n", rows.join(",\n")))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Fails when a limit is exceeded, or something was not measured.
    pub(super) fn check(&self) -> Result<()> {
        if self.rows.is_empty() {
            bail!("the bench program declared no operation");
        }
        let complaints: Vec<_> = self
            .rows
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(output: &str) -> Result<Report> {
        let mut report = Report::default();
        lines(output).try_for_each(|line| report.line(line))?;
        Ok(report)
    }

    const OP: &str = r#"@bench {"op":"x","unit":"frames","limit":3}"#;
    const FREE: &str = r#"@bench {"op":"x","unit":"instr","limit":null}"#;

    fn value(value: u32) -> String {
        format!(r#"@bench {{"op":"x","who":"axvm","value":{value}}}"#)
    }

    #[test]
    fn a_figure_over_its_limit_fails() -> Result<()> {
        report(&format!("{OP}\n{}", value(3)))?.check()?;
        assert!(report(&format!("{OP}\n{}", value(4)))?.check().is_err());
        Ok(())
    }

    #[test]
    fn a_figure_that_is_missing_fails() -> Result<()> {
        assert!(report(OP)?.check().is_err());
        assert!(report("nothing")?.check().is_err());
        Ok(())
    }

    #[test]
    fn a_row_without_a_limit_is_shown_and_gates_nothing() -> Result<()> {
        report(&format!("noise\n{FREE}\r\n{}\r\n", value(9)))?.check()
    }

    #[test]
    fn a_line_that_does_not_fit_is_an_error() {
        for output in [
            format!("{OP}\n{OP}"),
            format!("{OP}\n{}\n{}", value(1), value(1)),
            value(1),
            "@bench {\"op\":\"x\"}".to_owned(),
            "@bench no json".to_owned(),
        ] {
            assert!(report(&output).is_err(), "{output}");
        }
    }

    #[test]
    fn the_list_in_json_has_an_object_a_row() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        report(&format!("{OP}\n{}", value(2)))?.write(file.path())?;
        let rows: serde_json::Value = serde_json::from_str(&fs::read_to_string(file.path())?)?;
        let row = serde_json::json!(
            [{"op": "x", "value": 2.0, "unit": "frames", "limit": 3.0, "peers": {}}]
        );
        assert_eq!(rows, row);
        Ok(())
    }
}
