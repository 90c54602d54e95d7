//! What baselines learn from a batch of events, in the batch's own transaction, so that nothing is learned twice.
//!
//! A job belongs to four baselines: its own, and those of its repository, organization and cluster. What a batch calls is
//! added to all four. An endpoint that the job's own baseline does not have, while that is stable, is a detection.
//!
//! PostgreSQL: locks are taken in one order (the job, its run, its own baseline, then endpoints by baseline and name), the
//! rows that many jobs share last, so that batches wait for each other only between that statement and the commit.

use super::{signed, verdict_code};
use portcullis_common::event::{EventKind, NetworkEvent, Verdict};
use portcullis_common::report::endpoint;
use std::collections::{BTreeMap, BTreeSet};

/// The detection of a call that a stable job never made before.
pub const NEW_OUTBOUND_NETWORK_CALL: &str = "New-Outbound-Network-Call";

/// The most endpoints of one job that its baselines learn: a job that calls more scans, and is no example for others.
pub const MAX_LEARNED_OF_JOB: i64 = 5000;

/// The most new endpoints of one job that are told one by one.
pub const MAX_TOLD_OF_JOB: i64 = 100;

/// Values of one `IN (…)`, and rows of one `INSERT` of four to eight values each.
pub(super) const PER_STATEMENT: usize = 1000;

/// When a baseline counts as known: `[baseline]` of `store.toml`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Runs before it says anything.
    pub min_runs: u32,
    /// The last runs that are looked at.
    pub window_runs: u32,
    /// How many of them may have brought a new endpoint while it is still stable.
    pub max_changed_runs: u32,
}

/// How much a baseline has learned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Learned {
    /// Too few runs.
    Creating,
    /// The last runs brought hardly anything new.
    Stable,
    /// They did.
    Unstable,
}

impl Thresholds {
    /// How much a baseline has learned that has so many ended runs, of which the last brought so many new endpoints each, the
    /// newest first.
    pub(super) fn judge(self, added: impl IntoIterator<Item = i64>) -> Learned {
        let (mut runs, mut changed) = (0_u32, 0_u32);
        for added in added {
            if runs < self.window_runs && added > 0 {
                changed += 1;
            }
            runs += 1;
        }
        match () {
            () if runs < self.min_runs => Learned::Creating,
            () if changed <= self.max_changed_runs => Learned::Stable,
            () => Learned::Unstable,
        }
    }

    /// The rows that [`Self::judge`] has to see.
    pub(super) fn rows(self) -> i64 {
        i64::from(self.min_runs.max(self.window_runs))
    }
}

/// The job that a batch is of, as it is locked.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub(super) struct LearningJob {
    pub(super) key: i64,
    pub(super) last_seq: i64,
    pub(super) run: i64,
    pub(super) job_baseline: i64,
    pub(super) repository_baseline: i64,
    pub(super) organization_baseline: i64,
    pub(super) cluster_baseline: i64,
    pub(super) learned: i64,
    pub(super) told: i64,
}

impl LearningJob {
    /// The baselines, the job's own first.
    pub(super) const fn baselines(&self) -> [i64; 4] {
        [
            self.job_baseline,
            self.repository_baseline,
            self.organization_baseline,
            self.cluster_baseline,
        ]
    }
}

/// What calls to one endpoint with one verdict add up to in a batch.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// How many, by packets.
    pub(super) count: i64,
    pub(super) first_us: i64,
    pub(super) last_us: i64,
    /// The first of them: its number, its process, and the rule.
    pub(super) first_seq: u64,
    pub(super) process: Option<String>,
}

/// Calls of a batch by endpoint and verdict.
pub(super) type CallSums = BTreeMap<(String, i16), Calls>;

/// Adds the calls of a batch up. A baseline is about where jobs call, so that connections from outside are left out.
pub(super) fn call_sums<'a>(
    events: impl Iterator<Item = &'a portcullis_common::event::Event>,
) -> CallSums {
    let mut sums = CallSums::new();
    for event in events {
        let EventKind::Network(call) = &event.kind else { continue };
        let time = event.time.as_microsecond();
        let sum =
            sums.entry((endpoint(call), verdict_code(call.verdict))).or_insert_with(|| Calls {
                count: 0,
                first_us: time,
                last_us: time,
                first_seq: event.seq,
                process: executable(call),
            });
        sum.count = sum.count.saturating_add(signed(call.packets));
        sum.first_us = sum.first_us.min(time);
        sum.last_us = sum.last_us.max(time);
    }
    sums
}

fn executable(call: &NetworkEvent) -> Option<String> {
    call.process.as_ref().and_then(|process| process.exe.clone())
}

