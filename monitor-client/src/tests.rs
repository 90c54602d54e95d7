use super::{ClientError, Patience, exchange};
use portcullis_common::wire::{Answer, Call, MAX_ANSWER_BYTES, Status};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Patience =
    Patience { connect: Duration::from_millis(200), total: Duration::from_millis(600) };

struct Peer {
    _directory: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

fn peer() -> Peer {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    Peer { _directory: directory, path, listener }
}

fn with_peer(
    behaviour: impl FnOnce(UnixStream) + Send + 'static,
) -> (Result<Answer, ClientError>, Duration) {
    let peer = peer();
    let path = peer.path.clone();
    let serving = thread::spawn(move || behaviour(peer.listener.accept().unwrap().0));
    let started = Instant::now();
    let result = exchange(&path, Call::Status {}, PATIENCE);
    let waited = started.elapsed();
    serving.join().unwrap();
    (result, waited)
}

#[test]
fn an_answer_comes_back() {
    let (result, _) = with_peer(|mut stream| {
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"version\":1,\"request\":\"status\"}\n");
        stream.write_all(b"{\"answer\":\"status\",\"jobs\":[]}\n").unwrap();
    });
    assert_eq!(result.unwrap(), Answer::Status(Status::default()));
}

#[test]
fn a_peer_that_never_answers_costs_the_patience_and_no_more() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let peer = peer();
    let path = peer.path.clone();
    let serving = thread::spawn(move || {
        let stream = peer.listener.accept().unwrap().0;
        held.recv().ok();
        drop(stream);
    });
    let started = Instant::now();
    let error = exchange(&path, Call::Status {}, PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() >= PATIENCE.total);
    drop(release);
    serving.join().unwrap();
}

#[test]
fn a_peer_that_drips_bytes_is_given_up_on() {
    let (result, _) = with_peer(|mut stream| while stream.write_all(b" ").is_ok() {});
    let error = result.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. } | ClientError::TooLong), "{error}");
}

#[test]
fn an_endless_line_is_refused() {
    let (result, _) = with_peer(|mut stream| {
        let chunk = vec![b'x'; MAX_ANSWER_BYTES];
        while stream.write_all(&chunk).is_ok() {}
    });
    let error = result.unwrap_err();
    assert!(matches!(error, ClientError::TooLong | ClientError::TimedOut { .. }), "{error}");
}

#[test]
fn a_busy_monitor_is_asked_again() {
    let peer = peer();
    let path = peer.path.clone();
    let serving = thread::spawn(move || {
        for answer in ["refused\",\"kind\":\"busy\",\"message\":\"\"", "status\",\"jobs\":[]"] {
            let (mut stream, _) = peer.listener.accept().unwrap();
            writeln!(stream, "{{\"answer\":\"{answer}}}").unwrap();
        }
    });
    let answer = exchange(&path, Call::Status {}, PATIENCE).unwrap();
    assert_eq!(answer, Answer::Status(Status::default()));
    serving.join().unwrap();
}

#[test]
fn half_an_answer_is_no_answer() {
    let (result, _) = with_peer(|mut stream| stream.write_all(b"{\"answer\":").unwrap());
    assert!(matches!(result.unwrap_err(), ClientError::NoAnswer));
}

#[test]
fn garbage_is_not_understood() {
    let (result, _) = with_peer(|mut stream| stream.write_all(b"\xff\xfe\n").unwrap());
    assert!(matches!(result.unwrap_err(), ClientError::NotUnderstood(_)));
}

#[test]
fn no_listener_is_told_apart_from_a_broken_one() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("monitor.sock");
    let error = exchange(&missing, Call::Status {}, PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::NotListening { .. }), "{error}");

    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = exchange(&file, Call::Status {}, PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::NotListening { .. }), "{error}");
}

#[test]
fn a_monitor_that_comes_up_late_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("monitor.sock");
    let late = path.clone();
    let serving = thread::spawn(move || {
        let listener = UnixListener::bind(late).unwrap();
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"{\"answer\":\"status\",\"jobs\":[]}\n").unwrap();
        let mut rest = String::new();
        BufReader::new(stream).read_line(&mut rest).unwrap();
    });
    let patience = Patience { connect: Duration::from_secs(10), total: Duration::from_secs(20) };
    exchange(&path, Call::Status {}, patience).unwrap();
    serving.join().unwrap();
}
