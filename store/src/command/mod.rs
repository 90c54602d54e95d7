//! The command line, one file per subcommand.

pub mod migrate;
pub mod serve;

use crate::configuration::Configuration;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

/// Where the server's configuration is read when it is not said.
pub const DEFAULT_CONFIGURATION: &str = "/etc/portcullis/store.toml";

/// The policy store of Portcullis: its server, and the operator's command line.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, propagate_version = true)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API.
    Serve(serve::Serve),
    /// Bring the database's schema up to date, and do nothing else.
    Migrate(migrate::Migrate),
}

/// Where a server's configuration comes from.
#[derive(Args, Clone, Debug)]
pub struct ConfigurationOptions {
    /// The configuration; without one, and without the file at its usual place, the defaults.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// The database: `sqlite:/a/file` or `postgres://user@host/name`.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_DATABASE", hide_env_values = true)]
    database: Option<String>,
}

impl ConfigurationOptions {
    /// The configuration, with what the options say instead.
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn load(&self) -> anyhow::Result<Configuration> {
        let usual = Path::new(DEFAULT_CONFIGURATION);
        let mut configuration = match &self.config {
            Some(path) => Configuration::load(path)?,
            None if usual.exists() => Configuration::load(usual)?,
            None => Configuration::default(),
        };
        if let Some(url) = &self.database {
            configuration.database.url.clone_from(url);
        }
        Ok(configuration)
    }
}
