//! Builds for machines without an operating system: by rustup's targets where they are
//! installed, else by Debian's compiler, which brings the sources of the standard library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{answer, cargo, command, find, line, root, run, run_quietly};
use crate::setup;

/// The bare-metal targets that the crate is built for.
pub(crate) const TARGETS: [&str; 3] =
    ["x86_64-unknown-none", "aarch64-unknown-none-softfloat", "riscv64gc-unknown-none-elf"];

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where Debian's compiler builds: it and rustup's must not share a folder.
const OWN_FOLDER: &str = "target/bare-metal";
/// The `rust-version` in Cargo.toml, after "1.".
const OLDEST_MINOR: u32 = 95;

/// Sees to a toolchain for every target.
pub(crate) fn toolchains() -> Result<()> {
    let missing: Vec<_> = TARGETS.into_iter().filter(|target| !has_target(target)).collect();
    if missing.is_empty() || has_debian() {
        return Ok(());
    }
    if find("rustup").is_some() {
        let mut add = command("rustup", &["target", "add"]);
        add.args(&missing);
        println!("the bare-metal targets are missing: {}", line(&add));
        if run(&mut add).is_ok() {
            return Ok(());
        }
        println!("rustup cannot fetch them; Debian's compiler will do");
    }
    setup::apt(
        "bare-metal builds need rustup's targets or Debian's compiler with its sources",
        &["rustc-web", "rust-web-src", "lld"],
    )?;
    if !has_debian() {
        bail!("{DEBIAN_RUSTC} is older than 1.{OLDEST_MINOR}, or not the one of rustc-web");
    }
    Ok(())
}

/// `cargo SUBCOMMAND --release --target TARGET`, set up for the toolchain that serves the
/// target. Call [`toolchains`] first. Add the package and features.
pub(crate) fn release(subcommand: &str, target: &str) -> Command {
    let mut command = cargo(&[subcommand, "--release", "--target", target]);
    if has_target(target) {
        return command;
    }
    let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    command
        .args(["--target-dir", OWN_FOLDER])
        .args(["-Zbuild-std=core,alloc,compiler_builtins"])
        .args(["-Zbuild-std-features=compiler-builtins-mem"])
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(linker, "ld.lld");
    command
}

/// Builds the library for one target, without features and with all.
pub(crate) fn build_library(target: &str) -> Result<()> {
    toolchains()?;
    for features in ["--no-default-features", "--all-features"] {
        let mut build = release("build", target);
        run_quietly(build.args(["--package", "axvm", "--lib", features]))?;
    }
    Ok(())
}

/// Builds a program of the workspace for one target, and returns its file.
pub(crate) fn build_program(target: &str, package: &str, program: &str) -> Result<PathBuf> {
    toolchains()?;
    let mut build = release("build", target);
    build.args(["--package", package, "--bin", program]);
    println!("{}", line(&build));
    run(&mut build)?;
    let folder = if has_target(target) { "target" } else { OWN_FOLDER };
    Ok(root().join(folder).join(target).join("release").join(program))
}

/// Whether rustup has the target's core library.
fn has_target(target: &str) -> bool {
    let Some(sysroot) = sysroot("rustc") else { return false };
    let Ok(files) = sysroot.join("lib/rustlib").join(target).join("lib").read_dir() else {
        return false;
    };
    files.flatten().any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Whether Debian's compiler is there, new enough, with the library's sources and a linker.
fn has_debian() -> bool {
    let minor = answer(&mut command(DEBIAN_RUSTC, &["--version"]))
        .and_then(|version| version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok());
    minor.is_some_and(|minor: u32| minor >= OLDEST_MINOR)
        && find("ld.lld").is_some()
        && sysroot(DEBIAN_RUSTC)
            .is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    answer(&mut command(rustc, &["--print", "sysroot"])).map(|path| Path::new(&path).to_path_buf())
}
