//! A Docker engine, asked by its socket: bounded in time and size, for its answers come from a daemon that works for jobs.

use crate::detect::privileged_container::json::Json;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an engine may take to answer. Somebody's packet or event waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often an engine is asked that does not answer, and the pause in between: together a minute and more.
const ATTEMPTS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(200);

/// The largest answer that is read: the description of a container has some 10 KiB.
const LARGEST_ANSWER: usize = 4 << 20;

/// The longest line of the stream of events.
const LONGEST_EVENT: usize = 1 << 20;

/// Why an engine did not tell.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens.
    #[error("no engine listens on {}", .0.display())]
    Absent(PathBuf),
    /// The exchange failed.
    #[error("the engine did not answer as an engine does")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("the engine did not answer in time")]
    TimedOut,
    /// It refused.
    #[error("the engine answered with status {0}")]
    Status(u16),
}

impl EngineError {
    fn exchange(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Exchange(error.into())
    }
}

/// An engine.
#[derive(Clone, Debug)]
pub struct Engine {
    socket: PathBuf,
}

impl Engine {
    /// The engine that listens on this socket, when one does.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether there is a socket.
    pub fn is_there(&self) -> bool {
        self.socket.exists()
    }

    /// The description of a container: `GET /containers/ID/json`.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn container(&self, id: &str) -> Result<Json, EngineError> {
        // An id is part of a path; what is no id is never asked for.
        if id.is_empty()
            || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        {
            return Err(EngineError::Status(400));
        }
        let answer = timeout(PATIENCE, async {
            let response = self.get(&format!("/containers/{id}/json")).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(EngineError::Status(status.as_u16()));
            }
            let body = Limited::new(response.into_body(), LARGEST_ANSWER);
            Ok(body.collect().await.map_err(EngineError::Exchange)?.to_bytes())
        });
        let bytes = answer.await.map_err(|_| EngineError::TimedOut)??;
        serde_json::from_slice(&bytes).map_err(EngineError::exchange)
    }

    /// Stops a container for good: the engine does not start it again by itself.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn stop(&self, id: &str) -> Result<(), EngineError> {
        let response =
            timeout(PATIENCE, self.send(Method::POST, &format!("/containers/{id}/stop?t=0")))
                .await
                .map_err(|_| EngineError::TimedOut)??;
        match response.status() {
            // Not modified: it was stopped already.
            status if status.is_success() || status == StatusCode::NOT_MODIFIED => Ok(()),
            status => Err(EngineError::Status(status.as_u16())),
        }
    }

    /// As [`Engine::container`], again and again while the engine is too busy to answer. `None` when it has no such container,
    /// or does not answer at all.
    pub async fn container_in_the_end(&self, id: &str) -> Option<Json> {
        for _ in 0..ATTEMPTS {
            match self.container(id).await {
                Ok(json) => return Some(json),
                Err(EngineError::Status(status)) if (400..500).contains(&status) => return None,
                Err(EngineError::Absent(_)) => return None,
                Err(error) => tracing::debug!(%error, id, "an engine is asked again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(id, "an engine does not say what a container is");
        None
    }

    /// What happens to containers, from `since` on: seconds since 1970. What happened before now is told first, as far as the
    /// engine remembers it.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn events(&self, since: i64) -> Result<Events, EngineError> {
        // {"type":["container"]}
        let path =
            format!("/events?since={since}&filters=%7B%22type%22%3A%5B%22container%22%5D%7D");
        let response =
            timeout(PATIENCE, self.get(&path)).await.map_err(|_| EngineError::TimedOut)??;
        if !response.status().is_success() {
            return Err(EngineError::Status(response.status().as_u16()));
        }
        Ok(Events { body: response.into_body(), buffer: Vec::new() })
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, EngineError> {
        self.send(Method::GET, path).await
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, EngineError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|_| EngineError::Absent(self.socket.clone()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(EngineError::exchange)?;
        // It ends with the body, or when the body is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an engine failed");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "docker")
            .header("User-Agent", "portcullis-monitor")
            .body(Empty::<Bytes>::new())
            .map_err(EngineError::exchange)?;
        sender.send_request(request).await.map_err(EngineError::exchange)
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// Waits for the next one; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Json> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice(&line) {
                    return Some(event);
                }
                continue;
            }
            if self.buffer.len() > LONGEST_EVENT {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