/// What is known about the endpoints that are new in a job, before it is learned.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// What each baseline has of them.
    pub(super) known: BTreeSet<(i64, String, i16)>,
    /// What other jobs of the same run called: it counts for the run already.
    pub(super) in_run: BTreeSet<(i64, String, i16)>,
}

/// What goes into the database.
#[derive(Debug, Default)]
pub(super) struct Lesson {
    /// Rows to add, sorted by their keys: baseline, endpoint, verdict, runs, and the calls.
    pub(super) rows: Vec<(i64, String, i16, i64, Calls)>,
    /// Endpoints that each baseline did not have and that were reached.
    pub(super) added: BTreeMap<i64, i64>,
    /// What is new to the job's own baseline: endpoint, verdict, calls.
    pub(super) fresh: Vec<(String, i16, Calls)>,
    /// Endpoints of this job that were learned now.
    pub(super) learned: i64,
}

const BLOCKED: i16 = verdict_code(Verdict::Blocked);

/// What a batch teaches. `of_job` has the pairs that the job had before; `overflown` says that the job has called more than
/// is learned, so that only what its own baseline has is counted on.
pub(super) fn lesson(
    job: &LearningJob,
    sums: &CallSums,
    of_job: &BTreeSet<(String, i16)>,
    before: &Before,
) -> Lesson {
    let mut lesson = Lesson::default();
    for (pair, calls) in sums {
        let (endpoint, verdict) = pair;
        let is_new_in_job = !of_job.contains(pair);
        let knows = |baseline: i64, verdict: i16| {
            before.known.contains(&(baseline, endpoint.clone(), verdict))
        };
        let is_learned = job.learned + lesson.learned < MAX_LEARNED_OF_JOB;
        if !is_learned && (is_new_in_job || !knows(job.job_baseline, *verdict)) {
            continue;
        }
        lesson.learned += i64::from(is_new_in_job);
        for baseline in job.baselines() {
            let counts =
                is_new_in_job && !before.in_run.contains(&(baseline, endpoint.clone(), *verdict));
            let row = (baseline, endpoint.clone(), *verdict, i64::from(counts), calls.clone());
            lesson.rows.push(row);
            if !is_new_in_job {
                continue;
            }
            let others = [Verdict::Allowed, Verdict::WouldBlock].map(verdict_code);
            let was_reached = others.iter().any(|verdict| knows(baseline, *verdict));
            // Of two verdicts that reach it in one batch the first counts.
            let is_second = *verdict != BLOCKED
                && others
                    .iter()
                    .any(|other| other < verdict && sums.contains_key(&(endpoint.clone(), *other)));
            if *verdict != BLOCKED && !was_reached && !is_second {
                *lesson.added.entry(baseline).or_default() += 1;
            }
            if baseline != job.job_baseline || was_reached || is_second {
                continue;
            }
            let reached_now =
                others.iter().any(|verdict| sums.contains_key(&(endpoint.clone(), *verdict)));
            if *verdict != BLOCKED || !knows(baseline, BLOCKED) && !reached_now {
                lesson.fresh.push((endpoint.clone(), *verdict, calls.clone()));
            }
        }
    }
    lesson.rows.sort_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
    lesson
}

/// What is told of a new endpoint. Connections from outside and frames that bypass IP have detections of their own.
pub(super) fn evidence(endpoint: &str, verdict: i16, runs: u32) -> Option<String> {
    if endpoint.starts_with("from ") || endpoint.starts_with("frame ") {
        return None;
    }
    let became = match verdict {
        BLOCKED => "it was stopped",
        code if code == verdict_code(Verdict::WouldBlock) => {
            "no endpoint of its policy allows it, and it went through because the policy audits"
        }
        _ => "its policy allows it",
    };
    Some(format!(
        "{endpoint} was never called before by this job, whose last {runs} runs called nothing new; {became}"
    ))
}

