//! The job's summary: `GITHUB_STEP_SUMMARY` names a file that the job itself can replace.

use nix::fcntl::OFlag;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Why the summary was not written.
#[derive(Debug)]
pub(crate) enum SummaryError {
    /// The runner named no file.
    NotNamed,
    /// The file can't be opened or written.
    Unwritable(PathBuf, io::Error),
    /// What the name leads to is not a regular file.
    NotAFile(PathBuf),
}

impl std::fmt::Display for SummaryError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotNamed => formatter
                .write_str("GITHUB_STEP_SUMMARY is not set, so the report stands only in this log"),
            Self::Unwritable(path, error) => {
                write!(formatter, "the job summary {} can't be written: {error}", path.display())
            }
            Self::NotAFile(path) => write!(
                formatter,
                "the job summary {} is not a regular file; something in the job replaced it",
                path.display()
            ),
        }
    }
}

/// Appends `markdown` to the file that `variable` (the value of `GITHUB_STEP_SUMMARY`) names.
///
/// A symbolic link is refused, because it would have this hook write elsewhere; so is a FIFO, which would hold it.
pub(crate) fn append(variable: Option<OsString>, markdown: &str) -> Result<(), SummaryError> {
    let path = variable
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .ok_or(SummaryError::NotNamed)?;
    let unwritable = |error| SummaryError::Unwritable(path.clone(), error);
    let mut file = OpenOptions::new()
        .append(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(&path)
        .map_err(unwritable)?;
    if !file.metadata().map_err(unwritable)?.is_file() {
        return Err(SummaryError::NotAFile(path));
    }
    file.write_all(markdown.as_bytes()).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::{SummaryError, append};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_report_is_appended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("summary");
        fs::write(&file, "before\n").unwrap();
        append(Some(file.clone().into()), "# Report\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "before\n# Report\n");
    }

    #[test]
    fn nothing_is_written_through_what_the_job_put_there() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "untouched").unwrap();
        let link = directory.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(matches!(append(Some(link.into()), "x"), Err(SummaryError::Unwritable(..))));
        assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");

        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(matches!(
            append(Some(fifo.clone().into()), "x"),
            Err(SummaryError::Unwritable(..))
        ));
        // With a reader on the other end the FIFO can be opened; it must still be refused.
        let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(matches!(append(Some(fifo.into()), "x"), Err(SummaryError::NotAFile(_))));
        drop(reader);

        let device = std::path::Path::new("/dev/null");
        assert!(matches!(append(Some(device.into()), "x"), Err(SummaryError::NotAFile(_))));
        assert!(matches!(append(None, "x"), Err(SummaryError::NotNamed)));
        assert!(matches!(append(Some("".into()), "x"), Err(SummaryError::NotNamed)));
    }
}
