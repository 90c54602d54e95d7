//! Reading destinations: those of jobs, added up when they are asked for, and those of baselines, which are added up already.

use super::values::{and_equal, containing, microseconds, verdict_code, verdict_of};
use super::{Database, DatabaseError, read, unsigned};
use portcullis_common::event::Verdict;
use portcullis_common::store_api::DestinationSummary;
use sqlx::QueryBuilder;

/// Which destinations to read.
#[derive(Clone, Debug, Default)]
pub struct EndpointFilter {
    /// Leave out what was stopped.
    pub reached_only: bool,
    /// Only with this verdict.
    pub verdict: Option<Verdict>,
    /// Only endpoints that have this text in them.
    pub containing: Option<String>,
    /// Only what was called in so many runs at least.
    pub min_runs: Option<u32>,
    /// Only what was called at this time or later, in microseconds.
    pub since_us: Option<i64>,
    /// Only what sorts behind this endpoint and verdict.
    pub after: Option<(String, i16)>,
}

/// Whose destinations to add up.
#[derive(Clone, Debug, Default)]
pub struct DestinationFilter {
    /// Only of this organization.
    pub organization: Option<String>,
    /// Only of this repository.
    pub repository: Option<String>,
    /// Only of this cluster.
    pub cluster: Option<String>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only jobs that began at this time or later, in milliseconds.
    pub since_ms: Option<i64>,
    /// Which of them.
    pub endpoints: EndpointFilter,
}

/// A destination: endpoint, verdict, calls, runs, first and last time in microseconds.
type Row = (String, i16, i64, i64, i64, i64);

/// Adds the conditions of an [`EndpointFilter`] that single rows meet or not.
macro_rules! and_endpoints {
    ($query:expr, $filter:expr) => {
        if $filter.reached_only {
            $query.push(" AND verdict <> ").push_bind(verdict_code(Verdict::Blocked));
        }
        and_equal!($query, "verdict", $filter.verdict.map(verdict_code));
        if let Some(text) = &$filter.containing {
            $query.push(" AND endpoint LIKE ").push_bind(containing(text)).push(" ESCAPE '!'");
        }
        if let Some(since) = $filter.since_us {
            $query.push(" AND last_us >= ").push_bind(since);
        }
        if let Some((endpoint, verdict)) = $filter.after.clone() {
            $query.push(" AND (endpoint, verdict) > (").push_bind(endpoint);
            $query.push(", ").push_bind(verdict).push(")");
        }
    };
}

fn summary(row: Row) -> Result<DestinationSummary, DatabaseError> {
    let (endpoint, verdict, calls, runs, first, last) = row;
    Ok(DestinationSummary {
        endpoint,
        verdict: verdict_of(verdict)?,
        calls: unsigned(calls),
        runs: unsigned(runs),
        first_seen: microseconds(first)?,
        last_seen: microseconds(last)?,
    })
}

impl Database {
    /// Destinations over many jobs, by endpoint.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn destinations(
        &self,
        filter: &DestinationFilter,
        limit: u32,
    ) -> Result<Vec<DestinationSummary>, DatabaseError> {
        let rows: Vec<Row> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT endpoint, verdict, CAST(SUM(calls) AS BIGINT), COUNT(DISTINCT run), MIN(first_us), MAX(last_us) \
                 FROM destinations JOIN jobs ON jobs.key = destinations.job WHERE 1 = 1",
            );
            and_equal!(query, "organization", filter.organization.clone());
            and_equal!(query, "repository", filter.repository.clone());
            and_equal!(query, "cluster", filter.cluster.clone());
            and_equal!(query, "workflow_path", filter.workflow.clone());
            if let Some(since) = filter.since_ms {
                query.push(" AND started_ms >= ").push_bind(since);
            }
            and_endpoints!(query, filter.endpoints);
            query.push(" GROUP BY endpoint, verdict");
            if let Some(runs) = filter.endpoints.min_runs {
                query.push(" HAVING COUNT(DISTINCT run) >= ").push_bind(i64::from(runs));
            }
            query.push(" ORDER BY endpoint, verdict LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter().map(summary).collect()
    }

    /// Endpoints of a baseline, by name; of all organizations together when no baseline is named.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baseline_endpoints(
        &self,
        baseline: Option<i64>,
        filter: &EndpointFilter,
        limit: u32,
    ) -> Result<Vec<DestinationSummary>, DatabaseError> {
        let rows: Vec<Row> = read!(self, |pool| {
            let mut query = QueryBuilder::new(match baseline {
                Some(_) => {
                    "SELECT endpoint, verdict, calls, runs, first_us, last_us FROM baseline_endpoints WHERE baseline = "
                }
                None => {
                    "SELECT endpoint, verdict, CAST(SUM(calls) AS BIGINT), CAST(SUM(runs) AS BIGINT), MIN(first_us), MAX(last_us) \
                    FROM baseline_endpoints WHERE baseline IN (SELECT key FROM baselines WHERE source = 3)"
                }
            });
            if let Some(baseline) = baseline {
                query.push_bind(baseline);
            }
            if let Some(runs) = filter.min_runs {
                query.push(" AND runs >= ").push_bind(i64::from(runs));
            }
            and_endpoints!(query, filter);
            if baseline.is_none() {
                query.push(" GROUP BY endpoint, verdict");
            }
            query.push(" ORDER BY endpoint, verdict LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter().map(summary).collect()
    }
}
