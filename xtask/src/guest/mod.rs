//! Guests: Debian's Linux with an initramfs of ours, or what the user names.

pub(crate) mod archive;
pub(crate) mod bundle;
pub(crate) mod debian;
pub(crate) mod initramfs;
pub(crate) mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;

/// A guest, and the VM that it is to run in.
pub(crate) struct Guest {
    /// The VM's name.
    pub name: String,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub vcpus: u32,
    /// In bytes.
    pub memory: u64,
}

/// The part of a guest that `--kernel` and `--initrd` choose.
pub(crate) struct Images {
    name: String,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    /// Whether the initramfs is ours.
    ours: bool,
}

impl Images {
    /// Debian's kernel and our initramfs, but for what is given; a kernel that is given comes
    /// without an initrd. Fetches what is missing.
    pub(crate) fn new(arch: &Arch, kernel: Option<&Path>, initrd: Option<&Path>) -> Result<Self> {
        let initrd = initrd.map(|file| readable("--initrd", file)).transpose()?;
        if let Some(kernel) = kernel {
            let kernel = readable("--kernel", kernel)?;
            let name = kernel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Self { name, kernel, initrd, ours: false });
        }
        let packages = debian::packages(arch)?;
        let ours = initrd.is_none();
        let initrd = match initrd {
            Some(initrd) => initrd,
            None => initramfs::write(&packages.busybox, &arch.folder())?,
        };
        let name = "linux".to_owned();
        Ok(Self { name, kernel: packages.kernel, initrd: Some(initrd), ours })
    }

    /// The guest, with words for our initramfs (for no other) and for the kernel.
    pub(crate) fn guest(
        &self,
        arch: &Arch,
        words: &[&str],
        append: &str,
        vcpus: u32,
        memory: u64,
    ) -> Guest {
        let console = format!("console={}", arch.guest.console);
        let ours = if self.ours { words } else { &[] };
        let cmdline = [console.as_str(), "quiet", "cryptomgr.notests"].into_iter();
        let cmdline =
            cmdline.chain(ours.iter().copied()).chain([append]).filter(|word| !word.is_empty());
        Guest {
            name: self.name.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: cmdline.collect::<Vec<_>>().join(" "),
            vcpus,
            memory,
        }
    }
}

/// The file's full path: commands run in another folder than the user's.
fn readable(flag: &str, file: &Path) -> Result<PathBuf> {
    let complaint = || format!("{flag}: cannot read {}", file.display());
    let path = file.canonicalize().with_context(complaint)?;
    let metadata = fs::File::open(&path).and_then(|file| file.metadata());
    if !metadata.with_context(complaint)?.is_file() {
        bail!("{flag}: {} is no file", file.display());
    }
    Ok(path)
}

/// Writes a file so that whoever reads it at the same time finds the old or the new.
pub(crate) fn replace(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut part = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut part, content)?;
    part.persist(file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}
