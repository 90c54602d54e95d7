//! The archive: what jobs did, kept in an object store before retention removes it here.
//!
//! Each job that has ended becomes `PREFIX/archive/YYYY/MM/DD/JOB/job.json`, its record with the report, and
//! `events-FIRST-LAST.ndjson.gz`, its events as they were uploaded. Names follow from what is in them, so that writing again
//! what was written changes nothing.

use super::object::{self, Bucket};
use crate::database::{EventFilter, JobToArchive};
use crate::service::{Store, now};
use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use object_store::aws::AmazonS3;
use std::io::Write as _;
use std::time::Duration;

/// Jobs that a server takes at once.
const JOBS_AT_ONCE: u32 = 16;

/// Events of one object.
const EVENTS_AT_ONCE: u32 = 10_000;

/// How long a server has a job for itself.
const LEASE: Duration = Duration::from_mins(10);

/// How long putting one object may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Archives what is to be archived; says how many jobs that were. Without an archive in the configuration, nothing.
///
/// # Errors
/// When the object store or the database can't be used; what was archived before stays so.
pub async fn archive(store: &Store) -> anyhow::Result<usize> {
    let Some(archive) = &store.configuration.archive else { return Ok(0) };
    let key = std::fs::read_to_string(&archive.secret_access_key_file)
        .with_context(|| format!("{} can't be read", archive.secret_access_key_file.display()))?;
    let mut client = reqwest::Client::builder()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE);
    for authority in store.configuration.authorities()? {
        client = client.add_root_certificate(authority);
    }
    let bucket = Bucket {
        name: &archive.bucket,
        region: &archive.region,
        endpoint: archive.endpoint.as_deref(),
        access_key_id: &archive.access_key_id,
        secret_access_key: key.trim(),
    };
    let target = object::open(bucket, &client.build()?).map_err(anyhow::Error::msg)?;
    let mut count = 0;
    loop {
        let time = now();
        let jobs = store
            .database
            .claim_jobs_to_archive(
                (time.as_millisecond(), (time + LEASE).as_millisecond()),
                JOBS_AT_ONCE,
            )
            .await?;
        if jobs.is_empty() {
            return Ok(count);
        }
        for (index, job) in jobs.iter().enumerate() {
            let done = archive_job(store, &target, archive.prefix.trim_matches('/'), job).await;
            if let Err(error) = done {
                let left: Vec<i64> = jobs.iter().skip(index).map(|job| job.key).collect();
                let now_ms = now().as_millisecond();
                store.database.release_jobs_to_archive(&left, now_ms).await?;
                return Err(error.context(format!("job {} could not be archived", job.id)));
            }
            count += 1;
        }
    }
}

async fn archive_job(
    store: &Store,
    target: &AmazonS3,
    prefix: &str,
    job: &JobToArchive,
) -> anyhow::Result<()> {
    let database = &store.database;
    let day = jiff::Timestamp::from_millisecond(job.started_ms)?.strftime("%Y/%m/%d").to_string();
    let begin = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let directory = format!("{begin}archive/{day}/{}", job.id);
    let mut after = u64::try_from(job.archived_seq)?;
    loop {
        let filter = EventFilter { after, ..EventFilter::default() };
        let events = database.events(job.key, &filter, EVENTS_AT_ONCE).await?;
        let (Some((first, _)), Some((last, _))) = (events.first(), events.last()) else { break };
        let (first, last) = (*first, *last);
        let packed = tokio::task::spawn_blocking(move || pack(&events)).await??;
        let name = format!("{directory}/events-{first:012}-{last:012}.ndjson.gz");
        object::put(target, &name, "application/gzip", packed).await.map_err(anyhow::Error::msg)?;
        database.mark_events_archived(job.key, last).await?;
        after = last;
    }
    // Events that were removed before there was an archive are not waited for.
    database.mark_events_archived(job.key, u64::try_from(job.last_seq)?).await?;
    let Some((_, record)) = database.job(&job.id).await? else { return Ok(()) };
    let body = serde_json::to_vec_pretty(&record)?;
    let name = format!("{directory}/job.json");
    object::put(target, &name, "application/json", body).await.map_err(anyhow::Error::msg)?;
    database.mark_record_archived(job.key, job.report.as_deref()).await?;
    Ok(())
}

fn pack(events: &[(u64, String)]) -> std::io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    for (_, line) in events {
        packed.write_all(line.as_bytes())?;
        packed.write_all(b"\n")?;
    }
    packed.finish()
}
