//! What a hostile or broken caller sends.

use crate::on_both;
use crate::support::{World, context, eventually, send};
use reqwest::Method;
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

on_both!(
    bodies_are_bounded,
    a_body_that_trickles_in_is_given_up,
    text_is_text,
    too_many_requests_are_refused,
    the_database_goes_away
);

async fn bodies_are_bounded(world: World) {
    let server = world.start().await;
    let large = vec![b'a'; 100 * 1024 * 1024];
    let put = server.request(Method::PUT, "/policies/p").body(large);
    // The server may hang up before it has read everything; then there is no answer to look at.
    if let Ok(response) = put.send().await {
        assert_eq!(response.status(), 413);
    }
    // 1 GiB of zeros in a megabyte.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1024 * 1024];
    for _ in 0..256 {
        bomb.write_all(&zeros).unwrap();
    }
    let packed = bomb.finish().unwrap();
    let put =
        server.request(Method::PUT, "/policies/p").header("content-encoding", "gzip").body(packed);
    send(put).await.problem(413);
    // Several members in one are no body to begin with; a frame that says how to make much of little is one.
    let bombs = [("gzip", bombs_in_gzip(), 400), ("zstd", bomb_in_zstd(), 413)];
    for (encoding, bomb, status) in bombs {
        for path in ["/policies:import", "/jobs/none/events", "/resolve"] {
            let host = server.enrol("prod").await["credential"].as_str().unwrap().to_owned();
            let caller = if path.starts_with("/jobs") { &host } else { &server.token };
            let post = server.as_caller(caller, Method::POST, path);
            let post = post.header("content-type", "application/json");
            let post = post.header("content-encoding", encoding).body(bomb.clone());
            send(post).await.problem(status);
        }
    }
    for encoding in ["br", "gzip, gzip", "identity, br", "x"] {
        let put = server.request(Method::PUT, "/policies/p");
        send(put.header("content-encoding", encoding).body("x")).await.problem(415);
    }
    let put = server
        .request(Method::PUT, "/policies/p")
        .header("content-encoding", "gzip")
        .body("no gzip");
    send(put).await.problem(400);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{\"name\":1,\"role\":\"viewer\"}",
        "{\"name\":\"a\",\"role\":\"root\"}",
    ] {
        let post =
            server.request(Method::POST, "/tokens").header("content-type", "application/json");
        let reply = send(post.body(body)).await;
        assert!(reply.status.is_client_error(), "{body}: {reply:?}");
        reply.problem(400);
    }
    send(server.anonymous(Method::GET, "/nowhere")).await.problem(404);
    send(server.anonymous(Method::PATCH, "/api/v1/policies")).await.problem(405);
    assert_eq!(send(server.anonymous(Method::GET, "/healthz")).await.status, 200);
    server.stop().await;
}

/// Somebody who sends a byte now and then is told that it takes too long, in the words of every other refusal.
async fn a_body_that_trickles_in_is_given_up(world: World) {
    let mut configuration = world.configuration();
    configuration.limits.request_timeout_seconds = 1;
    let server = world.start_with(configuration).await;
    let mut stream = TcpStream::connect(server.running.address).await.unwrap();
    let head = format!(
        "PUT /api/v1/policies/p HTTP/1.1\r\nHost: store\r\nAuthorization: Bearer {}\r\nContent-Length: 100000\r\n\r\n",
        server.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let trickle = async {
        loop {
            if writing.write_all(b"#").await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = async {
        let mut told = Vec::new();
        // The server closes the connection behind its answer: the rest of the body would never come.
        while reading.read_buf(&mut told).await.is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&told);
            if text.contains("\r\n\r\n") && text.ends_with('}') {
                break;
            }
        }
        String::from_utf8(told).unwrap()
    };
    let told = tokio::select! { told = answer => told, () = trickle => unreachable!() };
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{told}");
    let head = head.to_lowercase();
    for line in ["content-type: application/problem+json", "retry-after: 2", "x-request-id: "] {
        assert!(head.contains(line), "{told}");
    }
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&problem["type"], &problem["status"], &problem["detail"]),
        (
            &json!("urn:portcullis:problem:unavailable"),
            &json!(503),
            &json!("the request took longer than 1 seconds")
        )
    );
    server.get("/policies/p").await.problem(404);
    // It is counted as any other answer.
    let metrics = send(server.anonymous(Method::GET, "/metrics")).await.text;
    let counted = metrics.lines().any(|line| {
        line.starts_with("portcullis_store_requests_total")
            && line.contains("route=\"/api/v1/policies/{name}\"")
            && line.contains("status=\"503\"")
            && line.ends_with(" 1")
    });
    assert!(counted, "{metrics}");
    server.stop().await;
}

