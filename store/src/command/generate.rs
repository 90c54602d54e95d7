//! `portcullis generate-events`: a store full of jobs that never ran, for measuring.

use super::ConfigurationOptions;
use super::progress::Progress;
use crate::database::{Database, Generated};
use clap::Args;

/// Fill a database with jobs and calls that never were, for measuring and for tests. Never on a store that is in use.
#[derive(Args, Debug)]
pub(super) struct GenerateEvents {
    #[command(flatten)]
    configuration: ConfigurationOptions,
    /// How many jobs, one for each run.
    #[arg(long, default_value_t = 1000)]
    jobs: u32,
    /// Calls of each job.
    #[arg(long, default_value_t = 1000)]
    events_of_job: u32,
    /// Repositories that the jobs are of.
    #[arg(long, default_value_t = 100)]
    repositories: u32,
    /// Endpoints that each job calls.
    #[arg(long, default_value_t = 20)]
    endpoints_of_job: u32,
}

impl GenerateEvents {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let configuration = self.configuration.load()?;
        let database = Database::open(&configuration.database.url, 2).await?;
        let wanted = Generated {
            jobs: self.jobs,
            events_of_job: self.events_of_job,
            repositories: self.repositories,
            endpoints_of_job: self.endpoints_of_job,
            newest_ms: crate::service::now().as_millisecond(),
        };
        let mut progress = Progress::new("jobs", Some(u64::from(self.jobs)));
        database.generate(wanted, |done| progress.set(u64::from(done))).await?;
        progress.finish();
        database.close().await;
        Ok(())
    }
}
