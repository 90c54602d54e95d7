//! The scripts that drive a browser, installed with what they need from the npm registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the browser is, unless `PORTCULLIS_CHROMIUM` says otherwise.
const CHROMIUM: &str = "/usr/bin/chromium";

/// The directory, below `place`, in which the scripts can be run by Node.js. Several processes may ask at the same time.
pub fn installed(place: &Path) -> PathBuf {
    let chromium = std::env::var_os("PORTCULLIS_CHROMIUM").unwrap_or_else(|| CHROMIUM.into());
    assert!(
        Path::new(&chromium).exists(),
        "a browser is needed; scripts/test installs it (scripts/test-packages.txt)"
    );
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/browser");
    let place = place.join("browser");
    fs::create_dir_all(&place).unwrap();
    let alone = fs::File::create(place.join("lock")).unwrap();
    alone.lock().unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let target = place.join(path.file_name().unwrap());
            // Another test may read it just now: it is replaced as a whole, and only when it is another one.
            let text = fs::read(&path).unwrap();
            if fs::read(&target).ok().as_ref() != Some(&text) {
                let new = target.with_extension("new");
                fs::write(&new, text).unwrap();
                fs::rename(&new, &target).unwrap();
            }
        }
    }
    let lock = fs::read(source.join("package-lock.json")).unwrap();
    let mark = place.join("installed-lock.json");
    if fs::read(&mark).ok().as_deref() != Some(&lock) {
        let status = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&place)
            .status()
            .expect("npm is needed; scripts/test installs it (scripts/test-packages.txt)");
        assert!(status.success(), "npm ci: {status}");
        fs::write(&mark, &lock).unwrap();
    }
    place
}
