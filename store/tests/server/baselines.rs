//! What is learned from runs, what is told of it, and what policies are made of it.

use crate::on_both;
use crate::runs::{begin, call, host, lines, new_job, report, upload};
use crate::support::{Server, World, send};
use reqwest::Method;
use serde_json::{Value, json};

on_both!(
    new_destinations_of_a_stable_job_are_told_once,
    jobs_of_one_run_learn_together,
    a_job_that_scans_is_bounded,
    endpoints_are_imported_from_baselines_and_lists,
    policies_are_tried_on_recorded_runs,
);

fn id(number: u64) -> String {
    format!("0197aaaaaaaa70008000{number:012x}")
}

const JOB: &str =
    "source=job&repository=octo/hello&workflow=octo/hello/.github/workflows/ci.yml&job=build";

async fn small_window(world: &World) -> Server {
    let mut configuration = world.configuration();
    configuration.baseline.min_runs = 3;
    configuration.baseline.window_runs = 3;
    configuration.baseline.max_changed_runs = 1;
    world.start_with(configuration).await
}

async fn end(server: &Server, host: &str, job: &str) {
    let put = server.as_caller(host, Method::PUT, &format!("/jobs/{job}/report"));
    assert_eq!(send(put.json(&report(job))).await.status, 204);
}

/// A run with one job that calls names with verdicts.
async fn run_job(server: &Server, host: &str, number: u64, calls: &[(&str, &str)]) {
    begin(server, host, new_job(&id(number), number, "build")).await.expect(200);
    let events: Vec<Value> = calls
        .iter()
        .zip(1..)
        .map(|((name, verdict), seq)| call(&id(number), seq, verdict, name))
        .collect();
    upload(server, host, &id(number), lines(&events)).await.expect(200);
    end(server, host, &id(number)).await;
}

async fn state(server: &Server, filter: &str) -> Vec<(String, u64, u64, u64)> {
    let page = server.get(&format!("/baselines/states?{filter}")).await.expect(200);
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let number = |key: &str| item[key].as_u64().unwrap();
            (
                item["state"].as_str().unwrap().to_owned(),
                number("runs"),
                number("changed_runs"),
                number("endpoints"),
            )
        })
        .collect()
}

async fn told(server: &Server) -> Vec<(String, u64)> {
    let page = server.get("/detections?type=New-Outbound-Network-Call").await.expect(200);
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (item["endpoint"].as_str().unwrap().to_owned(), item["run_id"].as_u64().unwrap())
        })
        .collect()
}

