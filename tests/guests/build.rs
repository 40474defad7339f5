//! Has bare-metal guests linked where the machine enters them.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name| env::var(name).unwrap_or_default();
    if var("CARGO_CFG_TARGET_OS") != "none" {
        return;
    }
    let folder = var("CARGO_MANIFEST_DIR");
    let script = format!("{folder}/src/{}/link.ld", var("CARGO_CFG_TARGET_ARCH"));
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
}
