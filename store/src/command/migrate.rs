//! `portcullis migrate`.

use super::ConfigurationOptions;
use crate::database::Database;
use clap::Args;

/// Bring the database's schema up to date, and do nothing else.
#[derive(Args, Debug)]
pub(super) struct Migrate {
    #[command(flatten)]
    configuration: ConfigurationOptions,
}

impl Migrate {
    /// Migrates.
    ///
    /// # Errors
    /// When the database can't be used.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let configuration = self.configuration.load()?;
        let database = Database::open(&configuration.database.url, 2).await?;
        tracing::info!(database = database.kind(), "the schema is up to date");
        database.close().await;
        Ok(())
    }
}