async fn new_destinations_of_a_stable_job_are_told_once(world: World) {
    let server = small_window(&world).await;
    let host = host(&server, "prod").await;
    let own =
        |state: &str, runs, changed, endpoints| vec![(state.to_owned(), runs, changed, endpoints)];
    for (number, expected) in
        [(1, own("creating", 1, 1, 1)), (2, own("creating", 2, 1, 1)), (3, own("stable", 3, 1, 1))]
    {
        run_job(&server, &host, number, &[("a.test", "allowed")]).await;
        assert_eq!(state(&server, "source=job").await, expected);
    }
    // Learning was no news.
    assert_eq!(told(&server).await, []);

    // A batch that comes again, overlaps or comes too early tells nothing twice.
    begin(&server, &host, new_job(&id(4), 4, "build")).await.expect(200);
    let events: Vec<Value> =
        ["a.test", "new.test", "new.test", "stopped.test", "stopped.test", "new.test"]
            .iter()
            .zip(1..)
            .map(|(name, seq)| {
                call(&id(4), seq, if name.starts_with('s') { "blocked" } else { "allowed" }, name)
            })
            .collect();
    upload(&server, &host, &id(4), lines(&events[3..])).await.problem(409);
    for range in [0..2, 0..2, 1..4, 0..4, 2..6, 0..6] {
        upload(&server, &host, &id(4), lines(&events[range])).await.expect(200);
    }
    end(&server, &host, &id(4)).await;
    let found = [("stopped.test:443".to_owned(), 4), ("new.test:443".to_owned(), 4)];
    assert_eq!(told(&server).await, found);
    let job = server.get(&format!("/jobs/{}", id(4))).await.expect(200);
    assert_eq!(job["detections"], 2);
    let page = server.get(&format!("/detections?job={}", id(4))).await.expect(200);
    let first = &page["items"][1];
    assert_eq!(
        (first["seq"].as_u64(), first["process"].as_str(), first["is_lockdown"].as_bool()),
        (Some(2), Some("/usr/bin/curl"), Some(false))
    );
    assert!(first["evidence"].as_str().unwrap().contains("its policy allows it"), "{first}");

    // What is known is no news, also what was stopped; a job of another name learns for itself.
    run_job(&server, &host, 5, &[("new.test", "allowed"), ("stopped.test", "blocked")]).await;
    begin(&server, &host, new_job(&id(6), 6, "other")).await.expect(200);
    upload(&server, &host, &id(6), lines(&[call(&id(6), 1, "allowed", "else.test")]))
        .await
        .expect(200);
    assert_eq!(told(&server).await, found);
    // What was stopped and gets through is.
    run_job(&server, &host, 7, &[("stopped.test", "would-block")]).await;
    assert_eq!(told(&server).await.first(), Some(&("stopped.test:443".to_owned(), 7)));
    // Two of the last three runs brought something: nothing is told until it is calm again.
    assert_eq!(state(&server, "source=job&state=unstable").await, own("unstable", 6, 2, 3));
    run_job(&server, &host, 8, &[("restless.test", "allowed")]).await;
    assert_eq!(told(&server).await.len(), 3);
    assert_eq!(state(&server, "source=job&state=stable").await, []);
    let all = state(&server, "repository=octo/hello").await;
    assert_eq!(all.len(), 3, "two jobs and the repository: {all:?}");
    assert_eq!(state(&server, "source=cluster").await.len(), 1);
    assert_eq!(state(&server, "source=cluster&cluster=prod").await.len(), 1);
    assert_eq!(state(&server, "cluster=nobodys").await, []);
    assert_eq!(state(&server, "source=job&job=build").await.len(), 1);
    assert_eq!(state(&server, "source=job&workflow=elsewhere").await, []);
    let paged = server.get("/baselines/states?limit=1").await.expect(200);
    let next = paged["next_cursor"].as_str().unwrap();
    assert_eq!(state(&server, &format!("cursor={next}")).await.len(), 4);
    server.stop().await;
}

async fn jobs_of_one_run_learn_together(world: World) {
    let server = small_window(&world).await;
    let (one, two) = (host(&server, "prod").await, host(&server, "dev").await);
    for number in 1..=3 {
        run_job(&server, &one, number, &[("a.test", "allowed")]).await;
    }
    // Two legs of a matrix on two clusters: one run, one piece of news.
    let leg = |number: u64| new_job(&id(number), 9, "build");
    begin(&server, &one, leg(91)).await.expect(200);
    begin(&server, &two, leg(92)).await.expect(200);
    for (host, number) in [(&one, 91), (&two, 92)] {
        let events = [
            call(&id(number), 1, "allowed", "a.test"),
            call(&id(number), 2, "allowed", "new.test"),
        ];
        upload(&server, host, &id(number), lines(&events)).await.expect(200);
        end(&server, host, &id(number)).await;
    }
    assert_eq!(told(&server).await, [("new.test:443".to_owned(), 9)]);
    let runs = async |query: &str| {
        let page = server.get(&format!("/baselines?{query}")).await.expect(200);
        let counted =
            |item: &Value| (item["runs"].as_u64().unwrap(), item["calls"].as_u64().unwrap());
        page["items"].as_array().unwrap().iter().map(counted).collect::<Vec<_>>()
    };
    for query in
        [JOB, "source=repository&repository=Octo/Hello", "source=organization&organization=octo"]
    {
        assert_eq!(runs(query).await, [(4, 10), (1, 4)], "{query}");
    }
    assert_eq!(runs("source=cluster&cluster=prod").await, [(4, 8), (1, 2)]);
    assert_eq!(runs("source=cluster&cluster=dev").await, [(1, 2), (1, 2)]);
    assert_eq!(runs(&format!("{JOB}&min_runs=2")).await, [(4, 10)]);
    assert_eq!(runs(&format!("{JOB}&endpoint=new")).await, [(1, 4)]);
    // Destinations add up the same, whether a baseline has them or not.
    let of_jobs = "workflow=octo/hello/.github/workflows/ci.yml&since=2020-01-01T00:00:00Z";
    for query in ["", "organization=octo", "organization=octo&since=2020-01-01T00:00:00Z", of_jobs]
    {
        let page = server.get(&format!("/destinations?{query}")).await.expect(200);
        assert_eq!(
            (page["items"][0]["runs"].as_u64(), page["items"][0]["calls"].as_u64()),
            (Some(4), Some(10)),
            "{query}"
        );
    }

    // A leg that is forgotten takes only what was its own.
    let database = &server.running.store.database;
    let forget = portcullis_store::database::Retention {
        events_before_ms: 0,
        jobs_before_ms: i64::MAX,
        audit_before_ms: 0,
        deliveries_before_ms: 0,
        only_archived: false,
    };
    begin(&server, &one, new_job(&id(10), 9, "build")).await.expect(200);
    upload(&server, &one, &id(10), lines(&[call(&id(10), 1, "allowed", "new.test")]))
        .await
        .expect(200);
    while database.remove_old(&forget).await.unwrap() {}
    assert_eq!(runs(JOB).await, [(1, 2)], "the job that runs is left");
    assert_eq!(runs("source=cluster&cluster=dev").await, []);
    assert_eq!(state(&server, "source=job").await, [("creating".to_owned(), 1, 1, 1)]);
    server.stop().await;
}

