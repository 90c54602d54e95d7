//! What waits to be told outlives servers, and is told by one of them.

use crate::notifications::{JOB, configuration, deliveries, happen, make, webhook};
use crate::on_both;
use crate::runs::{begin, host, lines, new_job, upload};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{Backend, World, eventually, run, send};
use crate::suppressions::detection;
use portcullis_common::store_api::DeliveryState;
use portcullis_store::database::{DeliveryFilter, Settled};
use serde_json::{Value, json};
use std::collections::HashSet;

on_both!(nothing_is_lost_over_a_restart, a_lease_that_is_over_is_nobodys);

async fn nothing_is_lost_over_a_restart(world: World) {
    let receiver = Receiver::start().await;
    // The first server may not reach it, so that all is left to the second.
    let mut closed = configuration(&world);
    closed.notifications.allowed_networks = vec!["127.99.0.0/16".parse().unwrap()];
    closed.notifications.retry_seconds = vec![0; 1000];
    let server = world.start_with(closed).await;
    let token = server.token.clone();
    let id = make(&server, "hook", webhook(&receiver.url("/")), json!({})).await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let events: Vec<Value> =
        (1..=20).map(|seq| detection(JOB, seq, "Sudo-Use", "/usr/bin/sudo")).collect();
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    let refused = eventually("it is refused", async || {
        let waiting = deliveries(&server, &id, "pending").await;
        waiting.into_iter().find(|it| it["last_error"].is_string())
    })
    .await;
    let error = refused["last_error"].as_str().unwrap();
    assert!(error.contains("allowed-networks") && error.contains("127.0.0.1"), "{error}");
    server.stop().await;
    assert_eq!(receiver.received().len(), 0);
    let mut server = world.start_with(configuration(&world)).await;
    server.token = token;
    receiver.wait(20).await;
    eventually("all is delivered", async || {
        (deliveries(&server, &id, "delivered").await.len() == 20).then_some(())
    })
    .await;
    let ids: HashSet<String> =
        receiver.received().iter().map(|it| it.json()["data"]["id"].to_string()).collect();
    assert_eq!(ids.len(), 20);
    server.stop().await;
}

async fn a_lease_that_is_over_is_nobodys(world: World) {
    let mut closed = configuration(&world);
    closed.notifications.retry_seconds = vec![3600];
    let server = world.start_with(closed).await;
    let off = json!({ "name": "off", "target": webhook("https://hooks.test/"), "enabled": false });
    let made = server.post("/integrations", off).await.expect(201);
    let id = made["id"].as_str().unwrap();
    let row = server.running.store.database.integration(id).await.unwrap().unwrap();
    assert!(!row.enabled);
    // Written while it is on, by a store that does not empty the outbox.
    let on = json!({ "name": "off", "target": { "kind": "webhook" }, "enabled": true });
    server.put(&format!("/integrations/{id}"), on).await.expect(200);
    let database = &server.running.store.database;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    happen(&server, &host, 1).await;
    eventually("it failed once", async || {
        let waiting = deliveries(&server, id, "pending").await;
        waiting.into_iter().find(|it| it["last_error"].is_string()).map(drop)
    })
    .await;
    let now = jiff::Timestamp::now().as_millisecond() + 2 * 3_600_000;
    let claim = async |holder: &str, now: i64| {
        database.claim_deliveries(id, holder, (now, now + 1000), 8).await.unwrap()
    };
    let first = claim("one", now).await;
    assert_eq!(first.len(), 1);
    assert!(claim("two", now).await.is_empty(), "it is leased");
    assert!(database.due_integrations(now).await.unwrap().is_empty());
    // The first one died; what it says later counts no more.
    let second = claim("two", now + 1001).await;
    assert_eq!((second.len(), second[0].attempts), (1, 3));
    let settled = Settled {
        state: DeliveryState::Delivered,
        due_ms: now,
        now_ms: now,
        status: Some(200),
        error: None,
    };
    assert!(!database.settle_delivery(first[0].key, "one", &settled).await.unwrap());
    assert!(database.settle_delivery(second[0].key, "two", &settled).await.unwrap());
    let all = database.deliveries(&DeliveryFilter::default(), 10).await.unwrap();
    assert_eq!(all[0].1.state, DeliveryState::Delivered);
    server.stop().await;
}

