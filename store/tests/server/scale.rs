//! What keeps reading fast when there is much: the schema's indices are used, and a store of an earlier version gets what
//! newer queries read. What it is measured with is like what hosts upload.

use crate::on_both;
use crate::support::World;
use portcullis_common::event::Verdict;
use portcullis_store::database::{Database, EventFilter, EventName, Generated, RunFilter};
use sqlx::migrate::Migrator;
use std::borrow::Cow;

on_both!(
    events_are_read_by_indices,
    an_earlier_store_gets_its_baselines,
    generated_jobs_are_like_uploaded_ones,
);

async fn events_are_read_by_indices(world: World) {
    let database = Database::open(&world.database_url(), 2).await.unwrap();
    let wanted = Generated {
        jobs: 20,
        events_of_job: 2000,
        repositories: 2,
        endpoints_of_job: 10,
        newest_ms: 1_800_000_000_000,
    };
    database.generate(wanted, |_| ()).await.unwrap();
    if let Database::Postgres(pool) = &database {
        sqlx::query("ANALYZE").execute(pool).await.unwrap();
    }
    let calls = EventFilter { network: true, ..EventFilter::default() };
    for (filter, index) in [
        // SQLite calls the table's own order the primary key.
        (calls.clone(), ["PRIMARY KEY (job=? AND seq>?)", "events_pkey"]),
        (
            EventFilter { after: 1500, ..calls.clone() },
            ["PRIMARY KEY (job=? AND seq>?)", "events_pkey"],
        ),
        (
            EventFilter { verdict: Some(Verdict::Blocked), ..calls },
            ["events_not_allowed", "events_not_allowed"],
        ),
        (
            EventFilter { kind: Some(EventName::Process), ..EventFilter::default() },
            ["events_of_processes", "events_of_processes"],
        ),
        (
            EventFilter { others: true, ..EventFilter::default() },
            ["events_of_processes", "events_of_processes"],
        ),
    ] {
        let plan = database.explain_events(7, &filter).await.unwrap();
        let expected = if matches!(database, Database::Sqlite(_)) { index[0] } else { index[1] };
        assert!(plan.contains(expected) && !plan.contains("Seq Scan"), "{filter:?}: {plan}");
    }
    let plan = database.explain_host_states().await.unwrap();
    let expected = if matches!(database, Database::Sqlite(_)) {
        "jobs_by_host (host_id<?)"
    } else {
        "Index Scan Backward using jobs_by_host"
    };
    assert!(plan.contains(expected), "{plan}");
    // Runs are found by the keys of their jobs and destinations, and by when jobs began; no table of jobs is read from end to
    // end. PostgreSQL reads so few rows as these as a whole.
    for (filter, indices) in [
        (
            RunFilter {
                endpoint: Some("registry.npmjs.org:443".to_owned()),
                ..RunFilter::default()
            },
            ["jobs_by_run", "destinations EXISTS USING PRIMARY KEY (job=? AND endpoint=?)"],
        ),
        (
            RunFilter { since_ms: Some(1_799_999_999_999), ..RunFilter::default() },
            ["jobs_by_run", "COVERING INDEX jobs_by_start (started_ms>?)"],
        ),
    ] {
        let plan = database.explain_runs(&filter).await.unwrap();
        assert!(!plan.is_empty(), "{filter:?}");
        if matches!(database, Database::Sqlite(_)) {
            let is_found = indices.iter().all(|index| plan.contains(index));
            assert!(is_found && !plan.contains("SCAN jobs"), "{filter:?}: {plan}");
        }
    }
    database.close().await;
}

/// The migrations up to a version, as a program of that version has them.
fn up_to(version: i64, all: &Migrator) -> Migrator {
    let migrations = all.iter().filter(|migration| migration.version <= version).cloned().collect();
    Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT }
}

const OLD: &str = "
    INSERT INTO runs (run_id, run_attempt, repository, organization, workflow, workflow_path, started_ms)
        VALUES (1, 1, 'o/r', 'o', 'CI', 'o/r/.github/workflows/ci.yml', 1), (2, 1, 'o/r', 'o', 'CI', 'o/r/.github/workflows/ci.yml', 2);
    INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, policy, policy_version,
        scope, target, identity, mode, started_ms, ended_ms, last_seq, allowed, blocked, would_block, detections)
        SELECT 'job-' || key, key, 'h', 'prod', 'o', 'o/r', 'o/r/.github/workflows/ci.yml', 'build', '{}', 'p', '1', 'cluster', 'prod',
        'asserted', 'block', 1, CASE key WHEN 1 THEN 5 END, 2, 2, 0, 0, 0 FROM runs;
    INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us)
        SELECT key, 'a.test:443', 0, '/bin/a', 3, 10 * key, 20 * key FROM jobs;
    INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us)
        SELECT key, 'a.test:443', 0, '/bin/b', 1, 5, 6 FROM jobs WHERE key = 2;
    INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us)
        SELECT key, 'new.test:443', 2, '/bin/b', 1, 5, 6 FROM jobs WHERE key = 2;";

