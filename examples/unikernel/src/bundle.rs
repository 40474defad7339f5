//! The guest bundle: a `newc` cpio archive with one or several `vm*.toml` and the images that
//! they name.

use alloc::vec::Vec;
use core::fmt;

/// The files of a bundle, where they lie in memory.
#[derive(Debug)]
pub struct Bundle<'a> {
    files: Vec<(&'a str, &'a [u8])>,
}

/// What is wrong with a bundle. Offsets are bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// There is no header of a `newc` archive at this offset.
    NoHeader(usize),
    /// A field of the header at this offset is no hexadecimal number.
    BadNumber(usize),
    /// The name of the file at this offset is no UTF-8 text that ends with NUL.
    BadName(usize),
    /// The file at this offset is longer than what is left of the archive.
    Truncated(usize),
    /// It has no `vm*.toml`.
    NoVm,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader(at) => write!(f, "no header of a newc cpio archive at byte {at}"),
            Self::BadNumber(at) => write!(f, "a bad number in the header at byte {at}"),
            Self::BadName(at) => write!(f, "a bad file name at byte {at}"),
            Self::Truncated(at) => write!(f, "the file at byte {at} is cut off"),
            Self::NoVm => f.write_str("there is no vm*.toml in it"),
        }
    }
}

const MAGIC: &[u8] = b"070701";
/// The magic and 13 numbers of 8 hexadecimal digits.
const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The file type in a mode, and that of a regular file.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

impl<'a> Bundle<'a> {
    /// Reads an archive. Whatever is no regular file is passed over.
    ///
    /// # Errors
    /// Says what is wrong with it, and where.
    pub fn parse(archive: &'a [u8]) -> Result<Self, BundleError> {
        let mut files = Vec::new();
        let mut at = 0;
        loop {
            let entry = Entry::parse(archive, at)?;
            if entry.name == TRAILER {
                break;
            }
            if entry.mode & TYPE == REGULAR {
                files.push((normal(entry.name), entry.data));
            }
            at = entry.end;
        }
        let bundle = Self { files };
        if bundle.vms().is_empty() { Err(BundleError::NoVm) } else { Ok(bundle) }
    }

    /// The VMs' configurations with their names, in the order of the names.
    pub fn vms(&self) -> Vec<(&'a str, &'a [u8])> {
        let is_vm =
            |name: &str| name.starts_with("vm") && name.ends_with(".toml") && !name.contains('/');
        let mut vms: Vec<_> = self.files.iter().copied().filter(|(name, _)| is_vm(name)).collect();
        vms.sort_unstable();
        vms
    }

    /// A file's contents. `./` or `/` before the name means nothing.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        let name = normal(name);
        self.files.iter().find(|(file, _)| *file == name).map(|(_, data)| *data)
    }
}

fn normal(name: &str) -> &str {
    name.trim_start_matches("./").trim_start_matches('/')
}

/// One entry of the archive.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    data: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Entry<'a> {
    fn parse(archive: &'a [u8], at: usize) -> Result<Self, BundleError> {
        let rest = archive.get(at..).unwrap_or_default();
        let (header, rest) = rest.split_at_checked(HEADER).ok_or(BundleError::NoHeader(at))?;
        let digits = header.strip_prefix(MAGIC).ok_or(BundleError::NoHeader(at))?;
        let number = |field: usize| {
            let digits = digits.get(8 * field..8 * field + 8)?;
            let plain = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = core::str::from_utf8(digits).ok().filter(|_| plain)?;
            u32::from_str_radix(digits, 16).ok()
        };
        let number = |field| number(field).ok_or(BundleError::BadNumber(at));
        let (mode, size, name_size) = (number(1)?, number(6)? as usize, number(11)? as usize);

        let name = rest.get(..name_size).ok_or(BundleError::Truncated(at))?;
        let name = name.strip_suffix(&[0]).and_then(|name| core::str::from_utf8(name).ok());
        let name = name.filter(|name| !name.contains('\0')).ok_or(BundleError::BadName(at))?;

        // Contents and headers begin at multiples of 4 bytes from the beginning of the archive.
        // No overflow: three numbers below 2^32 and an offset in memory, in 64 bits.
        let from = (at + HEADER + name_size).next_multiple_of(4);
        let end = from + size;
        let data = archive.get(from..end).ok_or(BundleError::Truncated(at))?;
        Ok(Self { name, mode, data, end: end.next_multiple_of(4) })
    }
}