async fn a_job_that_scans_is_bounded(world: World) {
    let server = small_window(&world).await;
    let host = host(&server, "prod").await;
    for number in 1..=3 {
        run_job(&server, &host, number, &[("a.test", "allowed")]).await;
    }
    begin(&server, &host, new_job(&id(4), 4, "build")).await.expect(200);
    for part in 0..4_u64 {
        let first = part * 2000 + 1;
        let events: Vec<Value> = (first..first + 2000)
            .map(|seq| call(&id(4), seq, "blocked", &format!("n{seq}.test")))
            .collect();
        upload(&server, &host, &id(4), lines(&events)).await.expect(200);
    }
    let page = server.get("/detections?limit=1000").await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 100);
    assert!(page["items"][0]["evidence"].as_str().unwrap().ends_with("not told one by one"));
    let database = &server.running.store.database;
    let source =
        portcullis_common::store_api::BaselineSource::Cluster { cluster: "prod".to_owned() };
    let key = database.baseline_key(&source).await.unwrap();
    let filter = portcullis_store::database::EndpointFilter::default();
    let learned = database.baseline_endpoints(key, &filter, 20_000).await.unwrap();
    assert_eq!(learned.len(), 5001);
    let job = server.get(&format!("/jobs/{}", id(4))).await.expect(200);
    assert_eq!(job["blocked"], 16_000, "all is counted");
    server.stop().await;
}

