//! Has a bare-metal kernel linked where its machine expects it.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name| env::var(name).unwrap_or_default();
    if var("CARGO_CFG_TARGET_OS") != "none" {
        return;
    }
    let script = format!(
        "{}/src/kernel/arch/{}/link.ld",
        var("CARGO_MANIFEST_DIR"),
        var("CARGO_CFG_TARGET_ARCH")
    );
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
}