#[cfg(test)]
mod tests {
    use std::{format, string::String};

    use super::*;

    fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
        let (size, name_size) = (data.len(), name.len() + 1);
        let mut entry = format!(
            "070701{:08X}{mode:08X}{:032X}{size:08x}{:032X}{name_size:08X}{:08X}{name}\0",
            1, 0, 0, 0
        )
        .into_bytes();
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend_from_slice(data);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    }

    fn archive() -> Vec<u8> {
        [
            entry("vm1.toml", 0o100_644, b"one"),
            entry("images", 0o40_755, b""),
            entry("images/vm2.toml", 0o100_644, b"no VM: it is in a folder"),
            entry("./vm0.toml", 0o100_644, b"zero"),
            entry("vmlinux", 0o100_755, &[7; 1001]),
            entry("link", 0o120_777, b"vmlinux"),
            entry("TRAILER!!!", 0, b""),
        ]
        .concat()
    }

    #[test]
    fn vms_come_in_the_order_of_their_names_and_files_are_found_by_theirs() {
        let mut archive = archive();
        // Archives are padded to blocks.
        archive.resize(archive.len().next_multiple_of(512), 0);
        let bundle = Bundle::parse(&archive).unwrap();
        assert_eq!(bundle.vms(), [("vm0.toml", &b"zero"[..]), ("vm1.toml", b"one")]);
        for name in ["vmlinux", "./vmlinux", "/vmlinux"] {
            assert_eq!(bundle.file(name), Some(&[7; 1001][..]));
        }
        assert_eq!(bundle.file("link"), None);
        assert_eq!(bundle.file("images/vm2.toml").map(<[u8]>::len), Some(24));
    }

    #[test]
    fn an_archive_that_is_cut_off_anywhere_is_an_error() {
        let archive = archive();
        for len in 0..archive.len() {
            let error = Bundle::parse(&archive[..len]).unwrap_err();
            assert!(matches!(error, BundleError::NoHeader(_) | BundleError::Truncated(_)), "{len}");
        }
        assert!(Bundle::parse(&archive).is_ok());
    }

    #[test]
    fn damage_is_named_and_never_a_panic() {
        let file = entry("vm0.toml", 0o100_644, b"zero");
        let damaged = |at: usize, with: &[u8]| {
            let mut file = file.clone();
            file[at..at + with.len()].copy_from_slice(with);
            Bundle::parse(&file).map(drop).unwrap_err()
        };
        assert_eq!(damaged(5, b"2"), BundleError::NoHeader(0));
        assert_eq!(damaged(54, b"+0000004"), BundleError::BadNumber(0));
        assert_eq!(damaged(54, b"ffffffff"), BundleError::Truncated(0));
        assert_eq!(damaged(94, b"FFFFFFFF"), BundleError::Truncated(0));
        assert_eq!(damaged(94, b"00000000"), BundleError::BadName(0));
        assert_eq!(damaged(112, b"\0"), BundleError::BadName(0));
        assert_eq!(damaged(112, b"\xff"), BundleError::BadName(0));
        assert_eq!(Bundle::parse(&entry(TRAILER, 0, b"")).unwrap_err(), BundleError::NoVm);
        let told: String = format!("{}", BundleError::Truncated(512));
        assert_eq!(told, "the file at byte 512 is cut off");
    }
}