async fn endpoints_are_imported_from_baselines_and_lists(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    run_job(
        &server,
        &host,
        1,
        &[
            ("a.test", "allowed"),
            ("b.test", "would-block"),
            ("evil.test", "blocked"),
            ("x.wide.test", "allowed"),
            ("no.test", "allowed"),
        ],
    )
    .await;
    run_job(&server, &host, 2, &[("a.test", "allowed")]).await;
    server
        .put_policy("base", "name: base\nallowed-endpoints: ['*.wide.test:443']\n")
        .await
        .expect(201);
    server
        .put_policy("build", "name: build\negress-policy: block\nextends: [base]\nallowed-endpoints: [github.com]\ndenied-endpoints: ['no.test:*']\n")
        .await
        .expect(201);
    let source = json!({ "source": "repository", "repository": "octo/Hello" });
    let preview = json!({ "baseline": source, "dry_run": true });
    let shown = server.post("/policies/build/import-endpoints", preview).await.expect(200);
    assert_eq!(shown["added"], json!(["a.test:443", "b.test:443"]));
    assert_eq!(
        shown["already_allowed"],
        json!([{ "endpoint": "x.wide.test:443", "reason": "`*.wide.test:443` of policy `base` allows it" }])
    );
    assert_eq!(
        shown["left_out"],
        json!([{ "endpoint": "no.test:443", "reason": "`no.test:*` of policy `build` denies it" }])
    );
    assert_eq!((&shown["version"], &shown["dry_run"]), (&json!(1), &json!(true)));
    assert_eq!(server.get("/policies/build").await.expect(200)["version"], 1);

    let often = json!({ "baseline": source, "min_runs": 2 });
    let done = server.post("/policies/build/import-endpoints", often).await.expect(200);
    assert_eq!((&done["added"], &done["version"]), (&json!(["a.test:443"]), &json!(2)));
    // Again: nothing is left to add, and no version is made.
    let list = json!({ "endpoints": ["a.test", "10.0.0.0/8:5432", "*.com", "10.0.0.0/8:5432"] });
    for (added, version) in [(json!(["10.0.0.0/8:5432"]), 3), (json!([]), 3)] {
        let done = server.post("/policies/build/import-endpoints", list.clone()).await.expect(200);
        assert_eq!((&done["added"], &done["version"]), (&added, &json!(version)));
        assert_eq!(done["left_out"][0]["endpoint"], "*.com");
    }
    let endpoints =
        server.request(Method::GET, "/policies/build/endpoints").header("accept", "text/plain");
    assert_eq!(
        send(endpoints).await.text,
        "github.com\na.test:443\n10.0.0.0/8:5432\n*.wide.test:443\n"
    );
    let history = server.get("/policies/build/versions").await.expect(200);
    assert_eq!(
        history["items"][1]["comment"],
        "endpoints of the baseline of repository octo/hello"
    );
    let audit = server.get("/audit-log?action=policy.import-endpoints").await.expect(200);
    assert_eq!(audit["items"].as_array().unwrap().len(), 2);
    // A base that no mode says of can be extended by endpoints, too.
    let one = json!({ "endpoints": ["c.test"] });
    server.post("/policies/base/import-endpoints", one.clone()).await.expect(200);
    let stale =
        server.request(Method::POST, "/policies/base/import-endpoints").header("if-match", "\"1\"");
    send(stale.json(&json!({ "endpoints": ["d.test"] }))).await.problem(412);
    for bad in [json!({}), json!({ "baseline": source, "endpoints": ["a.test"] })] {
        server.post("/policies/build/import-endpoints", bad).await.problem(400);
    }
    server.post("/policies/none/import-endpoints", one).await.problem(404);
    let nobody = json!({ "baseline": { "source": "cluster", "cluster": "x" } });
    server.post("/policies/build/import-endpoints", nobody).await.problem(404);

    // From each kind of baseline; all of them learned the same here, but for calls that only some runs made.
    for (name, source) in [
        ("organization", json!({ "source": "organization", "organization": "octo" })),
        ("repository", json!({ "source": "repository", "repository": "octo/hello" })),
        ("cluster", json!({ "source": "cluster", "cluster": "prod" })),
        (
            "job",
            json!({ "source": "job", "repository": "octo/hello", "workflow": "octo/hello/.github/workflows/ci.yml", "job": "build" }),
        ),
    ] {
        let policy = format!("from-{name}");
        let yaml = format!("name: {policy}\negress-policy: block\n");
        server.put_policy(&policy, &yaml).await.expect(201);
        let body = json!({ "baseline": source });
        let path = format!("/policies/{policy}/import-endpoints");
        let done = server.post(&path, body).await.expect(200);
        let expected = json!(["a.test:443", "b.test:443", "no.test:443", "x.wide.test:443"]);
        assert_eq!((&done["added"], &done["version"]), (&expected, &json!(2)), "{name}: {done}");
        server.delete(&format!("/policies/{policy}")).await;
    }

    // A policy of its own.
    let job = json!({ "source": "job", "repository": "octo/hello", "workflow": "octo/hello/.github/workflows/ci.yml", "job": "build" });
    let made = json!({ "name": "learned", "baseline": job, "dry_run": true });
    let shown = server.post("/policies:from-baseline", made).await.expect(200);
    assert_eq!(shown["document"]["egress_policy"], "audit");
    assert_eq!(shown.get("version"), None);
    server.get("/policies/learned").await.problem(404);
    let made = json!({ "name": "learned", "baseline": job, "egress_policy": "block" });
    let done = server.post("/policies:from-baseline", made.clone()).await.expect(200);
    assert_eq!(done["version"], 1);
    let policy = server.get("/policies/learned").await.expect(200);
    assert_eq!(
        policy["document"]["allowed_endpoints"],
        json!(["a.test:443", "b.test:443", "no.test:443", "x.wide.test:443"])
    );
    server.post("/policies:from-baseline", made).await.problem(409);
    server
        .post("/policies:from-baseline", json!({ "name": "No Name", "baseline": job }))
        .await
        .problem(400);
    server.stop().await;
}

