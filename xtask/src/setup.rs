//! What the other commands need on the machine, and how it gets there.

use std::path::Path;
use std::sync::Once;

use anyhow::{Result, bail};

use crate::command::{answer, cargo, command, find, line, run, succeeds};
use crate::guest::debian;
use crate::{arch, bare_metal};

/// How to get the nightly toolchain, which only fuzzing uses.
pub(crate) const INSTALL_NIGHTLY: &str = "rustup toolchain install nightly --profile minimal";

/// Sees to everything that the other commands need.
pub(crate) fn everything() -> Result<()> {
    valgrind()?;
    bare_metal::toolchains()?;
    for arch in &arch::ALL {
        arch.set_up()?;
        debian::packages(arch)?;
    }
    if !fuzzing()? {
        println!("fuzzing is left out: no nightly toolchain; to have it: {INSTALL_NIGHTLY}");
    }
    println!("everything is there");
    Ok(())
}

/// Valgrind, for the instruction counts.
pub(crate) fn valgrind() -> Result<()> {
    if find("valgrind").is_none() {
        apt("valgrind counts the instructions of the bench", &["valgrind"])?;
    }
    Ok(())
}

/// cargo-fuzz and a C++ compiler (libFuzzer is built from source). False when there is no
/// nightly toolchain: then the fuzz targets cannot be built.
pub(crate) fn fuzzing() -> Result<bool> {
    if !succeeds(&mut cargo(&["+nightly", "--version"])) {
        return Ok(false);
    }
    if find("c++").is_none() {
        apt("libFuzzer is compiled from C++", &["g++"])?;
    }
    if !succeeds(&mut cargo(&["fuzz", "--version"])) {
        let mut install = cargo(&["install", "--locked", "cargo-fuzz"]);
        println!("cargo-fuzz is missing: {}", line(&install));
        run(&mut install)?;
    }
    Ok(true)
}

/// Installs Debian packages, or says how to.
pub(crate) fn apt(why: &str, packages: &[&str]) -> Result<()> {
    apt_may(why, packages)?;
    println!("{why}: installing {}", packages.join(" "));
    update()?;
    let mut install = apt_get(&["install", "-y", "--no-install-recommends"]);
    run(install.args(packages))
}

/// Installs the first of these Debian packages that the machine's release has (programs move
/// from one to another), or says how to.
pub(crate) fn apt_first_of(why: &str, packages: &[&str]) -> Result<()> {
    apt_may(why, &[&packages.join(" or ")])?;
    update()?;
    let known = |name: &&&str| succeeds(&mut command("apt-cache", &["show", name]));
    match packages.iter().find(known) {
        Some(package) => apt(why, &[package]),
        None => bail!("{why}, and no package here is called {}", packages.join(" or ")),
    }
}

/// Complains unless packages can be installed here.
fn apt_may(why: &str, packages: &[&str]) -> Result<()> {
    let packages = packages.join(" ");
    if !Path::new("/etc/debian_version").exists() || find("apt-get").is_none() {
        bail!("{why}, and it is missing here; install what Debian calls: {packages}");
    }
    if answer(&mut command("id", &["-u"])).as_deref() != Some("0") {
        bail!("{why}, and it is missing here; run: sudo apt-get install {packages}");
    }
    Ok(())
}

/// Brings the lists of packages up to date, once.
fn update() -> Result<()> {
    static UPDATE: Once = Once::new();
    let mut updated = Ok(());
    UPDATE.call_once(|| updated = run(&mut apt_get(&["update", "-q"])));
    updated
}

fn apt_get(args: &[&str]) -> std::process::Command {
    let mut command = command("apt-get", args);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