/// 64 MiB of zeros, as several members of one file.
fn bombs_in_gzip() -> Vec<u8> {
    let mut whole = Vec::new();
    for _ in 0..8 {
        let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        member.write_all(&vec![0; 8 * 1024 * 1024]).unwrap();
        whole.extend(member.finish().unwrap());
    }
    whole
}

/// 256 MiB of spaces in 8 KiB: a frame of RFC 8878 whose blocks say "128 KiB of this byte".
fn bomb_in_zstd() -> Vec<u8> {
    const BLOCK: u32 = 128 * 1024;
    const RUN_LENGTH: u32 = 1;
    // The magic number, no options, a window of 128 KiB (exponent 7 above 2^10).
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    for index in 1..=2048_u32 {
        let header = BLOCK << 3 | RUN_LENGTH << 1 | u32::from(index == 2048);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}

/// Every text that comes from outside is bound, never pasted into SQL.
async fn text_is_text(world: World) {
    let server = world.start().await;
    server.put_policy("p", "name: p\negress-policy: audit\n").await.expect(201);
    for evil in [
        "'; DROP TABLE policies; --",
        "\" OR 1=1",
        "%",
        "_",
        "${7*7}",
        "{{7*7}}",
        "\\",
        "\u{202e}",
        "a\u{0}b",
    ] {
        let evil: &str = evil;
        for query in ["/policies", "/audit-log", "/policies/p/versions"] {
            let get = server.request(Method::GET, query).query(&[
                ("cursor", evil),
                ("actor", evil),
                ("prefix", evil),
            ]);
            let status = send(get).await.status.as_u16();
            assert!(status == 400 || status == 200, "{query} {evil:?}: {status}");
        }
        let name = server.post("/tokens", json!({ "name": evil, "role": "viewer" })).await;
        assert!([201, 400].contains(&name.status.as_u16()), "{evil:?}: {name:?}");
        let path = format!(
            "/policies/{}",
            url::form_urlencoded::byte_serialize(evil.as_bytes()).collect::<String>()
        );
        server.get(&path).await.problem(if evil.contains('\0') { 400 } else { 404 });
        let put = server
            .request(Method::PUT, "/policies/p")
            .query(&[("comment", evil), ("source", evil)]);
        let status = send(put.body("name: p\negress-policy: audit\n")).await.status.as_u16();
        assert!([200, 400].contains(&status), "{evil:?}: {status}");
        let mut context = context();
        evil.clone_into(&mut context.workflow);
        let status = server.post("/resolve", json!({ "context": context })).await.status.as_u16();
        assert!([200, 400].contains(&status), "{evil:?}: {status}");
    }
    assert_eq!(server.get("/policies").await.expect(200)["items"].as_array().unwrap().len(), 1);
    server.stop().await;
}

async fn too_many_requests_are_refused(world: World) {
    let mut configuration = world.configuration();
    configuration.limits.requests_per_second = 1;
    configuration.limits.burst = 5;
    configuration.limits.failed_sign_ins_per_minute = 3;
    let server = world.start_with(configuration).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(server.get("/policies").await.status.as_u16());
    }
    assert!(
        statuses[..5].iter().all(|status| *status == 200) && statuses.contains(&429),
        "{statuses:?}"
    );
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(
            send(server.as_caller("pct_guess", Method::GET, "/policies")).await.status.as_u16(),
        );
    }
    assert_eq!(statuses[..4], [401, 401, 401, 429]);
    server.stop().await;
}

/// A database that is killed makes answers 503, never 500 and never wrong, and all is well when it is back.
async fn the_database_goes_away(mut world: World) {
    let server = world.start().await;
    server.put_policy("p", "name: p\negress-policy: audit\n").await.expect(201);
    let Some(postgres) = &mut world.postgres else { return server.stop().await };
    postgres.kill();
    server.get("/policies").await.problem(503);
    server.put_policy("q", "name: q\negress-policy: audit\n").await.problem(503);
    send(server.anonymous(Method::GET, "/readyz")).await.problem(503);
    assert_eq!(send(server.anonymous(Method::GET, "/healthz")).await.status, 200);
    postgres.restart();
    eventually("it is ready again", async || {
        let status = send(server.anonymous(Method::GET, "/readyz")).await.status;
        (status == 200).then_some(())
    })
    .await;
    assert_eq!(server.get("/policies").await.expect(200)["items"].as_array().unwrap().len(), 1);
    server.stop().await;
}