async fn an_earlier_store_gets_its_baselines(world: World) {
    type Row = (String, i64, i64, i64, i64);
    const ENDPOINTS: &str = "SELECT e.endpoint, e.calls, e.runs, e.first_us, e.last_us FROM baseline_endpoints e \
        JOIN baselines b ON b.key = e.baseline WHERE b.source = 3 ORDER BY e.endpoint";
    const RUNS: &str = "SELECT run, added, CASE WHEN ended_ms IS NULL THEN 0 ELSE 1 END FROM baseline_runs r \
        JOIN baselines b ON b.key = r.baseline WHERE b.source = 1 ORDER BY run";
    let database = Database::connect(&world.database_url(), 2).await.unwrap();
    let (rows, runs): (Vec<Row>, Vec<(i64, i64, i32)>) = match &database {
        Database::Postgres(pool) => {
            up_to(3, &sqlx::migrate!("src/database/migrations/postgres")).run(pool).await.unwrap();
            sqlx::raw_sql(OLD).execute(pool).await.unwrap();
            database.migrate().await.unwrap();
            (
                sqlx::query_as(ENDPOINTS).fetch_all(pool).await.unwrap(),
                sqlx::query_as(RUNS).fetch_all(pool).await.unwrap(),
            )
        }
        Database::Sqlite(_) => {
            let pool = sqlx::SqlitePool::connect(&world.database_url()).await.unwrap();
            up_to(3, &sqlx::migrate!("src/database/migrations/sqlite")).run(&pool).await.unwrap();
            sqlx::raw_sql(OLD).execute(&pool).await.unwrap();
            database.migrate().await.unwrap();
            (
                sqlx::query_as(ENDPOINTS).fetch_all(&pool).await.unwrap(),
                sqlx::query_as(RUNS).fetch_all(&pool).await.unwrap(),
            )
        }
    };
    let endpoint = |name: &str| format!("{name}.test:443");
    assert_eq!(rows, [(endpoint("a"), 7, 2, 5, 40), (endpoint("new"), 1, 1, 5, 6)]);
    assert_eq!(runs, [(1, 1, 1), (2, 1, 0)]);
    database.close().await;
}

async fn generated_jobs_are_like_uploaded_ones(world: World) {
    let database = Database::open(&world.database_url(), 2).await.unwrap();
    let wanted = Generated {
        jobs: 40,
        events_of_job: 100,
        repositories: 3,
        endpoints_of_job: 10,
        newest_ms: 1_800_000_000_000,
    };
    database.generate(wanted, |_| ()).await.unwrap();
    database.close().await;
    let server = world.start().await;
    let runs = server.get("/runs?limit=1").await.expect(200);
    let run = server
        .get(&format!("/runs/{}", runs["items"][0]["id"].as_str().unwrap()))
        .await
        .expect(200);
    let job = &run["job_records"][0];
    let events = server
        .get(&format!("/jobs/{}/network-events?limit=1000", job["id"].as_str().unwrap()))
        .await
        .expect(200);
    let events = events["items"].as_array().unwrap();
    let blocked = events.iter().filter(|event| event["verdict"] == "blocked").count();
    assert_eq!((events.len(), blocked, job["blocked"].as_u64()), (100, 2, Some(2)));
    let tree = server.get(&format!("/jobs/{}/process-tree", job["id"].as_str().unwrap())).await;
    assert!(tree.expect(200).to_string().contains("part-29"));
    let detections = server.get("/detections").await.expect(200);
    let detections = detections["items"].as_array().unwrap();
    let kinds: Vec<_> = detections.iter().map(|found| found["type"].as_str().unwrap()).collect();
    let expected = ["Reverse-Shell", "Source-File-Overwritten", "Sudo-Use", "Reverse-Shell"];
    assert_eq!(kinds, expected);
    let states = server.get("/hosts:state").await.expect(200);
    let states = states["items"].as_array().unwrap();
    let degraded = states.iter().filter(|state| state["level"] == "degraded").count();
    assert_eq!((states.len(), degraded), (20, 4));
    let state = server.get("/hosts/generated-4/state").await.expect(200);
    assert_eq!(state["posture"]["warnings"][0], "table-owner: this kernel is older than 5.12");
    let page = server.get("/destinations").await.expect(200);
    let calls: u64 =
        page["items"].as_array().unwrap().iter().map(|item| item["calls"].as_u64().unwrap()).sum();
    assert_eq!(calls, 4000);
    let states = server.get("/baselines/states?source=repository").await.expect(200);
    assert_eq!(states["items"][0]["state"], "stable");
    server.stop().await;
}
