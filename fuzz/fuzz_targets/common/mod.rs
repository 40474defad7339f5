//! What the targets share: input that is small, and near where mistakes live.

#![allow(dead_code, reason = "each target uses its part")]

use arbitrary::Arbitrary;
use axvm::vcpu::AccessWidth;

/// The width of an access.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl From<Width> for AccessWidth {
    fn from(width: Width) -> Self {
        match width {
            Width::Byte => Self::Byte,
            Width::Word => Self::Word,
            Width::Dword => Self::Dword,
            Width::Qword => Self::Qword,
        }
    }
}

/// An address: near a place that matters in this run, or anywhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Place {
    Near(u8, i8),
    NearPage(u8, i16, i8),
    Any(usize),
}

impl Place {
    /// The address; `places` is not empty.
    pub fn resolve(self, places: &[usize]) -> usize {
        let near = |which: u8| places[usize::from(which) % places.len()];
        match self {
            Self::Near(which, by) => near(which).wrapping_add_signed(by.into()),
            Self::NearPage(which, pages, by) => {
                near(which).wrapping_add_signed(isize::from(pages) * 0x1000 + isize::from(by))
            }
            Self::Any(addr) => addr,
        }
    }
}