/// Two servers on one database: each message is sent, and by one of them.
#[test]
fn two_servers_share_an_outbox() {
    run(Backend::Postgres, async |world: World| {
        let one = world.start_with(configuration(&world)).await;
        let mut two = world.start_with(configuration(&world)).await;
        two.token.clone_from(&one.token);
        let receiver = Receiver::start().await;
        let id = make(&one, "hook", webhook(&receiver.url("/")), json!({})).await;
        let host = host(&one, "prod").await;
        let jobs: Vec<String> =
            (0..8).map(|number| format!("0197aaaaaaaa70008000{number:012x}")).collect();
        for (server, job) in [&one, &two].into_iter().cycle().zip(&jobs) {
            begin(server, &host, new_job(job, 7, "build")).await.expect(200);
            let events: Vec<Value> =
                (1..=25).map(|seq| detection(job, seq, "Sudo-Use", "/usr/bin/sudo")).collect();
            upload(server, &host, job, lines(&events)).await.expect(200);
        }
        eventually("all is delivered", async || {
            let counts = one.running.store.database.delivery_counts().await.unwrap();
            (counts.get(&id).copied().unwrap_or_default() == (0, 0)).then_some(())
        })
        .await;
        let received = receiver.received();
        let ids: HashSet<String> =
            received.iter().map(|it| it.json()["data"]["id"].to_string()).collect();
        assert_eq!((ids.len(), received.len()), (200, 200), "each once");
        one.stop().await;
        two.stop().await;
    });
}

/// A server that is killed while it sends: what it held is sent by another.
#[test]
fn what_a_killed_server_held_is_sent_by_another() {
    run(Backend::Postgres, async |world: World| {
        let receiver = Receiver::start().await;
        receiver.always(Some(Answer::Hang));
        let survivor = world.start_with(configuration(&world)).await;
        let hook = make(&survivor, "hook", webhook(&receiver.url("/")), json!({})).await;
        // The one that takes the upload knows at once that there is something to send.
        let file = world.path("store.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\n[database]\nurl = \"{}\"\n[notifications]\nallowed-networks = [\"127.0.0.0/8\"]\n\
             allow-http = true\ntimeout-seconds = 3\nretry-seconds = [0, 0]\n",
            world.database_url()
        );
        std::fs::write(&file, text).unwrap();
        let address_file = world.path("address");
        let mut killed = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["serve".as_ref(), "--config".as_ref(), file.as_os_str()])
            .args(["--address-file".as_ref(), address_file.as_os_str()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let address = eventually("the other server listens", async || {
            std::fs::read_to_string(&address_file).ok().filter(|text| !text.is_empty())
        })
        .await;
        let host = host(&survivor, "prod").await;
        begin(&survivor, &host, new_job(JOB, 7, "build")).await.expect(200);
        let events: Vec<Value> =
            (1..=8).map(|seq| detection(JOB, seq, "Sudo-Use", "/usr/bin/sudo")).collect();
        let url = format!("http://{}/api/v1/jobs/{JOB}/events", address.trim());
        let upload = survivor.client.post(url).bearer_auth(&host).body(lines(&events));
        send(upload.header("content-type", "application/x-ndjson")).await.expect(200);
        receiver.wait(1).await;
        let database = &survivor.running.store.database;
        let held = database.due_integrations(jiff::Timestamp::now().as_millisecond()).await;
        killed.kill().unwrap();
        killed.wait().unwrap();
        receiver.always(None);
        assert_eq!(held.unwrap(), Vec::<String>::new(), "somebody held all of it");
        eventually("all is delivered", async || {
            (deliveries(&survivor, &hook, "delivered").await.len() == 8).then_some(())
        })
        .await;
        let ids: HashSet<String> =
            receiver.received().iter().map(|it| it.json()["data"]["id"].to_string()).collect();
        assert_eq!(ids.len(), 8);
        survivor.stop().await;
    });
}
