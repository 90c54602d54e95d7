//! The sources of zlib: a real C library with a `configure`, a Makefile and tests of its own, for jobs to build.
//!
//! They are part of a crate that the product is built with (`libbpf-sys`), so that they lie in cargo's directory already.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the sources.
///
/// # Errors
/// When cargo can't say where the crate lies, or it has no zlib.
pub fn sources() -> Result<PathBuf> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "libbpf-sys")
        .and_then(|package| package["manifest_path"].as_str())
        .context("cargo metadata names no libbpf-sys")?;
    let sources = Path::new(manifest).with_file_name("zlib");
    ensure!(
        sources.join("configure").is_file(),
        "{} has no sources of zlib: a build was to bring them",
        sources.display()
    );
    Ok(sources)
}

/// What cargo knows of this workspace.
fn metadata() -> Result<serde_json::Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let ask = |more: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target])
            .args(more)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .context("can't start cargo")
    };
    let mut output = ask(&["--offline"])?;
    if !output.status.success() {
        // Somebody who has built a part of the workspace only lacks some of its crates.
        output = ask(&[])?;
    }
    ensure!(
        output.status.success(),
        "cargo can't say where its crates lie: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}
