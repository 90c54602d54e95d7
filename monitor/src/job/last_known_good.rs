//! The policy of the last successful resolution, by workflow.

use portcullis_common::job_context::JobContext;
use portcullis_common::resolution::Resolution;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest file that is read back; a policy of 100 000 endpoints takes about 10 MB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The longest name of a file, below the 255 bytes of the usual file systems.
const MAX_NAME_BYTES: usize = 200;

/// The directory of last known good policies, readable and writable by root only.
#[derive(Clone, Debug)]
pub struct LastKnownGood {
    directory: PathBuf,
}

impl LastKnownGood {
    /// The directory; made when something is saved.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Keeps `resolution` for jobs of the same workflow.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, context: &JobContext, resolution: &Resolution) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let bytes = serde_json::to_vec(resolution).map_err(io::Error::other)?;
        let Some(path) = self.path(context) else { return Ok(()) };
        if fs::read(&path).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        write_atomically(&path, &bytes)
    }

    /// What was kept for the workflow; `None` when there is nothing that can be read.
    pub fn load(&self, context: &JobContext) -> Option<Resolution> {
        let path = self.path(context)?;
        let mut bytes = Vec::new();
        File::open(&path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(resolution) => Some(resolution),
            Err(error) => {
                tracing::error!(error = %error, path = %path.display(), "a last known good policy can't be read");
                None
            }
        }
    }

    fn path(&self, context: &JobContext) -> Option<PathBuf> {
        file_name(&context.workflow_ref).map(|name| self.directory.join(name))
    }
}

/// A name that no two workflows share and that is a plain file name whatever the workflow is called: every byte but
/// letters, digits, `-`, `_` and `.` is written as `%XX`. Owners and repositories are the same in any case, so case is
/// folded; the ref after `@` is no part of a workflow's identity. `None` for one that is too long for a file name.
fn file_name(workflow_ref: &str) -> Option<String> {
    let workflow = workflow_ref.split('@').next().unwrap_or(workflow_ref).to_ascii_lowercase();
    let mut name = String::with_capacity(workflow.len() + 8);
    for byte in workflow.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) && !name.is_empty() {
            name.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    (name.len() <= MAX_NAME_BYTES).then(|| name + ".json")
}

/// Writes a file that is either the old one or the new one, whatever happens meanwhile, a loss of power included; readable
/// by its owner only.
///
/// # Errors
/// When the directory can't be written to.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, File::sync_data)
}

/// As [`write_atomically`], for what means nothing after the machine has started again: the monitor may die at any moment,
/// but a disk is not waited for.
///
/// # Errors
/// When the directory can't be written to.
pub fn write_until_reboot(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, |_| Ok(()))
}

fn replace(
    path: &Path,
    bytes: &[u8],
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    settle(&file)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn a_workflow_has_a_file_of_its_own() {
        let name = |workflow: &str| file_name(workflow).unwrap();
        assert_eq!(
            name("Octo/hello/.github/workflows/ci.yml@refs/heads/main"),
            "octo%2Fhello%2F.github%2Fworkflows%2Fci.yml.json"
        );
        assert_eq!(name("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd.json");
        assert_ne!(name("a/b"), name("a%2Fb"));
        assert_eq!(file_name(&"a".repeat(300)), None);
    }
}