async fn policies_are_tried_on_recorded_runs(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    run_job(
        &server,
        &host,
        1,
        &[
            ("a.test", "allowed"),
            ("b.test", "allowed"),
            ("github.com", "allowed"),
            ("c.test", "blocked"),
        ],
    )
    .await;
    run_job(&server, &host, 2, &[("a.test", "allowed"), ("d.test", "would-block")]).await;
    let document = "name: tried\negress-policy: block\nallowed-endpoints: [a.test, '*.x.test:80', c.test, never.test]\ndenied-endpoints: [d.test]\n";
    let all = json!({ "document": document, "runs_of": { "source": "organization", "organization": "octo" } });
    let tried = server.post("/policies:dry-run", all.clone()).await.expect(200);
    let list = |tried: &Value, key: &str| -> Vec<String> {
        tried[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["endpoint"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(list(&tried, "not_allowed"), ["b.test:443", "d.test:443"]);
    assert_eq!(list(&tried, "newly_allowed"), ["c.test:443"]);
    assert_eq!(list(&tried, "unused"), ["*.x.test:80", "never.test"]);
    assert_eq!(
        (&tried["jobs"], &tried["runs"], &tried["allowed"], &tried["blocked"]),
        (&json!(2), &json!(2), &json!(8), &json!(4))
    );
    assert_eq!(tried["not_allowed"][0]["rule"], "no endpoint allows it");
    assert_eq!(
        (&tried["not_allowed"][1]["rule"], &tried["not_allowed"][1]["verdict"]),
        (&json!("d.test"), &json!("blocked"))
    );
    assert_eq!(tried["not_allowed"][0]["address"], "192.0.2.1");
    // What an address of the name was denied for, and audit mode.
    let audit = document.replace("block", "audit").replace("[d.test]", "['192.0.2.0/24:443']");
    let tried = server
        .post("/policies:dry-run", json!({ "document": audit, "run_id": 2 }))
        .await
        .expect(200);
    assert_eq!(
        (&tried["jobs"], &tried["blocked"], &tried["would_block"]),
        (&json!(1), &json!(2), &json!(2))
    );
    // A stored one: where it is attached.
    server.put_policy("tried", document).await.expect(201);
    server.post("/policies:dry-run", json!({ "policy": "tried" })).await.problem(400);
    for target in [
        json!({ "workflow": "octo/hello/.github/workflows/ci.yml" }),
        json!({ "cluster": "nowhere" }),
    ] {
        server.post("/policies/tried/attachments", target).await;
    }
    let stored = server.post("/policies:dry-run", json!({ "policy": "tried" })).await.expect(200);
    assert_eq!((list(&stored, "not_allowed").len(), &stored["jobs"]), (2, &json!(2)));
    let one = server
        .post("/policies:dry-run", json!({ "policy": "tried", "job_id": id(2) }))
        .await
        .expect(200);
    assert_eq!(one["jobs"], 1);
    for (bad, status) in [
        (json!({ "policy": "none", "run_id": 1 }), 404),
        (json!({ "document": "name: x\n", "run_id": 1 }), 422),
        (json!({ "document": "name: x\negress-policy: block\n", "policy": "tried" }), 400),
        (json!({ "run_id": 1 }), 400),
    ] {
        assert_eq!(
            server.post("/policies:dry-run", bad.clone()).await.status.as_u16(),
            status,
            "{bad}"
        );
    }

    // Lint: what no job under the policy has called. Jobs of the tests began at the beginning of 2026.
    server
        .put_policy("p", "name: p\negress-policy: block\nallowed-endpoints: [a.test, never.test]\n")
        .await
        .expect(201);
    let lint = server.get("/policies/p/lint?unused_days=3650").await.expect(200);
    assert_eq!(list(&lint, "items"), ["never.test"]);
    assert_eq!(
        lint["items"][0]["message"],
        "`never.test` was called by none of the 2 jobs of the last 3650 days"
    );
    assert_eq!(server.get("/policies/p/lint").await.expect(200)["items"], json!([]));
    assert_eq!(server.get("/policies/p/lint?unused_days=0").await.expect(200)["items"], json!([]));
    server.stop().await;
}
