//! Archives in cpio's `newc` format: what Linux takes as initramfs, and a host as bundle.

use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// An archive as it is written. Everything in it is root's, and of no time.
pub(crate) struct Archive<W: Write> {
    writer: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self { writer, inode: 0 }
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        let entry = self.entry(name).mode(DIRECTORY | 0o755).nlink(2);
        self.add(entry, &[])
    }

    /// A character device; `device` is its major and minor number.
    pub(crate) fn device(&mut self, name: &str, device: (u32, u32)) -> io::Result<()> {
        let entry = self.entry(name).mode(CHARACTER_DEVICE | 0o600);
        self.add(entry.rdev_major(device.0).rdev_minor(device.1), &[])
    }

    /// A file; `mode` holds its permissions.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let entry = self.entry(name).mode(REGULAR | mode);
        self.add(entry, content)
    }

    /// Writes the end.
    pub(crate) fn finish(self) -> io::Result<W> {
        trailer(self.writer)
    }

    fn entry(&mut self, name: &str) -> Builder {
        self.inode += 1;
        Builder::new(name).ino(self.inode)
    }

    fn add(&mut self, entry: Builder, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut writer = entry.write(&mut self.writer, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cpio::newc::Reader;

    use super::*;

    #[test]
    fn an_archive_holds_what_was_added_and_ends() -> io::Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev")?;
        archive.device("dev/console", (5, 1))?;
        archive.file("init", 0o755, b"#!/bin/sh\n")?;
        archive.file("empty", 0o644, b"")?;
        let bytes = archive.finish()?;
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);

        let reader = Reader::new(&bytes[..])?;
        let entry = reader.entry();
        assert_eq!((entry.name(), entry.mode(), entry.nlink()), ("dev", 0o40_755, 2));
        let reader = Reader::new(reader.finish()?)?;
        let entry = reader.entry();
        assert_eq!((entry.name(), entry.mode()), ("dev/console", 0o20_600));
        assert_eq!((entry.rdev_major(), entry.rdev_minor(), entry.ino()), (5, 1, 2));
        let reader = Reader::new(reader.finish()?)?;
        let entry = reader.entry();
        assert_eq!((entry.name(), entry.mode(), entry.uid()), ("init", 0o100_755, 0));
        let mut content = Vec::new();
        let reader = Reader::new(reader.to_writer(&mut content)?)?;
        assert_eq!(content, b"#!/bin/sh\n");
        assert_eq!((reader.entry().name(), reader.entry().file_size()), ("empty", 0));
        assert!(Reader::new(reader.finish()?)?.entry().is_trailer());
        Ok(())
    }
}
