//! What is wrong with a kernel's file.

use core::fmt;

use axerrno::AxError;

use super::ImageFormat;

/// An error in a kernel's file: it names the value and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageError {
    /// The format as which the file was read.
    pub format: ImageFormat,
    /// The field, by its name in the format's specification.
    pub field: &'static str,
    /// The field's offset in the file.
    pub offset: usize,
    /// Its value.
    pub value: u64,
    /// What is wrong with it.
    pub rule: &'static str,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "ELF",
            Self::RiscvImage => "RISC-V Image",
            Self::Flat => "flat image",
        })
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, field, offset, value, rule } = self;
        write!(f, "{format}: {field} = {value:#x} (offset {offset:#x}) {rule}")
    }
}

impl core::error::Error for ImageError {}

/// Always `InvalidInput`.
impl From<ImageError> for AxError {
    fn from(_: ImageError) -> Self {
        Self::InvalidInput
    }
}
