//! Reading baselines and what policies are tried on.

use super::learning::Thresholds;
use super::values::{microseconds, verdict_of};
use super::{Database, DatabaseError, read, unsigned};
use portcullis_common::event::Verdict;
use portcullis_common::store_api::{BaselineSource, BaselineState, BaselineSummary};
use sqlx::QueryBuilder;

/// Which kind of baselines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BaselineKind {
    /// Of jobs.
    Job = 1,
    /// Of repositories.
    Repository = 2,
    /// Of organizations.
    Organization = 3,
    /// Of clusters.
    Cluster = 4,
}

impl BaselineKind {
    /// The number in the database.
    pub const fn code(self) -> i16 {
        self as i16
    }
}

/// Which baselines to list.
#[derive(Clone, Debug, Default)]
pub struct BaselineFilter {
    /// Only of this kind.
    pub kind: Option<BaselineKind>,
    /// Only of this organization, its repositories and their jobs.
    pub organization: Option<String>,
    /// Only of this repository and its jobs.
    pub repository: Option<String>,
    /// Only of this cluster.
    pub cluster: Option<String>,
    /// Only of jobs of this workflow.
    pub workflow: Option<String>,
    /// Only of jobs with this key.
    pub job: Option<String>,
    /// Only those that have learned so much.
    pub state: Option<BaselineState>,
    /// Only newer ones than this key.
    pub after: Option<i64>,
}

/// Whose calls to try a policy on.
#[derive(Clone, Debug, Default)]
pub struct TrialFilter {
    /// Only jobs of one of these; empty: of all.
    pub sources: Vec<BaselineSource>,
    /// Only jobs under one of these policies; empty: under any.
    pub policies: Vec<String>,
    /// Only GitHub's run of this id.
    pub run_id: Option<i64>,
    /// Only this job.
    pub job_id: Option<String>,
    /// Only jobs that began at this time or later, in milliseconds.
    pub since_ms: Option<i64>,
    /// The newest so many.
    pub jobs: i64,
}

/// Calls of many jobs to one destination.
#[derive(Clone, Debug)]
pub struct RecordedCalls {
    /// The destination.
    pub endpoint: String,
    /// What became of them.
    pub verdict: Verdict,
    /// Where the name led.
    pub address: Option<String>,
    /// How many.
    pub calls: u64,
    /// Of so many jobs.
    pub jobs: u64,
    /// The first, in microseconds.
    pub first_us: i64,
    /// The last, in microseconds.
    pub last_us: i64,
}

/// Adds the query for the jobs of a [`TrialFilter`]: keys and runs, the newest first.
macro_rules! choose {
    ($query:expr, $filter:expr) => {
        $query.push("SELECT j.key AS key, j.run AS run FROM jobs j WHERE 1 = 1");
        if !$filter.sources.is_empty() {
            let mut before = " AND (";
            for source in &$filter.sources {
                $query.push(before);
                before = " OR ";
                match source.clone() {
                    BaselineSource::Job { repository, workflow, job } => {
                        $query.push("(j.repository = ").push_bind(repository);
                        $query.push(" AND j.workflow_path = ").push_bind(workflow);
                        if !job.is_empty() {
                            $query.push(" AND j.job_name = ").push_bind(job);
                        }
                        $query.push(")");
                    }
                    BaselineSource::Repository { repository } => {
                        $query.push("j.repository = ").push_bind(repository);
                    }
                    BaselineSource::Organization { organization } => {
                        $query.push("j.organization = ").push_bind(organization);
                    }
                    BaselineSource::Cluster { cluster } => {
                        $query.push("j.cluster = ").push_bind(cluster);
                    }
                }
            }
            $query.push(")");
        }
        if !$filter.policies.is_empty() {
            $query.push(" AND j.policy IN (");
            let mut list = $query.separated(", ");
            for policy in &$filter.policies {
                list.push_bind(policy.clone());
            }
            $query.push(")");
        }
        if let Some(run_id) = $filter.run_id {
            $query
                .push(" AND j.run IN (SELECT key FROM runs WHERE run_id = ")
                .push_bind(run_id)
                .push(")");
        }
        if let Some(id) = &$filter.job_id {
            $query.push(" AND j.id = ").push_bind(id.clone());
        }
        if let Some(since) = $filter.since_ms {
            $query.push(" AND j.started_ms >= ").push_bind(since);
        }
        $query.push(" ORDER BY j.key DESC LIMIT ").push_bind($filter.jobs);
    };
}

