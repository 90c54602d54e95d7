//! A server with its database, and a caller.

pub mod browser;
pub mod issuer;
pub mod object_store;
pub mod other_readers;
pub mod postgres;
pub mod receiver;
pub mod replica;
pub mod small_disk;

use portcullis_common::job_context::JobContext;
use portcullis_store::configuration::{Configuration, DatabaseConfiguration};
use portcullis_store::serve::{Pace, Running, start_at};
use postgres::Postgres;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// A database that a test has for itself.
pub struct World {
    pub directory: TempDir,
    pub postgres: Option<Postgres>,
}

impl World {
    pub fn new(backend: Backend) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let postgres = (backend == Backend::Postgres).then(Postgres::start);
        Self { directory, postgres }
    }

    pub fn database_url(&self) -> String {
        match &self.postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite:{}", self.directory.path().join("store.db").display()),
        }
    }

    pub fn configuration(&self) -> Configuration {
        Configuration {
            listen: "127.0.0.1:0".parse().unwrap(),
            public_url: "https://store.test".to_owned(),
            database: DatabaseConfiguration { url: self.database_url(), max_connections: 5 },
            ..Configuration::default()
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn start(&self) -> Server {
        self.start_with(self.configuration()).await
    }

    pub async fn start_with(&self, configuration: Configuration) -> Server {
        self.start_at(configuration, Pace::default()).await
    }

    pub async fn start_at(&self, configuration: Configuration, pace: Pace) -> Server {
        let running = start_at(configuration, pace).await.unwrap();
        let token = running.first_token.clone().unwrap_or_default();
        // A connection for each request: a server that refuses a body ends the connection, perhaps while it is used again.
        let client = Client::builder().pool_max_idle_per_host(0).build().unwrap();
        Server { running, client, token }
    }
}

/// Runs a test in a world of its own.
pub fn run<F, T>(backend: Backend, test: F)
where
    F: FnOnce(World) -> T,
    T: Future<Output = ()>,
{
    let world = World::new(backend);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(world));
}

/// A running server and the admin who calls it.
pub struct Server {
    pub running: Running,
    pub client: Client,
    pub token: String,
}

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON, when the status is as expected.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// The kind and detail of a problem, when the status is as expected.
    #[track_caller]
    pub fn problem(self, status: u16) -> (String, String) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        let problem = self.json();
        let kind = problem["type"].as_str().unwrap().replace("urn:portcullis:problem:", "");
        (kind, problem["detail"].as_str().unwrap().to_owned())
    }
}

impl Server {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.address)
    }

    /// A request of nobody.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// A request of the admin below `/api/v1`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_caller(&self.token, method, path)
    }

    /// A request with some token below `/api/v1`.
    pub fn as_caller(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, &format!("/api/v1{path}")).bearer_auth(token)
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        send(self.request(Method::DELETE, path)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Reply {
        send(self.request(Method::PUT, path).json(&body)).await
    }

    pub async fn put_policy(&self, name: &str, yaml: &str) -> Reply {
        send(self.request(Method::PUT, &format!("/policies/{name}")).body(yaml.to_owned())).await
    }

    /// A token of a role.
    pub async fn token(&self, role: &str) -> String {
        let made = self.post("/tokens", json!({ "name": format!("a {role}"), "role": role })).await;
        made.expect(201)["secret"].as_str().unwrap().to_owned()
    }

    /// Enrols a host and returns what it was given.
    pub async fn enrol(&self, cluster: &str) -> Value {
        let made = self.post("/enrolments", json!({ "cluster": cluster })).await.expect(201);
        let secret = made["secret"].as_str().unwrap();
        let enrol = self.as_caller(secret, Method::POST, "/enrol");
        send(enrol.json(&json!({ "host_name": "runner-1" }))).await.expect(201)
    }

    pub async fn stop(self) {
        self.running.stop().await.unwrap();
    }
}

pub async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, text: response.text().await.unwrap() }
}

/// Waits until something is so.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(patience_seconds());
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come to: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn patience_seconds() -> u64 {
    let set = std::env::var("PORTCULLIS_TEST_PATIENCE_SECONDS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// A job of `octo/hello`.
pub fn context() -> JobContext {
    JobContext {
        repository: "octo/hello".to_owned(),
        repository_owner: "octo".to_owned(),
        workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
        workflow: "CI".to_owned(),
        job: "build".to_owned(),
        run_id: 7,
        run_attempt: 1,
        server_url: "https://github.com".to_owned(),
        runner_name: "runner-1".to_owned(),
        ..JobContext::default()
    }
}
