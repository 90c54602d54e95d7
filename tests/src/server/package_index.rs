//! A package index for `pip` (PEP 503): pages on one name, files on another, as on `PyPI`.

use super::http::Response;
use super::web::Web;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The name that the index is served on: `https://pypi.test/simple/`.
pub const INDEX_HOST: &str = "pypi.test";

/// The name that the files are served on.
pub const FILES_HOST: &str = "files.pypi.test";

/// A real package, what it needs, and what building a package from source needs.
const REAL_PACKAGES: [&str; 3] = ["requests", "setuptools", "wheel"];

/// Serves the files of these directories.
pub(crate) fn serve(web: &Web, directories: Vec<PathBuf>) {
    let index = directories.clone();
    web.route(INDEX_HOST, "/simple/", move |request| {
        let project = normalized(request.path.trim_start_matches("/simple/").trim_end_matches('/'));
        let links: String = files(&index)
            .iter()
            .filter_map(|file| {
                let name = file.file_name()?.to_str()?;
                (project_of(name) == project).then(|| {
                    format!("<a href=\"https://{FILES_HOST}/packages/{name}\">{name}</a><br>\n")
                })
            })
            .collect();
        if links.is_empty() {
            return Response::new(404, "no such project\n");
        }
        Response::ok(format!("<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n"))
            .header("Content-Type", "text/html")
    });
    web.route(FILES_HOST, "/packages/", move |request| {
        let wanted = request.path.trim_start_matches("/packages/");
        files(&directories)
            .iter()
            .find(|file| file.file_name().is_some_and(|name| name == wanted))
            .and_then(|file| fs::read(file).ok())
            .map_or_else(|| Response::new(404, "no such file\n"), Response::ok)
    });
}

/// The directory with [`REAL_PACKAGES`] below `target`, downloaded by this machine's `pip` when they are not there yet.
pub(crate) fn real_packages(target: &Path) -> Result<PathBuf> {
    static DOWNLOAD: Mutex<()> = Mutex::new(());
    let _one_at_a_time = crate::sync::lock(&DOWNLOAD);
    let directory = target.join("test-inputs").join("packages");
    if directory.is_dir() {
        return Ok(directory);
    }
    // Into a directory of its own and then renamed: another process may do the same at the same time.
    let parent = directory.parent().context("the directory of packages has no parent")?;
    fs::create_dir_all(parent)?;
    let fresh = tempfile::tempdir_in(parent)?;
    let output = Command::new("/usr/bin/python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest"])
        .arg(fresh.path())
        .args(REAL_PACKAGES)
        .output()
        .context("can't start /usr/bin/python3: install the Debian package python3-pip")?;
    if !output.status.success() {
        bail!(
            "can't download {REAL_PACKAGES:?} for the world's package index; is python3-pip installed and a package \
             index reachable by pip? {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let fresh = fresh.keep();
    if fs::rename(&fresh, &directory).is_err() {
        // Somebody else was faster.
        fs::remove_dir_all(&fresh)?;
        if !directory.is_dir() {
            bail!("can't make {}", directory.display());
        }
    }
    Ok(directory)
}

/// Makes a source distribution `name-version.tar.gz` in `directory` from a directory of files.
pub(crate) fn pack_source(
    directory: &Path,
    name: &str,
    version: &str,
    source: &Path,
) -> Result<()> {
    let folder = format!("{name}-{version}");
    let output = Command::new("tar")
        .arg("--create")
        .arg("--gzip")
        .args(["--owner=0", "--group=0", "--mtime=2026-01-01T00:00:00Z"])
        .arg(format!("--transform=s,^\\.,{folder},"))
        .arg("--file")
        .arg(directory.join(format!("{folder}.tar.gz")))
        .arg("--directory")
        .arg(source)
        .arg(".")
        .output()
        .context("can't start `tar`: install the Debian package tar")?;
    if !output.status.success() {
        bail!("can't pack {folder}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn files(directories: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect();
    found.sort();
    found
}

/// The project of a file: `charset_normalizer-3.5.2-py3-none-any.whl`, `exfil-helper-1.0.0.tar.gz`.
fn project_of(file: &str) -> String {
    let end = file
        .char_indices()
        .find(|(at, _)| {
            let rest = &file.as_bytes()[*at..];
            rest[0] == b'-' && rest.get(1).is_some_and(u8::is_ascii_digit)
        })
        .map_or(file.len(), |(at, _)| at);
    normalized(&file[..end])
}

/// PEP 503: runs of `-`, `_` and `.` are one `-`, small letters.
fn normalized(name: &str) -> String {
    let mut text = String::new();
    for character in name.to_ascii_lowercase().chars() {
        match character {
            '-' | '_' | '.' if text.ends_with('-') => {}
            '-' | '_' | '.' => text.push('-'),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_projects() {
        fn check(file: &str, project: &str) {
            assert_eq!(project_of(file), project);
        }
        check("charset_normalizer-3.5.2-cp311-cp311-linux_x86_64.whl", "charset-normalizer");
        check("exfil-helper-1.0.0.tar.gz", "exfil-helper");
        check("requests-2.34.2-py3-none-any.whl", "requests");
    }
}
