//! The archive: nothing is removed before it is there.

use crate::on_both;
use crate::runs::{begin, call, host, lines, new_job, report, upload};
use crate::support::object_store::ObjectStore;
use crate::support::{Server, World, send};
use flate2::read::GzDecoder;
use portcullis_store::configuration::ArchiveConfiguration;
use portcullis_store::database::Retention;
use portcullis_store::notify::archive;
use reqwest::Method;
use serde_json::Value;
use std::io::Read as _;

on_both!(nothing_is_removed_before_it_is_archived);

async fn end(server: &Server, host: &str, id: &str) {
    let put = server.as_caller(host, Method::PUT, &format!("/jobs/{id}/report"));
    assert_eq!(send(put.json(&report(id))).await.status, 204);
}

async fn stored(server: &Server, id: &str) -> usize {
    let page = server.get(&format!("/jobs/{id}/events")).await.expect(200);
    page["items"].as_array().unwrap().len()
}

async fn nothing_is_removed_before_it_is_archived(world: World) {
    let objects = ObjectStore::start("archive").await;
    std::fs::write(world.path("key"), "a-secret-key\n").unwrap();
    let mut configuration = world.configuration();
    configuration.archive = Some(ArchiveConfiguration {
        bucket: "missing".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(objects.url.clone()),
        prefix: "pc".to_owned(),
        access_key_id: "id".to_owned(),
        secret_access_key_file: world.path("key"),
    });
    let id = |number: u64| format!("0197aaaaaaaa70008000{number:012x}");
    let retention = Retention {
        events_before_ms: i64::MAX,
        jobs_before_ms: i64::MAX,
        audit_before_ms: 0,
        deliveries_before_ms: 0,
        only_archived: true,
    };
    let server = world.start_with(configuration.clone()).await;
    let token = server.token.clone();
    let host = host(&server, "prod").await;
    for number in [1, 2] {
        begin(&server, &host, new_job(&id(number), number, "build")).await.expect(200);
        let events: Vec<Value> =
            (1..=3).map(|seq| call(&id(number), seq, "allowed", "a.test")).collect();
        upload(&server, &host, &id(number), lines(&events)).await.expect(200);
    }
    end(&server, &host, &id(1)).await;
    // The archive can't be reached: nothing goes.
    let store = &server.running.store;
    let error = format!("{:#}", archive(store).await.unwrap_err());
    assert!(error.contains("could not be archived"), "{error}");
    while store.database.remove_old(&retention).await.unwrap() {}
    assert_eq!(stored(&server, &id(1)).await, 3);
    server.stop().await;

    // It can.
    "archive".clone_into(&mut configuration.archive.as_mut().unwrap().bucket);
    let mut server = world.start_with(configuration).await;
    server.token = token;
    let store = &server.running.store;
    assert_eq!(archive(store).await.unwrap(), 1, "the job that still runs is not taken");
    assert_eq!(archive(store).await.unwrap(), 0);
    let directory = format!("pc/archive/2026/01/01/{}", id(1));
    let first = format!("{directory}/events-000000000001-000000000003.ndjson.gz");
    assert_eq!(objects.names("archive").await, [first.clone(), format!("{directory}/job.json")]);
    let mut text = String::new();
    GzDecoder::new(&*objects.get("archive", &first).await).read_to_string(&mut text).unwrap();
    let events: Vec<Value> = (1..=3).map(|seq| call(&id(1), seq, "allowed", "a.test")).collect();
    assert_eq!(text, lines(&events), "as it was uploaded");
    let record = objects.json("archive", &format!("{directory}/job.json")).await;
    assert_eq!((&record["state"], &record["report"]["job_id"]), (&"ended".into(), &id(1).into()));

    // What comes late is waited for again.
    upload(&server, &host, &id(1), lines(&[call(&id(1), 4, "allowed", "late.test")]))
        .await
        .expect(200);
    while store.database.remove_old(&retention).await.unwrap() {}
    assert_eq!(stored(&server, &id(1)).await, 4);
    assert_eq!(archive(store).await.unwrap(), 1);
    assert_eq!(objects.names("archive").await.len(), 3);
    while store.database.remove_old(&retention).await.unwrap() {}
    server.get(&format!("/jobs/{}", id(1))).await.problem(404);
    assert_eq!(stored(&server, &id(2)).await, 3, "what runs stays");
    server.stop().await;
}
