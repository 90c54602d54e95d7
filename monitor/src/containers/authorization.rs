//! The authorization plugin of Docker engines: asked before the engine does what it was asked
//! (<https://docs.docker.com/engine/extend/plugins_authorization/>).
//!
//! It refuses what would make a privileged container, while a job whose policy lists Privileged-Container under Lockdown Mode
//! runs and the request may be that job's. Everything else is allowed at once.
//!
//! The engine does not say who asks. The kernel says who is connected to it: when one of them is the job, the request counts
//! as the job's, and when it can't be told, it is refused but no job is killed for it.

use super::callers::callers;
use super::events::on_host;
use super::judging::is_caller;
use super::{Containers, WatchedJob, facts};
use crate::caller::{ProcFs, ProcessTable};
use crate::detect::privileged_container::request::EngineCall;
use crate::detect::privileged_container::{Privilege, Subject, finding};
use crate::watch::process::ProcessInspector;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Under `/run/docker/plugins`, where engines look for plugins; the name without `.sock` is the plugin's.
pub const SOCKET_PATH: &str = "/run/docker/plugins/portcullis.sock";

/// The name of the descriptor that systemd passes (`FileDescriptorName=`).
pub const DESCRIPTOR_NAME: &str = "docker-plugin";

/// The largest question: an engine hands on bodies of at most 1 MiB, as base64, and headers.
const LARGEST_QUESTION: usize = 4 << 20;

/// Connections at a time. An engine has one for each request that is under way.
const CONNECTIONS: usize = 256;

/// How long a question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// The type that this line of defence is for.
const DETECTION: DetectionType = DetectionType::Lockdown(LockdownDetection::PrivilegedContainer);

/// What the engine asks (`authorization.Request` of moby).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[expect(clippy::struct_field_names, reason = "the names are the engine's")]
struct Question {
    request_method: String,
    #[serde(rename = "RequestURI", alias = "RequestUri")]
    request_uri: String,
    /// Base64, as Go writes bytes.
    request_body: String,
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Answer {
    Allow,
    Refuse(String),
}

/// Answers engines until the task is aborted.
pub async fn serve(containers: Arc<Containers>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Waiting for a place, not refusing: a refused engine would refuse its client.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an engine's question could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let containers = Arc::clone(&containers);
        tokio::spawn(async move {
            answer_engine(containers, stream).await;
            drop(slot);
        });
    }
}

