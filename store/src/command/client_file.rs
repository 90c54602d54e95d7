//! The command line's own configuration: where the store is, so that it need not be said each time.

use anyhow::Context as _;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The file for everybody on this machine.
const FOR_ALL: &str = "/etc/portcullis/client.toml";

/// `config.toml`. What options or the environment say counts more.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ClientFile {
    /// The server: `https://portcullis.example.com`.
    pub(super) server: Option<String>,
    /// A file with the token to use.
    pub(super) token_file: Option<PathBuf>,
    /// Certificates, PEM, that are trusted beside the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// A directory of policy files instead of a server.
    pub(super) dir: Option<PathBuf>,
}

impl ClientFile {
    /// Reads the file that is named, or that of the user, or that of the machine; nothing when there is none.
    pub(super) fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match usual_paths().into_iter().find(|path| path.exists()) {
                Some(path) => path,
                None => return Ok(Self::default()),
            },
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} can't be read", path.display()))?;
        let file: Self = toml::from_str(&text)
            .with_context(|| format!("{} is no configuration that can be used", path.display()))?;
        // Paths in a file are meant from where the file is.
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let from_there = |path: Option<PathBuf>| path.map(|path| directory.join(path));
        Ok(Self {
            token_file: from_there(file.token_file),
            ca_file: from_there(file.ca_file),
            dir: from_there(file.dir),
            server: file.server,
        })
    }
}

fn usual_paths() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let own = own.map(|directory| directory.join("portcullis/config.toml"));
    own.into_iter().chain([PathBuf::from(FOR_ALL)]).collect()
}