type SummaryRow =
    (i64, i16, String, String, String, String, String, i64, i64, i64, Option<i64>, Option<i64>);

impl Database {
    /// The key of a baseline; `None` when nothing was learned of it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baseline_key(
        &self,
        source: &BaselineSource,
    ) -> Result<Option<i64>, DatabaseError> {
        const SQL: &str = "SELECT key FROM baselines WHERE source = $1 AND cluster = $2 AND organization = $3 \
            AND repository = $4 AND workflow_path = $5 AND job_name = $6";
        let owner = |repository: &str| repository.split('/').next().unwrap_or_default().to_owned();
        let none = String::new;
        let (kind, cluster, organization, repository, path, name) = match source.clone() {
            BaselineSource::Job { repository, workflow, job } => {
                (BaselineKind::Job, none(), owner(&repository), repository, workflow, job)
            }
            BaselineSource::Repository { repository } => {
                (BaselineKind::Repository, none(), owner(&repository), repository, none(), none())
            }
            BaselineSource::Organization { organization } => {
                (BaselineKind::Organization, none(), organization, none(), none(), none())
            }
            BaselineSource::Cluster { cluster } => {
                (BaselineKind::Cluster, cluster, none(), none(), none(), none())
            }
        };
        let row: Option<(i64,)> = read!(self, |pool| {
            sqlx::query_as(SQL)
                .bind(kind.code())
                .bind(cluster.as_str())
                .bind(organization.as_str())
                .bind(repository.as_str())
                .bind(path.as_str())
                .bind(name.as_str())
                .fetch_optional(pool)
                .await?
        });
        Ok(row.map(|(key,)| key))
    }

    /// Baselines with how much they have learned, the oldest first, each with its key. One baseline when `key` is given.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baselines(
        &self,
        key: Option<i64>,
        filter: &BaselineFilter,
        thresholds: Thresholds,
        limit: u32,
    ) -> Result<Vec<(i64, BaselineSummary)>, DatabaseError> {
        // How many runs count is found without counting all of them.
        const COLUMNS: &str = "SELECT b.key, b.source, b.cluster, b.organization, b.repository, b.workflow_path, b.job_name, \
            (SELECT COUNT(*) FROM baseline_runs r WHERE r.baseline = b.key AND r.ended_ms IS NOT NULL) AS runs, \
            (SELECT COUNT(*) FROM (SELECT added FROM baseline_runs r WHERE r.baseline = b.key AND r.ended_ms IS NOT NULL \
             ORDER BY r.run DESC LIMIT ";
        let rows: Vec<SummaryRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT s.key, s.source, s.cluster, s.organization, s.repository, s.workflow_path, s.job_name, s.runs, s.changed, \
                 (SELECT COUNT(DISTINCT e.endpoint) FROM baseline_endpoints e WHERE e.baseline = s.key AND e.verdict <> 1), \
                 (SELECT MIN(e.first_us) FROM baseline_endpoints e WHERE e.baseline = s.key), \
                 (SELECT MAX(e.last_us) FROM baseline_endpoints e WHERE e.baseline = s.key) FROM (",
            );
            query.push(COLUMNS).push_bind(i64::from(thresholds.window_runs));
            query.push(
                ") AS newest WHERE newest.added > 0) AS changed FROM baselines b \
                 WHERE EXISTS (SELECT 1 FROM baseline_runs r WHERE r.baseline = b.key)",
            );
            if let Some(key) = key {
                query.push(" AND b.key = ").push_bind(key);
            }
            if let Some(kind) = filter.kind {
                query.push(" AND b.source = ").push_bind(kind.code());
            }
            for (column, wanted) in [
                ("organization", &filter.organization),
                ("repository", &filter.repository),
                ("cluster", &filter.cluster),
                ("workflow_path", &filter.workflow),
                ("job_name", &filter.job),
            ] {
                if let Some(wanted) = wanted {
                    query.push(" AND b.").push(column).push(" = ").push_bind(wanted.clone());
                }
            }
            if let Some(after) = filter.after {
                query.push(" AND b.key > ").push_bind(after);
            }
            query.push(") AS s WHERE 1 = 1");
            let (min, max) =
                (i64::from(thresholds.min_runs), i64::from(thresholds.max_changed_runs));
            match filter.state {
                None => {}
                Some(BaselineState::Creating) => {
                    query.push(" AND s.runs < ").push_bind(min);
                }
                Some(BaselineState::Stable) => {
                    query.push(" AND s.runs >= ").push_bind(min);
                    query.push(" AND s.changed <= ").push_bind(max);
                }
                Some(BaselineState::Unstable) => {
                    query.push(" AND s.runs >= ").push_bind(min);
                    query.push(" AND s.changed > ").push_bind(max);
                }
            }
            query.push(" ORDER BY s.key LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter().map(|row| summary(row, thresholds)).collect()
    }

    /// How many jobs and runs a policy is tried on.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn trial_jobs(&self, filter: &TrialFilter) -> Result<(u64, u64), DatabaseError> {
        let (jobs, runs): (i64, i64) = read!(self, |pool| {
            let mut query = QueryBuilder::new("SELECT COUNT(*), COUNT(DISTINCT chosen.run) FROM (");
            choose!(query, filter);
            query.push(") AS chosen");
            query.build_query_as().fetch_one(pool).await?
        });
        Ok((unsigned(jobs), unsigned(runs)))
    }

    /// What the jobs called, those with the most calls first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn trial_calls(
        &self,
        filter: &TrialFilter,
        limit: u32,
    ) -> Result<Vec<RecordedCalls>, DatabaseError> {
        type Row = (String, i16, Option<String>, i64, i64, i64, i64);
        let rows: Vec<Row> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT d.endpoint, d.verdict, d.address, CAST(SUM(d.calls) AS BIGINT), COUNT(DISTINCT d.job), \
                 MIN(d.first_us), MAX(d.last_us) FROM (",
            );
            choose!(query, filter);
            query.push(
                ") AS chosen JOIN destinations d ON d.job = chosen.key GROUP BY d.endpoint, d.verdict, d.address \
                 ORDER BY 4 DESC, d.endpoint, d.verdict, d.address LIMIT ",
            );
            query.push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter()
            .map(|(endpoint, verdict, address, calls, jobs, first_us, last_us)| {
                Ok(RecordedCalls {
                    endpoint,
                    verdict: verdict_of(verdict)?,
                    address,
                    calls: unsigned(calls),
                    jobs: unsigned(jobs),
                    first_us,
                    last_us,
                })
            })
            .collect()
    }
}