async fn answer_engine(containers: Arc<Containers>, stream: UnixStream) {
    let peer = stream.peer_cred();
    let engine = match &peer {
        Ok(peer) if peer.uid() == 0 => peer.pid().and_then(|pid| u32::try_from(pid).ok()),
        // Only root's engines may ask; the socket's mode says the same.
        _ => return,
    };
    let service = service_fn(move |request| {
        let containers = Arc::clone(&containers);
        async move { Ok::<_, Infallible>(answer(containers, engine, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of an engine failed");
    }
}

async fn answer(
    containers: Arc<Containers>,
    engine: Option<u32>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = match path.as_str() {
        "/Plugin.Activate" => json!({ "Implements": ["authz"] }),
        "/AuthZPlugin.AuthZReq" => {
            let body = Limited::new(request.into_body(), LARGEST_QUESTION).collect();
            let question = match tokio::time::timeout(PATIENCE, body).await {
                Ok(Ok(body)) => serde_json::from_slice::<Question>(&body.to_bytes()).ok(),
                Ok(Err(_)) | Err(_) => None,
            };
            // Looking at files and processes may block.
            let judged = tokio::task::spawn_blocking(move || match question {
                Some(question) => judge(&containers, engine, &question),
                None => unreadable(&containers),
            });
            match judged.await.unwrap_or_else(|error| Answer::Refuse(error.to_string())) {
                Answer::Allow => json!({ "Allow": true }),
                Answer::Refuse(reason) => json!({ "Allow": false, "Msg": reason }),
            }
        }
        // What was done is done.
        _ => json!({ "Allow": true }),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    let kind = hyper::header::HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// A question that can't be read is refused while somebody may hide something in it.
fn unreadable(containers: &Containers) -> Answer {
    let is_guarded = containers.jobs().iter().any(|job| job.responder.would_lock_down(DETECTION));
    if is_guarded {
        Answer::Refuse("Portcullis could not read the engine's question".to_owned())
    } else {
        Answer::Allow
    }
}

fn judge(containers: &Arc<Containers>, engine: Option<u32>, question: &Question) -> Answer {
    let jobs = containers.jobs();
    if jobs.is_empty() {
        return Answer::Allow;
    }
    let body = decode_base64(&question.request_body);
    let call = EngineCall::new(&question.request_method, &question.request_uri, &body);
    let paths = on_host(&call.named_paths());
    let privileges: Vec<Vec<Privilege>> =
        jobs.iter().map(|job| call.privileges(&paths, &job.own)).collect();
    if privileges.iter().all(Vec::is_empty) {
        return Answer::Allow;
    }
    let (responsibility, caller) = who_asks(containers, engine, &jobs);
    let mut answer = Answer::Allow;
    for (index, (job, privileges)) in jobs.iter().zip(privileges).enumerate() {
        let is_certain = match &responsibility {
            Responsibility::Job(responsible) if *responsible == index => true,
            Responsibility::Unknown => false,
            Responsibility::Job(_) | Responsibility::Nobody => continue,
        };
        let is_refused = job.responder.would_lock_down(DETECTION);
        let words: Vec<String> = privileges.iter().map(ToString::to_string).collect();
        if is_refused && !privileges.is_empty() {
            answer = Answer::Refuse(format!(
                "Portcullis: this job's policy forbids privileged containers; {} asks for {}",
                call.name(),
                words.join(", ")
            ));
        }
        let what = match (is_refused, is_certain) {
            (true, true) => "was asked for and refused",
            (false, true) => "was asked for",
            (true, false) => "was asked for, it can't be told by whom, and refused",
            (false, false) => "was asked for, it can't be told by whom,",
        };
        let process = caller.and_then(|pid| process(job, pid));
        let name = call
            .container()
            .map_or_else(|| call.name(), |name| format!("{name} ({})", call.name()));
        let subject = Subject { container: name.clone(), process, what: what.to_owned() };
        if let Some(finding) = finding(subject, &privileges) {
            let (containers, job) = (Arc::clone(containers), Arc::clone(job));
            // The engine gets its answer at once; killing a job takes longer.
            std::thread::spawn(move || {
                containers.answer(&job, &name, &privileges, finding, is_certain);
            });
        }
    }
    answer
}

/// Whose a request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Responsibility {
    /// That of the job with this index.
    Job(usize),
    /// It can't be told.
    Unknown,
    /// Only services of this machine are connected.
    Nobody,
}

/// What one of those who are connected to the engine is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Caller {
    /// A process of the job with this index, or of one of its containers.
    Job(usize),
    /// A service of this machine that is not judged.
    Service,
    /// Somebody else, or gone.
    Other,
}

/// Whose a request is, from everybody who is connected: pure.
fn responsibility(callers: Option<&[Caller]>) -> Responsibility {
    let Some(callers) = callers.filter(|callers| !callers.is_empty()) else {
        return Responsibility::Unknown;
    };
    let mut jobs = callers.iter().filter_map(|caller| match caller {
        Caller::Job(index) => Some(*index),
        Caller::Service | Caller::Other => None,
    });
    match jobs.next() {
        Some(first) if jobs.all(|other| other == first) => Responsibility::Job(first),
        Some(_) => Responsibility::Unknown,
        None if callers.contains(&Caller::Other) => Responsibility::Unknown,
        None => Responsibility::Nobody,
    }
}

/// Who asks, and the process of the job that is connected.
fn who_asks(
    containers: &Containers,
    engine: Option<u32>,
    jobs: &[Arc<WatchedJob>],
) -> (Responsibility, Option<u32>) {
    let Some(connected) = engine.and_then(callers) else { return (Responsibility::Unknown, None) };
    let mut process = None;
    let kinds: Vec<Caller> = connected
        .iter()
        .map(|pid| {
            let job = jobs.iter().position(|job| is_caller(job, Some(&[*pid])));
            if job.is_some() {
                process = Some(*pid);
            }
            let is_service = || {
                facts::cgroup_of(*pid).is_some_and(|group| containers.service_of(&group).is_some())
            };
            match job {
                Some(index) => Caller::Job(index),
                None if is_service() => Caller::Service,
                None => Caller::Other,
            }
        })
        .collect();
    (responsibility(Some(&kinds)), process)
}

fn process(job: &WatchedJob, pid: u32) -> Option<Process> {
    let key = ProcFs.process(pid)?.key;
    ProcessInspector::new(job.worker, 1).inspect(key).map(|process| Process::clone(&process))
}

/// Standard base64 (RFC 4648 §4), as Go writes it. What is none ends the text: the rest is not JSON, and is refused as such.
fn decode_base64(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_jobs_when_only_the_job_could_have_made_it() {
        use Caller::{Job, Other, Service};
        for (callers, expected) in [
            (vec![Job(0)], Responsibility::Job(0)),
            (vec![Job(1), Service, Job(1)], Responsibility::Job(1)),
            (vec![Job(0), Other], Responsibility::Job(0)),
            (vec![Job(0), Job(1)], Responsibility::Unknown),
            (vec![Other, Service], Responsibility::Unknown),
            (vec![Service], Responsibility::Nobody),
            (vec![], Responsibility::Unknown),
        ] {
            assert_eq!(responsibility(Some(&callers)), expected, "{callers:?}");
        }
        assert_eq!(responsibility(None), Responsibility::Unknown);
    }

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9vYmFy", "foobar"),
            ("eyJhIjp0cnVlfQ==", "{\"a\":true}"),
        ] {
            assert_eq!(decode_base64(text), bytes.as_bytes(), "{text}");
        }
    }

    #[test]
    fn a_question_is_read() {
        let question: Question = serde_json::from_str(
            r#"{"User":"","RequestMethod":"POST","RequestUri":"/v1.41/containers/create","RequestBody":"e30=","RequestHeaders":{"A":"b"}}"#,
        )
        .unwrap();
        assert_eq!(question.request_uri, "/v1.41/containers/create");
        assert_eq!(decode_base64(&question.request_body), b"{}");
    }
}
