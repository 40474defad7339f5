//! What is wrong with a configuration.

use core::fmt;

use axerrno::{AxError, AxErrorKind};

use crate::mm::GpaRange;

/// Which field is wrong: `list[index].field`, or a field of the VM itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigField {
    /// The list, if it is one, and the index in it.
    pub entry: Option<(&'static str, usize)>,
    /// The field; empty for the entry as a whole.
    pub name: &'static str,
}

impl fmt::Display for ConfigField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some((list, index)) if self.name.is_empty() => write!(f, "{list}[{index}]"),
            Some((list, index)) => write!(f, "{list}[{index}].{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// The value that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigValue {
    /// A count.
    Count(usize),
    /// An address, a length or flags.
    Hex(usize),
    /// A range of addresses.
    Range(GpaRange),
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Hex(n) => write!(f, "{n:#x}"),
            Self::Range(range) => write!(f, "{range:?}"),
        }
    }
}

/// An error in a configuration: it names the field and the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The kind that [`AxVM::new`](crate::vm::AxVM::new) returns for it: `InvalidInput`, or
    /// `AlreadyExists` for an overlap.
    pub kind: AxErrorKind,
    /// The field.
    pub field: ConfigField,
    /// Its value.
    pub value: ConfigValue,
    /// What the field must be.
    pub rule: &'static str,
}

impl ConfigError {
    pub(crate) const fn invalid(
        field: ConfigField,
        value: ConfigValue,
        rule: &'static str,
    ) -> Self {
        Self { kind: AxErrorKind::InvalidInput, field, value, rule }
    }

    pub(crate) const fn overlap(field: ConfigField, range: GpaRange, rule: &'static str) -> Self {
        Self { kind: AxErrorKind::AlreadyExists, field, value: ConfigValue::Range(range), rule }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.field, self.value, self.rule)
    }
}

impl core::error::Error for ConfigError {}

impl From<ConfigError> for AxError {
    fn from(error: ConfigError) -> Self {
        error.kind.into()
    }
}