fn summary(
    row: SummaryRow,
    thresholds: Thresholds,
) -> Result<(i64, BaselineSummary), DatabaseError> {
    let (
        key,
        source,
        cluster,
        organization,
        repository,
        workflow,
        job,
        runs,
        changed,
        endpoints,
        first,
        last,
    ) = row;
    let source = match source {
        1 => BaselineSource::Job { repository, workflow, job },
        2 => BaselineSource::Repository { repository },
        3 => BaselineSource::Organization { organization },
        4 => BaselineSource::Cluster { cluster },
        other => return Err(DatabaseError::Corrupt(format!("the kind of baseline {other}"))),
    };
    let state = if runs < i64::from(thresholds.min_runs) {
        BaselineState::Creating
    } else if changed <= i64::from(thresholds.max_changed_runs) {
        BaselineState::Stable
    } else {
        BaselineState::Unstable
    };
    let summary = BaselineSummary {
        source,
        state,
        runs: unsigned(runs),
        changed_runs: unsigned(changed),
        endpoints: unsigned(endpoints),
        first_seen: first.map(microseconds).transpose()?,
        last_seen: last.map(microseconds).transpose()?,
    };
    Ok((key, summary))
}

#[cfg(test)]
mod tests {
    use super::BaselineKind;

    #[test]
    fn the_numbers_of_kinds_are_those_of_the_schema() {
        let codes = [
            BaselineKind::Job,
            BaselineKind::Repository,
            BaselineKind::Organization,
            BaselineKind::Cluster,
        ]
        .map(BaselineKind::code);
        assert_eq!(codes, [1, 2, 3, 4]);
    }
}
