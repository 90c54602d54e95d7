//! What breaks beneath the server, or the server itself: nothing that was acknowledged is lost, and nothing counts twice.

use crate::on_both;
use crate::runs::{JOB, call, lines, new_job};
use crate::support::postgres::Postgres;
use crate::support::replica::{Replica, TOKEN, wait_for};
use crate::support::small_disk::SmallDisk;
use crate::support::{World, send};
use nix::sys::signal::Signal;
use portcullis_store::database::Database;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

on_both!(
    replicas_that_are_killed_lose_and_double_nothing,
    the_database_is_killed_in_the_middle_of_an_upload,
    a_full_disk_refuses_and_loses_nothing,
    replicas_migrate_at_the_same_time,
    what_has_begun_is_answered_before_the_end
);

/// Events of a batch.
const BATCH: u64 = 50;

/// Sends batches until the store has `total` events, to whichever address is given at the time, as a monitor does: after an
/// error the same again. Returns how often something else than success was answered.
async fn upload(
    address: impl Fn() -> Option<String>,
    host: &str,
    total: u64,
    acknowledged: &AtomicU64,
) -> u64 {
    let client = reqwest::Client::new();
    let (mut next, mut failures) = (acknowledged.load(Ordering::SeqCst) + 1, 0);
    while next <= total {
        let Some(address) = address() else {
            tokio::task::yield_now().await;
            continue;
        };
        let last = (next + BATCH - 1).min(total);
        let batch: Vec<Value> =
            (next..=last).map(|seq| call(JOB, seq, "allowed", "a.test")).collect();
        let request = client
            .post(format!("http://{address}/api/v1/jobs/{JOB}/events"))
            .bearer_auth(host)
            .timeout(Duration::from_secs(20))
            .body(lines(&batch));
        match request.send().await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                let Ok(accepted) = answer.json::<Value>().await else { continue };
                let last_seq = accepted["last_seq"].as_u64().unwrap();
                assert!(last_seq >= last, "{last_seq} after {last}");
                acknowledged.fetch_max(last_seq, Ordering::SeqCst);
                next = last_seq + 1;
            }
            Ok(answer) => {
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
                failures += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Cut off: whether it was stored is not known, so it is sent again.
            Err(_) => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    failures
}

/// Every event is there, once, in the list and in every sum.
async fn assert_exact(replica: &Replica, total: u64) {
    let job = replica.get(&format!("/jobs/{JOB}")).await.expect(200);
    assert_eq!((job["events"].as_u64(), job["allowed"].as_u64()), (Some(total), Some(2 * total)));
    let destinations = replica.get("/destinations").await.expect(200);
    assert_eq!(destinations["items"][0]["calls"].as_u64(), Some(2 * total), "{destinations}");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = replica.get(&format!("/jobs/{JOB}/events?limit=1000{cursor}")).await.expect(200);
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|event| event["seq"].as_u64().unwrap()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(seen.iter().copied().eq(1..=total), "{} events, not 1 to {total}", seen.len());
}

/// 20 KB that no database makes smaller.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut letter = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + u8::try_from(state % 90).unwrap())
    };
    (0..20_000).map(|_| letter()).collect()
}

async fn begin(replica: &Replica) -> String {
    let host = replica.enrol().await;
    let job = new_job(JOB, 7, "build");
    send(replica.request(&host, Method::POST, "/jobs").json(&job)).await.expect(200);
    host
}

