//! What runner hosts upload of a job's events. Each batch is one transaction, and a batch that came before changes nothing.

use super::batch::{NewEvent, columns, detections, new_calls, sums};
use super::detections::{
    NewDelivery, ToldJob, read_candidates, read_told_job, record_detections, write_deliveries,
};
use super::learning::{
    LearningJob, NEW_OUTBOUND_NETWORK_CALL, PER_STATEMENT, Thresholds, call_sums, learn,
};
use super::values::verdict_code;
use super::{Database, DatabaseError, signed, transaction, unsigned};
use crate::notify::Payload;
use portcullis_common::event::Verdict;
use sqlx::QueryBuilder;
use std::collections::BTreeSet;

/// Rows that one statement inserts: nine values each, well below the 32 766 parameters of SQLite.
const ROWS_PER_STATEMENT: usize = 1000;

/// What became of a batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Intake {
    /// It is stored, or was before; every event up to this number is there.
    Stored {
        /// The last number.
        last_seq: u64,
        /// Events that were new.
        new: u64,
        /// Whether somebody is told of something in it.
        is_told: bool,
    },
    /// Events are missing before it; nothing was stored.
    Gap {
        /// The number that is expected next.
        expected: u64,
    },
    /// The host has no such job.
    NoJob,
}

impl Database {
    /// Stores a batch of events, whose numbers are without gaps, and teaches the job's baselines. Events that are there already
    /// are left out.
    ///
    /// # Errors
    /// When the database can't be used; then nothing of it is stored.
    pub async fn store_events(
        &self,
        job_id: &str,
        host_id: &str,
        events: &[NewEvent<'_>],
        (thresholds, now_ms): (Thresholds, i64),
    ) -> Result<Intake, DatabaseError> {
        transaction!(self, |transaction| {
            // Counted up by nothing, this locks the row: batches of one job go one after the other.
            let row: Option<LearningJob> = sqlx::query_as(
                "UPDATE jobs SET last_seq = last_seq WHERE id = $1 AND host_id = $2 RETURNING key, last_seq, run, \
                 job_baseline, repository_baseline, organization_baseline, cluster_baseline, learned, told",
            )
            .bind(job_id)
            .bind(host_id)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(learning) = row else { return Ok(Intake::NoJob) };
            let job = learning.key;
            let last_seq = unsigned(learning.last_seq);
            let is_new = |new: &&NewEvent<'_>| new.event.seq > last_seq;
            let skipped = events.len() - events.iter().filter(is_new).count();
            let new = events.get(skipped..).unwrap_or_default();
            let Some(newest) = new.last() else {
                return Ok(Intake::Stored { last_seq, new: 0, is_told: false });
            };
            if new.first().is_some_and(|first| first.event.seq != last_seq + 1) {
                return Ok(Intake::Gap { expected: last_seq + 1 });
            }
            for rows in new.chunks(ROWS_PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO events (job, seq, time_us, kind, verdict, endpoint, process, step, body) ",
                );
                insert.push_values(rows, |mut values, row| {
                    let columns = columns(&row.event.kind);
                    values
                        .push_bind(job)
                        .push_bind(signed(row.event.seq))
                        .push_bind(row.event.time.as_microsecond())
                        .push_bind(columns.kind)
                        .push_bind(columns.verdict)
                        .push_bind(columns.endpoint)
                        .push_bind(columns.process)
                        .push_bind(columns.step)
                        .push_bind(row.line.to_owned());
                });
                insert.build().execute(&mut *transaction).await?;
            }
            let sums = sums(new);
            let calls = call_sums(new.iter().map(|new| &new.event));
            let total = |verdict: Verdict| -> i64 {
                let code = verdict_code(verdict);
                calls.iter().filter(|((_, key), _)| *key == code).map(|(_, sum)| sum.count).sum()
            };
            let mut of_job: BTreeSet<(String, i16)> = BTreeSet::new();
            let endpoints: Vec<&(String, i16)> = calls.keys().collect();
            // Of the first batch all is new.
            for part in endpoints.chunks(PER_STATEMENT).filter(|_| last_seq > 0) {
                let mut query = QueryBuilder::new(
                    "SELECT DISTINCT endpoint, verdict FROM destinations WHERE job = ",
                );
                query.push_bind(job).push(" AND endpoint IN (");
                let mut list = query.separated(", ");
                for (endpoint, _) in part {
                    list.push_bind(endpoint.clone());
                }
                query.push(")");
                let known: Vec<(String, i16)> =
                    query.build_query_as().fetch_all(&mut *transaction).await?;
                of_job.extend(known);
            }
            let rows: Vec<_> = sums.iter().collect();
            for part in rows.chunks(PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us, address) ",
                );
                insert.push_values(part, |mut values, ((endpoint, verdict, process), sum)| {
                    values
                        .push_bind(job)
                        .push_bind(endpoint.clone())
                        .push_bind(*verdict)
                        .push_bind(process.clone())
                        .push_bind(sum.calls)
                        .push_bind(sum.first_us)
                        .push_bind(sum.last_us)
                        .push_bind(sum.address.clone());
                });
                insert.push(
                    " ON CONFLICT (job, endpoint, verdict, process) DO UPDATE SET calls = destinations.calls + excluded.calls, \
                     first_us = CASE WHEN excluded.first_us < destinations.first_us THEN excluded.first_us ELSE destinations.first_us END, \
                     last_us = CASE WHEN excluded.last_us > destinations.last_us THEN excluded.last_us ELSE destinations.last_us END, \
                     address = COALESCE(excluded.address, destinations.address)",
                );
                insert.build().execute(&mut *transaction).await?;
            }
            let mut detections = detections(job_id, new);
            let mut learned = 0;
            if !calls.is_empty() {
                let (count, found) =
                    learn!(transaction, &learning, job_id, &calls, &of_job, thresholds);
                learned = count;
                detections.extend(found);
            }
            let told = detections.iter().filter(|found| found.kind == NEW_OUTBOUND_NETWORK_CALL);
            let told = i64::try_from(told.count()).unwrap_or(i64::MAX);
            let new_calls = new_calls(&sums, &of_job);
            // Last: rules and integrations are everybody's, and held until the commit.
            let mut is_told = record_detections!(transaction, job, &detections, now_ms);
            let candidates = read_candidates!(transaction);
            let is_asked = candidates.iter().any(|candidate| {
                candidate.takes_events() || !new_calls.is_empty() && candidate.wants_calls()
            });
            if is_asked {
                let told_job: ToldJob = read_told_job!(transaction, job);
                let mut deliveries = Vec::new();
                let time_us = newest.event.time.as_microsecond();
                if let Some(told) = told_job.calls(new_calls, newest.event.seq, time_us)? {
                    deliveries = NewDelivery::of(&candidates, &told)?;
                    if !deliveries.is_empty() {
                        sqlx::query("UPDATE jobs SET told_calls = told_calls + 1 WHERE key = $1")
                            .bind(job)
                            .execute(&mut *transaction)
                            .await?;
                    }
                }
                let batch = Payload::Events {
                    job_id: job_id.to_owned(),
                    first_seq: last_seq + 1,
                    last_seq: newest.event.seq,
                    time: newest.event.time,
                };
                for candidate in &candidates {
                    if candidate.takes_events_of(&told_job.place()) {
                        deliveries.push(NewDelivery::new(&candidate.id, &batch)?);
                    }
                }
                is_told |= !deliveries.is_empty();
                write_deliveries!(transaction, now_ms, &deliveries);
            }
            sqlx::query(
                "UPDATE jobs SET last_seq = $2, allowed = allowed + $3, blocked = blocked + $4, \
                 would_block = would_block + $5, detections = detections + $6, learned = learned + $7, told = told + $8 \
                 WHERE key = $1",
            )
            .bind(job)
            .bind(signed(newest.event.seq))
            .bind(total(Verdict::Allowed))
            .bind(total(Verdict::Blocked))
            .bind(total(Verdict::WouldBlock))
            .bind(i64::try_from(detections.len()).unwrap_or(i64::MAX))
            .bind(learned)
            .bind(told)
            .execute(&mut *transaction)
            .await?;
            Ok(Intake::Stored {
                last_seq: newest.event.seq,
                new: u64::try_from(new.len()).unwrap_or(u64::MAX),
                is_told,
            })
        })
    }
}
