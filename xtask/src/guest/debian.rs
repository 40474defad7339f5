//! Debian's kernel and busybox for the guest's architecture, by apt with a state of its own: the
//! machine's is only asked for its mirror. Apt verifies all of it by Debian's keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::arch::{Arch, Debian};
use crate::command::{command, find, line, run_quietly};

/// What to do without Debian.
const INSTEAD: &str = "elsewhere, name a guest by --kernel FILE, and --initrd FILE if it needs one";
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Files out of Debian's packages.
pub(crate) struct Packages {
    /// The kernel, as a boot loader takes it.
    pub kernel: PathBuf,
    /// Busybox, linked statically.
    pub busybox: PathBuf,
}

/// The packages of one architecture, from the cache or fetched.
pub(crate) fn packages(arch: &Arch) -> Result<Packages> {
    let folder = arch.folder().join("debian");
    let packages = Packages { kernel: folder.join("kernel"), busybox: folder.join("busybox") };
    let stamp = folder.join("packages");
    // Written last: what it says is there.
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp.starts_with(&wanted(arch))) {
        return Ok(packages);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let part = arch.folder().join("debian.part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    fetch(arch, &part)?;
    fs::rename(&part, &folder)?;
    Ok(packages)
}

/// The stamp's first line.
fn wanted(arch: &Arch) -> String {
    let debian = &arch.debian;
    let (begin, end) = debian.kernel;
    format!("{} {}: {begin}*{end}, busybox-static\n", debian.suite, debian.arch)
}

/// Leaves `kernel`, `busybox` and `packages` in `folder`.
fn fetch(arch: &Arch, folder: &Path) -> Result<()> {
    let debian = &arch.debian;
    println!("the guest's kernel and busybox come from Debian {} {}:", debian.suite, debian.arch);
    let apt = Apt::new(arch, &folder.join("apt"))?;
    apt.update(debian)?;
    let kernel = newest(&apt.names()?, debian.kernel)
        .with_context(|| format!("Debian {} has no such kernel", debian.suite))?;
    let mut stamp = wanted(arch);
    for (package, member, file) in [
        (kernel.as_str(), format!("{}*", debian.boot_file), "kernel"),
        ("busybox-static", "./*bin/busybox".to_owned(), "busybox"),
    ] {
        let deb = apt.download(package)?;
        unpack(&deb, &member, &folder.join(file))?;
        let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("  {name}");
        stamp += &format!("{name}\n");
    }
    // What is kept is kept for ever: not the lists and archives, which are four times as large.
    fs::remove_dir_all(&apt.folder)?;
    fs::write(folder.join("packages"), stamp)?;
    Ok(())
}

/// The newest of the names that begin and end so, with a version between.
fn newest(names: &[String], (begin, end): (&str, &str)) -> Option<String> {
    let version = |name: &String| -> Option<Vec<u64>> {
        let version = name.strip_prefix(begin)?.strip_suffix(end)?;
        let numbers = version.split(['.', '+', '-']).map(|part| {
            part.trim_start_matches(|letter: char| letter.is_ascii_alphabetic()).parse()
        });
        // Not a word among them: flavours and debug symbols are other packages.
        numbers.collect::<Result<_, _>>().ok()
    };
    let versions = names.iter().filter_map(|name| Some((version(name)?, name)));
    versions.max().map(|(_, name)| name.clone())
}

/// Takes the one file out of a package whose path matches.
fn unpack(deb: &Path, member: &str, to: &Path) -> Result<()> {
    let mut dpkg = command("dpkg-deb", &["--fsys-tarfile"]);
    let mut dpkg = dpkg.arg(deb).stdout(Stdio::piped()).spawn().context("cannot start dpkg-deb")?;
    let archive = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = command("tar", &["-x", "--to-stdout", "--wildcards", member]);
    let tar = tar.stdin(archive).stdout(fs::File::create(to)?).status()?;
    let dpkg = dpkg.wait()?;
    if !tar.success() || !dpkg.success() || to.metadata()?.len() == 0 {
        bail!("{} has no {member}, or cannot be read", deb.display());
    }
    Ok(())
}

/// apt-get with a state of its own.
struct Apt {
    folder: PathBuf,
    /// A line of `sources.list` up to the suite.
    archive: String,
    options: Vec<String>,
}

impl Apt {
    fn new(arch: &Arch, folder: &Path) -> Result<Self> {
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if !os.lines().any(|line| line == "ID=debian") || find("apt-get").is_none() {
            bail!("Debian's packages are fetched by Debian's apt-get, on Debian; {INSTEAD}");
        }
        let keyring = KEYRINGS.into_iter().find(|file| Path::new(file).exists());
        let keyring = keyring.context("the package debian-archive-keyring is missing")?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        let name = arch.debian.arch;
        let archive = format!("deb [arch={name} signed-by={keyring}] {}", mirror()?);
        let in_folder = |what: &str| folder.join(what).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", in_folder("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", in_folder("lists")),
            format!("Dir::State::status={}", in_folder("status")),
            format!("Dir::Cache={}", in_folder("cache")),
            format!("APT::Architecture={name}"),
            format!("APT::Architectures={name}"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ];
        Ok(Self { folder: folder.to_path_buf(), archive, options: options.into() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command(program, &[]);
        self.options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command.current_dir(&self.folder);
        command
    }

    /// Fetches the list of the release's packages, under the first of its names that can be
    /// verified.
    fn update(&self, debian: &Debian) -> Result<()> {
        for suite in [Some(debian.suite), debian.alias].into_iter().flatten() {
            let source = format!("{} {suite} main\n", self.archive);
            fs::write(self.folder.join("sources.list"), source)?;
            // Without --error-on, apt-get would go on with what it could get.
            let args = ["-q", "--error-on=any", "update"];
            if succeeds_aloud(self.command("apt-get").args(args)) && self.has(debian.suite)? {
                return Ok(());
            }
        }
        bail!("apt-get cannot fetch and verify Debian's list of packages; {INSTEAD}");
    }

    /// Whether the list that was fetched is of the release with this code name.
    fn has(&self, codename: &str) -> Result<bool> {
        let mut ask = self.command("apt-get");
        let (names, _) = run_quietly(ask.args(["indextargets", "--format", "$(CODENAME)"]))?;
        Ok(names.lines().all(|name| name == codename) && !names.is_empty())
    }

    fn names(&self) -> Result<Vec<String>> {
        let (names, _) = run_quietly(self.command("apt-cache").arg("pkgnames"))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches a package into the folder and returns its file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        if !succeeds_aloud(self.command("apt-get").args(["-q", "download", package])) {
            bail!("apt-get cannot fetch and verify {package}; {INSTEAD}");
        }
        let begin = format!("{package}_");
        let file = self.folder.read_dir()?.flatten().map(|entry| entry.path()).find(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&begin) && name.ends_with(".deb")
        });
        file.with_context(|| format!("apt-get has left no file of {package}"))
    }
}

/// Whether a command succeeds that shows what it does. Its line is too long for an error.
fn succeeds_aloud(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

/// The archive that the machine's own packages come from.
fn mirror() -> Result<String> {
    let mut ask = command("apt-get", &["indextargets", "--format", "$(REPO_URI)"]);
    ask.args(["Created-By: Packages", "Component: main"]);
    let (uris, _) = run_quietly(&mut ask)?;
    let mirror = uris.lines().find(|uri| !uri.contains("security"));
    let mirror = mirror.with_context(|| format!("apt has no archive: {}", line(&ask)))?;
    Ok(mirror.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number_and_no_flavour_of_it() {
        let names = [
            "linux-image-6.12.9+deb13-riscv64",
            "linux-image-6.12.48+deb13-riscv64",
            "linux-image-6.12.48+deb13-riscv64-dbg",
            "linux-image-6.12.50+deb13-rt-riscv64",
            "linux-image-6.13.1+deb13-riscv64",
            "linux-image-riscv64",
        ];
        let names = names.map(str::to_owned);
        let kernel = ("linux-image-6.12.", "-riscv64");
        assert_eq!(newest(&names, kernel), Some(names[1].clone()));
        assert_eq!(newest(&names[3..], kernel), None);
    }
}