/// `kill -9` of one replica after the other, while batches arrive at both. With SQLite there is one, which is started again.
async fn replicas_that_are_killed_lose_and_double_nothing(world: World) {
    const TOTAL: u64 = 3000;
    const KILLS: usize = 6;
    let count = if world.postgres.is_some() { 2 } else { 1 };
    let mut replicas: Vec<Option<Replica>> =
        (0..count).map(|number| Some(Replica::start(&world, &format!("r{number}")))).collect();
    let host = begin(replicas[0].as_ref().unwrap()).await;
    let addresses = std::sync::Mutex::new(
        replicas.iter().flatten().map(|replica| replica.address.clone()).collect::<Vec<_>>(),
    );
    let (acknowledged, turn) = (AtomicU64::new(0), AtomicU64::new(0));
    let address = || {
        let turn = usize::try_from(turn.fetch_add(1, Ordering::SeqCst)).unwrap();
        let addresses = addresses.lock().unwrap();
        addresses.get(turn % addresses.len().max(1)).cloned()
    };
    let killing = async {
        for kill in 0..KILLS {
            // In the middle: when so much has arrived, and more is under way.
            let due = TOTAL * (kill as u64 + 1) / (KILLS as u64 + 2);
            while acknowledged.load(Ordering::SeqCst) < due {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let number = kill % count;
            let before = acknowledged.load(Ordering::SeqCst);
            tokio::task::block_in_place(|| {
                replicas[number].take().unwrap().kill();
                replicas[number] = Some(Replica::start(&world, &format!("r{number}")));
            });
            let replica = replicas[number].as_ref().unwrap();
            addresses.lock().unwrap()[number].clone_from(&replica.address);
            let job = replica.get(&format!("/jobs/{JOB}")).await.expect(200);
            assert!(job["events"].as_u64() >= Some(before), "{job} after {before}");
        }
    };
    let (failures, ()) = tokio::join!(upload(address, &host, TOTAL, &acknowledged), killing);
    assert!(failures > 0, "nobody noticed the kills");
    for replica in replicas.iter().flatten() {
        assert_exact(replica, TOTAL).await;
    }
}

/// PostgreSQL is killed as by a crash while batches arrive. (SQLite has no process but the server's, which is killed above.)
async fn the_database_is_killed_in_the_middle_of_an_upload(mut world: World) {
    const TOTAL: u64 = 2000;
    let replica = Replica::start(&world, "r");
    let host = begin(&replica).await;
    let acknowledged = AtomicU64::new(0);
    let killing = async {
        let Some(postgres) = &mut world.postgres else { return };
        for due in [TOTAL / 4, TOTAL / 2] {
            while acknowledged.load(Ordering::SeqCst) < due {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::block_in_place(|| {
                postgres.kill();
                postgres.restart();
            });
        }
    };
    let address = || Some(replica.address.clone());
    tokio::join!(upload(address, &host, TOTAL, &acknowledged), killing);
    assert_exact(&replica, TOTAL).await;
}

/// The disk fills up: uploads are refused with 503, reading goes on, and with space again everything goes on from where it was.
async fn a_full_disk_refuses_and_loses_nothing(mut world: World) {
    const MIB: u64 = 1024 * 1024;
    let own_disk;
    let replica = if world.postgres.is_some() {
        world.postgres = Some(Postgres::start_on_small_disk(56 * MIB));
        own_disk = None;
        Replica::start(&world, "r")
    } else {
        let path = world.path("disk");
        std::fs::create_dir(&path).unwrap();
        let disk = SmallDisk::at(&path, 3 * MIB, 0);
        let program = disk.command(env!("CARGO_BIN_EXE_portcullis"));
        let url = format!("sqlite:{}", path.join("store.db").display());
        let replica = Replica::start_by(program, &world, "r", &url);
        own_disk = Some(disk);
        replica
    };
    let host = begin(&replica).await;
    let mut acknowledged = 0;
    let refused = loop {
        let first = acknowledged + 1;
        // 20 KB an event: the disk is full soon, and not because of the sums.
        let batch: Vec<Value> = (first..first + BATCH)
            .map(|seq| {
                let mut event = call(JOB, seq, "allowed", "a.test");
                event["rule"] = noise(seq).into();
                event
            })
            .collect();
        let post = replica.request(&host, Method::POST, &format!("/jobs/{JOB}/events"));
        let reply = send(post.body(lines(&batch))).await;
        if reply.status != 200 {
            break reply;
        }
        acknowledged = reply.json()["last_seq"].as_u64().unwrap();
        assert!(acknowledged < 20_000, "the disk does not fill up");
    };
    assert_eq!(refused.problem(503).0, "unavailable", "{}", replica.log());
    assert!(acknowledged > 0, "nothing fitted");
    match (&own_disk, &mut world.postgres) {
        (Some(disk), _) => {
            let job = replica.get(&format!("/jobs/{JOB}")).await.expect(200);
            assert_eq!(job["events"].as_u64(), Some(acknowledged), "reading goes on");
            disk.resize(64 * MIB);
        }
        (None, Some(postgres)) => postgres.disk().unwrap().resize(256 * MIB),
        (None, None) => unreachable!("one of both is small"),
    }
    let total = acknowledged + 4 * BATCH;
    let counter = AtomicU64::new(acknowledged);
    let uploading = upload(|| Some(replica.address.clone()), &host, total, &counter);
    tokio::pin!(uploading);
    loop {
        tokio::select! {
            _ = &mut uploading => break,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        // It gives up when it can't write its log of changes, a while after it refused; an operator starts it again.
        if let Some(postgres) = &mut world.postgres
            && postgres.has_ended()
        {
            tokio::task::block_in_place(|| postgres.restart());
        }
    }
    assert_exact(&replica, total).await;
    assert!(!replica.log().contains("\"level\":\"ERROR\""), "{}", replica.log());
}

/// Several start on an empty database: within one process, as processes, and all at once.
async fn replicas_migrate_at_the_same_time(world: World) {
    let url = world.database_url();
    let opening = (0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { Database::open(&url, 2).await.map(drop) })
    });
    let opening: Vec<_> = opening.collect();
    let migrating = (0..3).map(|_| {
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["migrate", "--database", &url])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    let migrating: Vec<_> = migrating.collect();
    for opened in opening {
        opened.await.unwrap().unwrap();
    }
    for child in migrating {
        let output = tokio::task::block_in_place(|| child.wait_with_output()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // What they made is whole, and there is one first token, one signing key.
    let (one, two) = (world.start().await, world.start().await);
    assert!(one.running.first_token.is_some() && two.running.first_token.is_none());
    let keys = [&one, &two].map(|server| server.running.store.signer.public().x.clone());
    assert_eq!(keys[0], keys[1]);
    one.stop().await;
    two.stop().await;
}

/// SIGTERM while a request is on its way: it is answered, what is stored is stored, and the server ends well.
async fn what_has_begun_is_answered_before_the_end(world: World) {
    let replica = Replica::start(&world, "r");
    let host = begin(&replica).await;
    let body = lines(&[call(JOB, 1, "allowed", "a.test")]);
    let (sent, rest) = body.split_at(body.len() / 2);
    let mut stream = TcpStream::connect(&replica.address).unwrap();
    write!(
        stream,
        "POST /api/v1/jobs/{JOB}/events HTTP/1.1\r\nHost: store\r\nAuthorization: Bearer {host}\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // The server asks for the body when it has begun with the request.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(sent.as_bytes()).unwrap();
    replica.signal(Signal::SIGTERM);
    wait_for("it to take no more connections", || TcpStream::connect(&replica.address).err());
    stream.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"last_seq\":1"), "{answer}");
    assert!(replica.wait().success());
    let replica = Replica::start(&world, "r");
    let job = replica.get(&format!("/jobs/{JOB}")).await.expect(200);
    assert_eq!(job["events"], 1);
    assert_eq!(send(replica.request(TOKEN, Method::GET, "/policies")).await.status, 200);
}

#[test]
fn a_disk_of_a_test_is_seen_by_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::at(directory.path(), 1024 * 1024, 0);
    let touched = disk.command("touch").arg(directory.path().join("x")).status().unwrap();
    assert!(touched.success() && !directory.path().join("x").exists());
}
