//! Builds what the dashboard's pages load (`src/dashboard/web`) with npm and esbuild, to be embedded in the binary.
//!
//! Everything is made in `OUT_DIR`; nothing of npm's comes into the source tree. Without Node.js the program is built without
//! its dashboard, and says so: here as a warning, in the server's log, and on its pages.
//!
//! `PORTCULLIS_DASHBOARD=required` makes that an error (packages are built so), `PORTCULLIS_DASHBOARD=off` leaves it out on
//! purpose.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const WEB: &str = "src/dashboard/web";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={WEB}/package.json");
    println!("cargo::rerun-if-changed={WEB}/package-lock.json");
    println!("cargo::rerun-if-changed={WEB}/build.mjs");
    println!("cargo::rerun-if-changed={WEB}/source");
    println!("cargo::rerun-if-env-changed=PORTCULLIS_DASHBOARD");
    println!("cargo::rerun-if-changed=src/database/migrations");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let wish = std::env::var("PORTCULLIS_DASHBOARD").unwrap_or_default();
    let built = if wish == "off" { Err("PORTCULLIS_DASHBOARD is off".into()) } else { build(&out) };
    let code = match built {
        Ok(assets) => format!("Ok(&[\n{assets}])"),
        Err(error) if wish == "required" => return Err(error),
        Err(error) => {
            let reason = error.to_string().replace('\n', " ");
            if wish != "off" {
                try_again();
            }
            println!(
                "cargo::warning=portcullis is built WITHOUT its dashboard: {reason}. Install Node.js 20 or newer with npm and build again; PORTCULLIS_DASHBOARD=required makes this an error."
            );
            format!("Err({reason:?})")
        }
    };
    let code = format!(
        "/// What the build made, or why it made nothing.\npub(super) static BUILT: Result<&[Asset], &str> = {code};\n"
    );
    fs::write(out.join("dashboard_assets.rs"), code)?;
    Ok(())
}

/// Has cargo run this again once it may work: when a program comes into a directory of `PATH`, or, where npm is there and
/// failed, with the next build. Without this, cargo would keep what it has after Node.js was installed.
fn try_again() {
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|place| place.is_absolute() && place.is_dir())
        .collect();
    let is_there = |program: &str| directories.iter().any(|place| place.join(program).is_file());
    if is_there("npm") && is_there("node") {
        // What does not exist counts as changed.
        println!("cargo::rerun-if-changed={WEB}/failed-before");
        return;
    }
    for directory in directories {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
}

/// Builds, and returns the assets as Rust expressions.
fn build(out: &Path) -> Result<String, Box<dyn Error>> {
    let source = Path::new(WEB);
    let place = out.join("web");
    fs::create_dir_all(&place)?;
    let lock = fs::read(source.join("package-lock.json"))?;
    let installed = place.join("installed-lock.json");
    for name in ["package.json", "package-lock.json", "build.mjs"] {
        fs::copy(source.join(name), place.join(name))?;
    }
    // Dependencies are installed once for each lock file; no scripts of theirs are run.
    if fs::read(&installed).ok().as_deref() != Some(&lock) {
        run(
            &place,
            "npm",
            &["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        )?;
        fs::write(&installed, &lock)?;
    }
    let from = fs::canonicalize(source.join("source"))?;
    let to = place.join("assets");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(&to)?;
    let (from, to_text) = (from.to_string_lossy(), to.to_string_lossy());
    run(&place, "node", &["build.mjs", &from, &to_text])?;
    let mut code = String::new();
    for line in fs::read_to_string(to.join("manifest.txt"))?.lines() {
        // Logical name, file, content type; made by build.mjs.
        let parts: Vec<&str> = line.split('\t').collect();
        let [name, file, content_type] = parts.as_slice() else {
            return Err(format!("a line of the manifest: {line}").into());
        };
        let path = to.join(file).display().to_string();
        let packed = to.join(format!("{file}.gz")).display().to_string();
        writeln!(
            code,
            "    Asset {{ name: {name:?}, file: {file:?}, content_type: {content_type:?}, body: include_bytes!({path:?}), gzip: include_bytes!({packed:?}) }},"
        )?;
    }
    Ok(code)
}

fn run(place: &Path, program: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(place)
        .output()
        .map_err(|error| format!("{program} can't be run ({error})"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {} failed: {}", arguments.join(" "), text.trim()).into())
}
