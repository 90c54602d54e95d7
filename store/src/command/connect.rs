//! Where the store is: a server, or a directory of files.

use super::client_file::ClientFile;
use super::output::Output;
use anyhow::{Context as _, bail};
use clap::Args;
use portcullis_common::resolution::PolicySet;
use portcullis_common::store_client::directory::DirectoryStore;
use portcullis_store_client::{Connection, OperatorClient};
use secrecy::SecretString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which store, as whom, and how answers are shown.
#[derive(Args, Clone, Debug)]
pub(super) struct StoreOptions {
    /// The server: `https://portcullis.example.com`.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_SERVER", global = true)]
    pub(super) server: Option<String>,
    /// A file with the token to use; without it, the variable `PORTCULLIS_TOKEN`.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_TOKEN_FILE", global = true)]
    pub(super) token_file: Option<PathBuf>,
    /// Certificates, PEM, that are trusted beside the system's.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CA_FILE", global = true)]
    pub(super) ca_file: Option<PathBuf>,
    /// The command line's own configuration; without this, `~/.config/portcullis/config.toml` or `/etc/portcullis/client.toml`.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CLIENT_CONFIG", global = true)]
    pub(super) client_config: Option<PathBuf>,
    /// A directory of policy files instead of a server, also of one that the environment names.
    #[arg(long, value_name = "DIRECTORY", global = true)]
    pub(super) dir: Option<PathBuf>,
    /// How answers are shown.
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub(super) output: Output,
}

/// A store that can be asked.
#[derive(Debug)]
pub(super) enum Place {
    /// A server.
    Server(OperatorClient),
    /// The policies of a directory.
    Directory(Arc<PolicySet>),
}

impl StoreOptions {
    /// The server, for what a directory can't do.
    pub(super) fn server(&self) -> anyhow::Result<OperatorClient> {
        match self.place()? {
            Place::Server(client) => Ok(client),
            Place::Directory(_) => {
                bail!(
                    "this needs a server\n\nhint: a directory of files is changed by changing its files"
                )
            }
        }
    }

    /// Where the policies are.
    pub(super) fn place(&self) -> anyhow::Result<Place> {
        let file = self.file()?;
        // A directory in the file is for when nothing else is said.
        let dir = self.dir.as_ref().or_else(|| file.dir.as_ref().filter(|_| self.server.is_none()));
        if let Some(path) = dir {
            let store = DirectoryStore::open(path)
                .with_context(|| format!("{} can't be read", path.display()))?;
            return match store.current() {
                Ok(policies) => Ok(Place::Directory(policies)),
                // Told as they are: each with its place and remedy.
                Err(errors) => bail!("{}", errors.to_string().trim_start_matches("error: ")),
            };
        }
        Ok(Place::Server(OperatorClient::new(self.connection()?, self.token()?)))
    }

    /// The connection alone.
    pub(super) fn connection(&self) -> anyhow::Result<Connection> {
        let file = self.file()?;
        let Some(server) = self.server.as_ref().or(file.server.as_ref()) else {
            bail!(
                "where is the store?\n\nhint: say --server URL or --dir DIRECTORY, set PORTCULLIS_SERVER, or write `server = \"URL\"` into ~/.config/portcullis/config.toml"
            )
        };
        let authorities = match self.ca_file.as_ref().or(file.ca_file.as_ref()) {
            Some(path) => {
                Some(fs::read(path).with_context(|| format!("{} can't be read", path.display()))?)
            }
            None => None,
        };
        Ok(Connection::new(server, authorities.as_deref(), PATIENCE)?)
    }

    /// What the server is called, for people.
    pub(super) fn server_name(&self) -> String {
        let of_file = || self.file().ok().and_then(|file| file.server);
        self.server.clone().or_else(of_file).unwrap_or_default()
    }

    fn file(&self) -> anyhow::Result<ClientFile> {
        ClientFile::load(self.client_config.as_deref())
    }

    fn token(&self) -> anyhow::Result<SecretString> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
        };
        let text =
            match (&self.token_file, std::env::var("PORTCULLIS_TOKEN"), self.file()?.token_file) {
                (Some(path), ..) => read(path)?,
                (None, Ok(text), _) => text,
                (None, Err(_), Some(path)) => read(&path)?,
                (None, Err(_), None) => {
                    bail!(
                        "a token is needed\n\nhint: say --token-file FILE, or set PORTCULLIS_TOKEN"
                    )
                }
            };
        Ok(SecretString::from(text.trim().to_owned()))
    }
}
