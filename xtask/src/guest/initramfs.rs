//! The file system that Linux comes up with: busybox, and a script that is its first program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::Archive;

/// On the kernel's command line: a shell on the console.
pub(crate) const SHELL: &str = "axvm.shell";
/// On the kernel's command line: the marker, then `reboot` or `poweroff` as typed.
pub(crate) const REBOOT: &str = "axvm.reboot";
/// What the shell's prompt ends with.
pub(crate) const PROMPT: &str = "guest# ";
/// What is printed before it is typed whether to reboot.
pub(crate) const QUESTION: &str = "REBOOT-OR-POWEROFF?";
/// How the line begins that says that the guest has come up.
pub(crate) const MARKER: &str = "GUEST-MARKER ";

const INIT: &str = include_str!("init.sh");
/// Linux's number of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// Writes the archive into `folder` and returns its file.
pub(crate) fn write(busybox: &Path, folder: &Path) -> Result<PathBuf> {
    let busybox = fs::read(busybox).with_context(|| busybox.display().to_string())?;
    let file = folder.join("initramfs.cpio");
    super::replace(&file, &archive(&busybox)?)?;
    Ok(file)
}

fn archive(busybox: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", CONSOLE)?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_program_knows_the_words_that_it_is_told() {
        for word in [SHELL, REBOOT, PROMPT, QUESTION, MARKER] {
            assert!(INIT.contains(word), "{word}");
        }
    }

    #[test]
    fn everything_is_under_a_folder_that_comes_before_it() -> Result<()> {
        let bytes = archive(b"busybox")?;
        let mut seen = vec![String::new()];
        let mut rest = &bytes[..];
        loop {
            let entry = cpio::newc::Reader::new(rest)?;
            if entry.entry().is_trailer() {
                break;
            }
            let name = entry.entry().name().to_owned();
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            assert!(seen.iter().any(|seen| seen == folder), "{name}");
            seen.push(name);
            rest = entry.finish()?;
        }
        assert!(seen.iter().any(|name| name == "init"));
        Ok(())
    }
}