/// Learns from a batch: `$sums` are its [`CallSums`], `$of_job` what the job had called before it. Gives how many endpoints were
/// learned, and the detections that are to be stored.
macro_rules! learn {
    ($transaction:expr, $job:expr, $job_id:expr, $sums:expr, $of_job:expr, $thresholds:expr) => {{
        use portcullis_common::event::Process;
        use $crate::database::learning::{
            Before, Learned, MAX_LEARNED_OF_JOB, MAX_TOLD_OF_JOB, NEW_OUTBOUND_NETWORK_CALL, PER_STATEMENT,
        };
        let (job, sums, of_job) = ($job, $sums, $of_job);
        let new: Vec<&(String, i16)> = sums.keys().filter(|pair| !of_job.contains(*pair)).collect();
        let mut before = Before::default();
        if !new.is_empty() || job.learned >= MAX_LEARNED_OF_JOB {
            // Locks: jobs of one run, and runs of one job, learn one after the other.
            for (sql, key) in [
                ("UPDATE runs SET started_ms = started_ms WHERE key = $1", job.run),
                ("UPDATE baselines SET source = source WHERE key = $1", job.job_baseline),
            ] {
                sqlx::query(sql).bind(key).execute(&mut *$transaction).await?;
            }
            let endpoints: Vec<&str> = {
                let mut endpoints: Vec<&str> = sums.keys().map(|(endpoint, _)| endpoint.as_str()).collect();
                endpoints.dedup();
                endpoints
            };
            for part in endpoints.chunks(PER_STATEMENT) {
                let mut query = sqlx::QueryBuilder::new(
                    "SELECT baseline, endpoint, verdict FROM baseline_endpoints WHERE baseline IN (",
                );
                let mut list = query.separated(", ");
                for baseline in job.baselines() {
                    list.push_bind(baseline);
                }
                query.push(") AND endpoint IN (");
                let mut list = query.separated(", ");
                for endpoint in part {
                    list.push_bind((*endpoint).to_owned());
                }
                query.push(")");
                let known: Vec<(i64, String, i16)> =
                    query.build_query_as().fetch_all(&mut *$transaction).await?;
                before.known.extend(known);
                let mut query = sqlx::QueryBuilder::new(
                    "SELECT DISTINCT j.baseline, d.endpoint, d.verdict FROM job_baselines j \
                     JOIN destinations d ON d.job = j.job WHERE j.run = ",
                );
                query.push_bind(job.run).push(" AND j.job <> ").push_bind(job.key);
                query.push(" AND d.endpoint IN (");
                let mut list = query.separated(", ");
                for endpoint in part {
                    list.push_bind((*endpoint).to_owned());
                }
                query.push(")");
                let in_run: Vec<(i64, String, i16)> =
                    query.build_query_as().fetch_all(&mut *$transaction).await?;
                before.in_run.extend(in_run);
            }
        }
        let lesson = $crate::database::learning::lesson(job, sums, of_job, &before);
        let mut told = 0_i64;
        let mut found = Vec::new();
        if !lesson.fresh.is_empty() && job.told < MAX_TOLD_OF_JOB {
            let rows: Vec<(i64,)> = sqlx::query_as(
                "SELECT added FROM baseline_runs WHERE baseline = $1 AND run <> $2 AND ended_ms IS NOT NULL \
                 ORDER BY run DESC LIMIT $3",
            )
            .bind(job.job_baseline)
            .bind(job.run)
            .bind($thresholds.rows())
            .fetch_all(&mut *$transaction)
            .await?;
            if $thresholds.judge(rows.iter().map(|(added,)| *added)) == Learned::Stable {
                for (endpoint, verdict, calls) in &lesson.fresh {
                    let Some(mut evidence) =
                        $crate::database::learning::evidence(endpoint, *verdict, $thresholds.window_runs)
                    else {
                        continue;
                    };
                    if job.told + told == MAX_TOLD_OF_JOB {
                        break;
                    }
                    told += 1;
                    if job.told + told == MAX_TOLD_OF_JOB {
                        evidence.push_str("; more new endpoints of this job are not told one by one");
                    }
                    found.push($crate::database::NewDetection {
                        id: format!("{}-{}-new", $job_id, calls.first_seq),
                        seq: Some($crate::database::signed(calls.first_seq)),
                        kind: NEW_OUTBOUND_NETWORK_CALL.to_owned(),
                        time_us: calls.first_us,
                        evidence,
                        is_lockdown: false,
                        process: calls.process.clone().map(|exe| Process {
                            exe: Some(exe),
                            ..Process::default()
                        }),
                        endpoint: Some(endpoint.clone()),
                    });
                }
            }
        }
        for (baseline, added) in &lesson.added {
            sqlx::query(
                "INSERT INTO baseline_runs (baseline, run, added) VALUES ($1, $2, $3) \
                 ON CONFLICT (baseline, run) DO UPDATE SET added = baseline_runs.added + excluded.added",
            )
            .bind(*baseline)
            .bind(job.run)
            .bind(*added)
            .execute(&mut *$transaction)
            .await?;
        }
        for rows in lesson.rows.chunks(PER_STATEMENT) {
            let mut insert = sqlx::QueryBuilder::new(
                "INSERT INTO baseline_endpoints (baseline, endpoint, verdict, calls, runs, first_us, last_us) ",
            );
            insert.push_values(rows, |mut values, (baseline, endpoint, verdict, runs, calls)| {
                values
                    .push_bind(*baseline)
                    .push_bind(endpoint.clone())
                    .push_bind(*verdict)
                    .push_bind(calls.count)
                    .push_bind(*runs)
                    .push_bind(calls.first_us)
                    .push_bind(calls.last_us);
            });
            insert.push(
                " ON CONFLICT (baseline, endpoint, verdict) DO UPDATE SET calls = baseline_endpoints.calls + excluded.calls, \
                 runs = baseline_endpoints.runs + excluded.runs, \
                 first_us = CASE WHEN excluded.first_us < baseline_endpoints.first_us THEN excluded.first_us ELSE baseline_endpoints.first_us END, \
                 last_us = CASE WHEN excluded.last_us > baseline_endpoints.last_us THEN excluded.last_us ELSE baseline_endpoints.last_us END",
            );
            insert.build().execute(&mut *$transaction).await?;
        }
        (lesson.learned, found)
    }};
}

