//! A database of every earlier version, with data, is brought up to date and says what it said before.
//!
//! `migrations/NNNN.sql` is what a server of that version wrote.

use crate::on_both;
use crate::support::{Server, World, context, send};
use portcullis_store::identity::secret::hash;
use reqwest::Method;
use serde_json::json;
use sqlx::migrate::{Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

on_both!(every_earlier_version_with_data, a_newer_database_is_refused);

const TOKEN: &str = "pct_of_an_earlier_version";
const CREDENTIAL: &str = "pch_of_an_earlier_version";

fn directory(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/database/migrations").join(kind)
}

/// What a server of this version wrote, with what does not fit into a file of SQL.
fn data(version: i64) -> Option<String> {
    let path = format!("tests/server/migrations/{version:04}.sql");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()?;
    let mut event = crate::runs::call(crate::runs::JOB, 1, "allowed", "github.com");
    event["rule"] = "github.com:443".into();
    let text = text
        .replace("{token}", &hash(TOKEN))
        .replace("{credential}", &hash(CREDENTIAL))
        .replace("{context}", &serde_json::to_string(&context()).unwrap())
        .replace("{event}", &event.to_string());
    Some(text)
}

/// Makes a database as a server of the schema's version `version` left it, after it had been one of every version before.
async fn make(url: &str, migrations: &[Migration], version: i64) {
    let steps = migrations.iter().filter(|step| step.version <= version);
    for step in steps {
        let known: Vec<Migration> =
            migrations.iter().filter(|other| other.version <= step.version).cloned().collect();
        let migrator = Migrator { migrations: Cow::Owned(known), ..Migrator::DEFAULT };
        let data = data(step.version).unwrap_or_default();
        if let Some(path) = url.strip_prefix("sqlite:") {
            let url = format!("sqlite:{path}?mode=rwc");
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            migrator.run(&mut connection).await.unwrap();
            connection.execute(sqlx::raw_sql(AssertSqlSafe(data))).await.unwrap();
            connection.close().await.unwrap();
        } else {
            let mut connection = PgConnection::connect(url).await.unwrap();
            migrator.run(&mut connection).await.unwrap();
            connection.execute(sqlx::raw_sql(AssertSqlSafe(data))).await.unwrap();
            connection.close().await.unwrap();
        }
    }
}

async fn migrations(world: &World) -> Vec<Migration> {
    let kind = if world.postgres.is_some() { "postgres" } else { "sqlite" };
    Migrator::new(directory(kind)).await.unwrap().iter().cloned().collect()
}

fn database(world: &World, name: &str) -> String {
    match &world.postgres {
        Some(postgres) => postgres.make_database(name),
        None => format!("sqlite:{}", world.path(&format!("{name}.db")).display()),
    }
}

async fn every_earlier_version_with_data(world: World) {
    let migrations = migrations(&world).await;
    for migration in &migrations {
        assert!(data(migration.version).is_some(), "no data of version {}", migration.version);
    }
    for migration in &migrations {
        let version = migration.version;
        let url = database(&world, &format!("v{version}"));
        make(&url, &migrations, version).await;
        let mut configuration = world.configuration();
        configuration.database.url = url;
        let mut server = world.start_with(configuration).await;
        assert_eq!(server.running.first_token.is_some(), version < 2, "version {version}");
        if version >= 2 {
            TOKEN.clone_into(&mut server.token);
        }
        assert_policies(&server).await;
        if version >= 2 {
            assert_identities(&server).await;
        }
        if version >= 3 {
            assert_runs(&server).await;
            let states = server.get("/hosts:state").await.expect(200);
            let (host, level) = (&states["items"][0]["host_id"], &states["items"][0]["level"]);
            assert_eq!((host, level), (&json!("h1"), &json!("enforced")), "{states}");
        }
        if version >= 4 {
            let rules = server.get("/suppressions").await.expect(200);
            let rule = &rules["items"][0];
            assert_eq!((&rule["reason"], &rule["suppressed"]), (&json!("a drill"), &json!(1)));
        }
        if version >= 5 {
            let states = server.get("/baselines/states?source=job").await.expect(200);
            let learned = &states["items"][0];
            assert_eq!(
                (&learned["runs"], &learned["endpoints"]),
                (&json!(2), &json!(2)),
                "{states}"
            );
        }
        if version >= 7 {
            assert_sessions(&server, version).await;
        }
        let job = server.get(&format!("/jobs/{}", crate::runs::JOB)).await;
        if version >= 11 {
            let workflow = "octo/shared/.github/workflows/build.yml@refs/tags/v1";
            assert_eq!(job.expect(200)["job_workflow_ref"], workflow);
        } else if version >= 3 {
            assert!(job.expect(200).get("job_workflow_ref").is_none(), "nobody knows");
        }
        server.stop().await;
    }
}

async fn assert_policies(server: &Server) {
    let policy = server.get("/policies/build").await.expect(200);
    assert_eq!((&policy["version"], &policy["egress_policy"]), (&json!(2), &json!("block")));
    assert_eq!(policy["attachments"][0]["repository"], "octo/hello");
    let versions = server.get("/policies/build/versions").await.expect(200);
    assert_eq!(versions["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(versions["items"][0]["comment"], "it is 'tight' now");
    let diff = server.get("/policies/build/versions/1").await.expect(200);
    assert_eq!(diff["author"], "token:ada");
    let log = server.get("/audit-log?action=policy").await.expect(200);
    assert_eq!(log["items"][0]["address"], "192.0.2.7");
    // It goes on from there.
    let put = server.put_policy("build", "name: build\negress-policy: audit\n").await;
    assert_eq!(put.expect(200)["version"], 3);
    let kept = server.running.store.database.setting_or_insert("kept", "new").await.unwrap();
    assert_eq!(kept, "as it is");
}

async fn assert_identities(server: &Server) {
    let tokens = server.get("/tokens").await.expect(200);
    assert_eq!(tokens["items"][0]["name"], "ada");
    assert_eq!(server.get("/hosts").await.expect(200)["items"][0]["cluster"], "prod");
    assert_eq!(server.get("/enrolments").await.expect(200)["items"][0]["hosts_left"], 3);
    // The host's credential has no end, as then; it is renewed all the same.
    let as_host = |method, path: &str| server.as_caller(CREDENTIAL, method, path);
    let body = json!({ "context": context() });
    send(as_host(Method::POST, "/resolve").json(&body)).await.expect(200);
    let renewed = send(as_host(Method::POST, "/host/credential")).await.expect(201);
    assert!(renewed["expires_at"].is_string());
    let used =
        server.running.store.database.claim_id_token("used", "another", None, 0).await.unwrap();
    assert!(!used, "a token that was used stays used");
}

async fn assert_runs(server: &Server) {
    let run = server.get("/runs/7").await.expect(200);
    let job = &run["job_records"][0];
    assert_eq!((&job["events"], &job["state"]), (&json!(1), &json!("ended")), "{run}");
    let events =
        server.get(&format!("/jobs/{}/network-events", crate::runs::JOB)).await.expect(200);
    assert_eq!(events["items"][0]["name"], "github.com", "{events}");
    let detections = server.get("/detections").await.expect(200);
    assert_eq!(detections["items"][0]["evidence"], "a shell", "{detections}");
    let destinations = server.get("/destinations").await.expect(200);
    assert_eq!(destinations["items"][0]["endpoint"], "github.com:443");
    // A job of an earlier version goes on being uploaded.
    let next = crate::runs::call(crate::runs::JOB, 2, "allowed", "github.com");
    let path = format!("/jobs/{}/events", crate::runs::JOB);
    let post = server.as_caller(CREDENTIAL, Method::POST, &path);
    assert_eq!(send(post.body(format!("{next}\n"))).await.expect(200)["last_seq"], 2);
}

/// Who signed in with a token stays signed in; a person does who has groups.
async fn assert_sessions(server: &Server, version: i64) {
    let now = jiff::Timestamp::now().as_millisecond();
    let database = &server.running.store.database;
    let name = async |hash: &str| {
        let session = database.session(hash, now).await.unwrap()?;
        Some((session.caller.actor(), session.vouched.map(|vouched| vouched.groups)))
    };
    assert_eq!(name("of a token").await, Some(("token:ada".to_owned(), None)));
    assert_eq!(name("of a person").await, None);
    let groups = Some(vec!["developers".to_owned()]);
    let with_groups = (version >= 8).then(|| ("person:ada@example.com".to_owned(), groups));
    assert_eq!(name("with groups").await, with_groups);
}

/// A program that is older than its database says so, and changes nothing.
async fn a_newer_database_is_refused(world: World) {
    let url = database(&world, "newer");
    let mut all = migrations(&world).await;
    let last = all.last().cloned().unwrap();
    let sql = AssertSqlSafe("CREATE TABLE of_the_future (id BIGINT)".to_owned());
    all.push(Migration {
        version: 9999,
        checksum: Cow::Borrowed(b"x"),
        sql: sqlx::SqlSafeStr::into_sql_str(sql),
        ..last
    });
    make(&url, &all, 9999).await;
    let mut configuration = world.configuration();
    configuration.database.url = url;
    let error = portcullis_store::serve::start(configuration).await.unwrap_err();
    let told = format!("{error:#}");
    assert!(told.contains("schema") && told.contains("9999"), "{told}");
}
