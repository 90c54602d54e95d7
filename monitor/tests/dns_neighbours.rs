//! Containers while several jobs run: whose they are can't be told, so that all jobs' policies judge what they ask.

#[cfg(test)]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod dns_support;

use dns_support::*;
use hickory_proto::rr::RecordType::{self, A, AAAA};
use portcullis_common::policy::EgressMode;
use portcullis_monitor::dns::Neighbours;
use std::sync::atomic::Ordering;

/// The network namespace of the jobs, by its inode number.
const NAMESPACE: u64 = 4_026_531_840;

const ZONE: &[(&str, RecordType, &[&str])] = &[
    ("both.test", A, &["@ 120 A 203.0.113.10"]),
    ("both.test", AAAA, &["@ 120 AAAA 2001:db8::10"]),
    ("one.test", A, &["@ 120 A 203.0.113.20"]),
    ("alias.test", A, &["@ 60 CNAME denied.test.", "denied.test. 60 A 203.0.113.66"]),
    ("inner.test", A, &["@ 60 A 192.168.7.7"]),
];

const NOT_BY_ALL: &str = "NXDOMAIN (15: policy node-build: whose the container is can't be told, and another running job's policy does not allow it)";

/// A job's resolver that hears containers.
async fn job(allowed: &[&str], denied: &[&str], mode: EgressMode) -> World {
    World::with(allowed, denied, zone(ZONE), |config| {
        config.listen_anywhere = true;
        config.mode = mode;
    })
    .await
}

async fn blocking_job(allowed: &[&str]) -> World {
    job(allowed, &[], EgressMode::Block).await
}

fn together(jobs: &[&World]) -> Neighbours {
    let neighbours = Neighbours::default();
    for job in jobs {
        job.resolver.answer_together(&neighbours, NAMESPACE);
    }
    neighbours
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_allow_is_answered_and_open_for_all() {
    let (first, second) =
        (blocking_job(&["both.test", "one.test"]).await, blocking_job(&["both.test"]).await);
    together(&[&first, &second]);
    assert_eq!(first.ask_from_container("both.test", A).await, "NOERROR both.test.=203.0.113.10");
    for job in [&first, &second] {
        assert_eq!(job.kernel.open(), ["203.0.113.10:443-443"]);
    }
    first.observes("Allowed both.test A NOERROR: both.test").await;
    // The one that hears it asks; both remember.
    assert_eq!(second.upstream.asked(), [""; 0]);
    assert_eq!(
        first.ask_from_container_by_tcp("both.test", AAAA).await,
        "NOERROR both.test.=2001:db8::10"
    );
    assert_eq!(second.kernel.open(), ["203.0.113.10:443-443", "2001:db8::10:443-443"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_does_not_allow_is_not_asked_for() {
    let (first, second) =
        (blocking_job(&["both.test", "one.test"]).await, blocking_job(&["both.test"]).await);
    together(&[&first, &second]);
    assert_eq!(first.ask_from_container("one.test", A).await, NOT_BY_ALL);
    assert_eq!(first.ask_from_container_by_tcp("one.test", A).await, NOT_BY_ALL);
    first
        .observes("Blocked one.test A NXDOMAIN: whose the container is can't be told, and another running job's policy does not allow it")
        .await;
    assert_eq!(first.upstream.asked(), [""; 0]);
    // The job's own processes are judged by its policy alone, and what they are answered is no answer to a container.
    assert_eq!(first.ask("one.test", A).await, "NOERROR one.test.=203.0.113.20");
    assert_eq!(first.ask_from_container("one.test", A).await, NOT_BY_ALL);
    assert_eq!(first.kernel.open(), ["203.0.113.20:443-443"]);
    assert_eq!(second.kernel.open(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_is_judged_by_all() {
    let names = ["alias.test", "inner.test", "both.test"];
    let first =
        job(&["alias.test", "inner.test", "192.168.7.7", "both.test"], &[], EgressMode::Block)
            .await;
    let second = job(&names, &["denied.test"], EgressMode::Block).await;
    together(&[&first, &second]);
    assert_eq!(first.ask_from_container("alias.test", A).await, NOT_BY_ALL);
    // Only the first one names the private address.
    assert_eq!(first.ask_from_container("inner.test", A).await, NOT_BY_ALL);
    assert_eq!(first.kernel.open(), [""; 0]);
    // What can't be opened for one is answered to nobody.
    second.kernel.refuses.store(true, Ordering::Relaxed);
    let answer = first.ask_from_container("both.test", A).await;
    assert!(answer.starts_with("SERVFAIL"), "{answer}");
    second.kernel.refuses.store(false, Ordering::Relaxed);
    assert_eq!(first.ask_from_container("both.test", A).await, "NOERROR both.test.=203.0.113.10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_takes_over_what_it_allows_and_who_goes_is_not_asked() {
    let first = blocking_job(&["both.test", "one.test"]).await;
    let neighbours = together(&[&first]);
    assert_eq!(first.ask_from_container("one.test", A).await, "NOERROR one.test.=203.0.113.20");
    assert_eq!(first.ask_from_container("both.test", A).await, "NOERROR both.test.=203.0.113.10");
    let second = blocking_job(&["both.test"]).await;
    second.resolver.answer_together(&neighbours, NAMESPACE);
    assert_eq!(second.kernel.open(), ["203.0.113.10:443-443"]);
    // Neither is a remembered answer one any more.
    assert_eq!(first.ask_from_container("one.test", A).await, NOT_BY_ALL);
    // Containers of another machine's part are none of its business.
    let elsewhere = blocking_job(&[]).await;
    elsewhere.resolver.answer_together(&neighbours, NAMESPACE + 1);
    assert_eq!(first.ask_from_container("both.test", A).await, "NOERROR both.test.=203.0.113.10");
    second.resolver.shutdown().await;
    assert_eq!(first.ask_from_container("one.test", A).await, "NOERROR one.test.=203.0.113.20");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_audits_stops_nobody() {
    let first = blocking_job(&["one.test"]).await;
    let second = job(&[], &[], EgressMode::Audit).await;
    together(&[&first, &second]);
    assert_eq!(first.ask_from_container("one.test", A).await, "NOERROR one.test.=203.0.113.20");
    assert_eq!(second.kernel.open(), [""; 0]);
}
