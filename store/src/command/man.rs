//! `portcullis man`.

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use std::path::PathBuf;

/// Print the manual page, or write those of all subcommands into a directory.
#[derive(Args, Debug)]
pub(super) struct Manual {
    /// Write `portcullis.1`, `portcullis-policy.1` and so on there; the directory must exist.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

impl Manual {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let command = super::Options::command();
        if let Some(directory) = &self.directory {
            return clap_mangen::generate_to(command, directory)
                .with_context(|| format!("{} can't be written to", directory.display()));
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        super::output::print(&String::from_utf8(page)?)
    }
}
