//! What is wrong with a file.

use alloc::boxed::Box;
use core::fmt;

use axerrno::AxError;

use crate::config::ConfigError;

/// Which value of a file: `[section] field[entry].element`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place<'t> {
    /// The section; empty at the top of the file.
    pub section: &'static str,
    /// The field, as the file writes it; empty for the section as a whole.
    pub field: &'t str,
    /// The entry, if the field is a list.
    pub entry: Option<usize>,
    /// The element, if the entry is a list; otherwise empty.
    pub element: &'static str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, field, entry, element } = self;
        match (section.is_empty(), field.is_empty()) {
            (true, _) => f.write_str(field)?,
            (false, true) => write!(f, "[{section}]")?,
            (false, false) => write!(f, "[{section}] {field}")?,
        }
        if let Some(entry) = entry {
            write!(f, "[{entry}]")?;
        }
        if element.is_empty() { Ok(()) } else { write!(f, ".{element}") }
    }
}

/// An error in a file. It says where, by line and by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TomlError<'t> {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The value; empty when the file is not TOML at all.
    pub place: Place<'t>,
    /// What is wrong with it.
    pub problem: Problem<'t>,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem<'t> {
    /// It is not TOML, as the parser says.
    Syntax(Box<str>),
    /// There is no such field or section.
    Unknown {
        /// Those that there are.
        expected: &'static [&'static str],
    },
    /// It is not there.
    Missing,
    /// It has another type.
    Type {
        /// The type that it should have.
        expected: &'static str,
        /// The type that it has.
        found: &'static str,
    },
    /// An entry has more or fewer elements.
    Length {
        /// Those that it should have.
        expected: &'static [&'static str],
        /// How many it has.
        found: usize,
    },
    /// It has a value that it cannot have.
    Value {
        /// The value, as the file writes it.
        found: &'t str,
        /// What it should be.
        expected: &'static str,
    },
    /// [`AxVMConfig::validate`](crate::config::AxVMConfig::validate) refuses it.
    Config(Box<ConfigError>),
}

impl fmt::Display for TomlError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if self.place != Place::default() {
            write!(f, "{}: ", self.place)?;
        }
        match &self.problem {
            Problem::Syntax(message) => f.write_str(message),
            Problem::Unknown { expected } => {
                let what = if self.place.section.is_empty() { "section" } else { "field" };
                write!(f, "unknown {what}, expected one of {}", List(expected))
            }
            Problem::Missing => f.write_str("missing"),
            Problem::Type { expected, found } => write!(f, "expected {expected}, found {found}"),
            Problem::Length { expected, found } => {
                write!(f, "expected [{}], found {found} elements", List(expected))
            }
            Problem::Value { found, expected } => write!(f, "{found}: {expected}"),
            Problem::Config(error) => write!(f, "{}: {}", error.value, error.rule),
        }
    }
}

impl core::error::Error for TomlError<'_> {}

/// `InvalidInput`, or what the [`ConfigError`] is.
impl From<TomlError<'_>> for AxError {
    fn from(error: TomlError<'_>) -> Self {
        match error.problem {
            Problem::Config(error) => (*error).into(),
            _ => Self::InvalidInput,
        }
    }
}

struct List(&'static [&'static str]);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
