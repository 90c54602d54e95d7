//! The programs under test: found beside the test executable, and refused when they are older than their sources.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The environment variable that names the directory of the programs; without it they are looked for in cargo's target
/// directory, beside the test executable.
pub const DIRECTORY_VARIABLE: &str = "PORTCULLIS_TEST_BINARIES";

/// Finds a program of this workspace: `monitor`, `pre-job`, `post-job`, or one of this package.
///
/// # Errors
/// When it has not been built or is older than one of its sources; the error says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is not there: run `cargo build --workspace --bins` first (scripts/test does), or name the programs' \
             directory in {DIRECTORY_VARIABLE}",
            path.display()
        );
    }
    if let Some(source) = newer_source(&path)? {
        bail!(
            "{} is older than {}: run `cargo build --workspace --bins`",
            path.display(),
            source.display()
        );
    }
    Ok(path)
}

fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
        return Ok(PathBuf::from(directory));
    }
    let executable = std::env::current_exe().context("can't find this executable")?;
    let directory = executable.parent().context("this executable lies in no directory")?;
    // Tests and examples lie one level below the programs.
    let nested = ["deps", "examples"].iter().any(|name| directory.ends_with(name));
    let directory = if nested { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_owned())
}

/// A source newer than the program, from the list that cargo writes beside it (`monitor.d`).
fn newer_source(program: &Path) -> Result<Option<PathBuf>> {
    let Ok(list) = fs::read_to_string(program.with_extension("d")) else {
        return Ok(None);
    };
    let built = fs::metadata(program)?.modified()?;
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources);
    Ok(sources
        .replace("\\ ", "\0")
        .split_whitespace()
        .map(|source| PathBuf::from(source.replace('\0', " ")))
        .find(|source| modified(source).is_some_and(|time| time > built)))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