pub(super) use learn;

#[cfg(test)]
mod tests {
    use super::{Before, CallSums, Calls, Learned, LearningJob, Thresholds, evidence, lesson};
    use std::collections::BTreeSet;

    const USUAL: Thresholds = Thresholds { min_runs: 3, window_runs: 3, max_changed_runs: 1 };

    #[test]
    fn a_baseline_is_stable_when_its_last_runs_brought_nothing_new() {
        for (added, expected) in [
            (&[][..], Learned::Creating),
            (&[0, 9], Learned::Creating),
            (&[0, 0, 9], Learned::Stable),
            (&[0, 1, 9], Learned::Unstable),
            (&[0, 1, 0, 9], Learned::Stable),
            (&[1, 1, 0, 9], Learned::Unstable),
        ] {
            assert_eq!(USUAL.judge(added.iter().copied()), expected, "{added:?}");
        }
    }

    const JOB: LearningJob = LearningJob {
        key: 1,
        last_seq: 0,
        run: 1,
        job_baseline: 1,
        repository_baseline: 2,
        organization_baseline: 3,
        cluster_baseline: 4,
        learned: 0,
        told: 0,
    };

    fn sums(pairs: &[(&str, i16)]) -> CallSums {
        let calls = Calls { count: 1, first_us: 0, last_us: 0, first_seq: 1, process: None };
        pairs
            .iter()
            .map(|(name, verdict)| (((*name).to_owned(), *verdict), calls.clone()))
            .collect()
    }

    fn fresh(before: &[(&str, i16)], batch: &[(&str, i16)]) -> Vec<(String, i16)> {
        let known =
            before.iter().map(|(name, verdict)| (1, (*name).to_owned(), *verdict)).collect();
        let before = Before { known, ..Before::default() };
        let lesson = lesson(&JOB, &sums(batch), &BTreeSet::new(), &before);
        lesson.fresh.into_iter().map(|(name, verdict, _)| (name, verdict)).collect()
    }

    #[test]
    fn what_is_new_is_told_once_whatever_became_of_it() {
        for (before, batch, expected) in [
            (&[][..], &[("a", 0)][..], &[("a", 0)][..]),
            (&[("a", 0)], &[("a", 0)], &[]),
            // Reached is reached, by whichever policy.
            (&[("a", 2)], &[("a", 0)], &[]),
            (&[], &[("a", 0), ("a", 2)], &[("a", 0)]),
            // What was stopped once and is stopped again is known; when it gets through, it is news.
            (&[], &[("a", 1)], &[("a", 1)]),
            (&[("a", 1)], &[("a", 1)], &[]),
            (&[("a", 1)], &[("a", 0)], &[("a", 0)]),
            (&[("a", 0)], &[("a", 1)], &[]),
            (&[], &[("a", 1), ("a", 2)], &[("a", 2)]),
        ] {
            let expected: Vec<(String, i16)> =
                expected.iter().map(|(name, verdict)| ((*name).to_owned(), *verdict)).collect();
            assert_eq!(fresh(before, batch), expected, "{before:?} {batch:?}");
        }
    }

    #[test]
    fn a_job_that_scans_teaches_only_so_much() {
        let names: Vec<String> = (0..6000).map(|number| format!("n{number:04}")).collect();
        let pairs: Vec<(&str, i16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let lesson = lesson(&JOB, &sums(&pairs), &BTreeSet::new(), &Before::default());
        assert_eq!((lesson.learned, lesson.rows.len()), (5000, 20_000));
        assert!(lesson.rows.is_sorted_by_key(|row| (row.0, row.1.clone(), row.2)));
        assert!(evidence("frame of arp", 1, 3).is_none() && evidence("a:443", 1, 3).is_some());
    }
}
