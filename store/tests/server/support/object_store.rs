//! An S3-compatible object store that a test has for itself: moto's server, which `scripts/test` installs.

use object_store::ObjectStoreExt as _;
use object_store::aws::AmazonS3Builder;
use reqwest::Client;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct ObjectStore {
    child: Child,
    pub url: String,
    client: Client,
}

/// A program of the Python packages that `scripts/test` installs, below the directory that this very program was built in.
pub fn python_program(name: &str) -> std::path::PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_portcullis")).ancestors().nth(2).unwrap();
    target.join("test-python/bin").join(name)
}

fn program() -> std::path::PathBuf {
    python_program("moto_server")
}

impl ObjectStore {
    /// Starts it with an empty bucket.
    pub async fn start(bucket: &str) -> Self {
        let program = program();
        assert!(program.exists(), "{} is missing; scripts/test installs it", program.display());
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        command.env("PYTHONUNBUFFERED", "1").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // The rest of its log is read on, so that it never waits for somebody to do so.
        let (send, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("Running on ") {
                    let _ = send.send(url.trim().to_owned());
                }
            }
        });
        let url = told.recv().expect("the object store did not start");
        let client = Client::new();
        let made = client.put(format!("{url}/{bucket}")).send().await.unwrap();
        assert!(made.status().is_success(), "{}", made.text().await.unwrap());
        Self { child, url, client }
    }

    /// The names of all objects, in order.
    pub async fn names(&self, bucket: &str) -> Vec<String> {
        let list = self.client.get(format!("{}/{bucket}?list-type=2", self.url));
        let text = list.send().await.unwrap().text().await.unwrap();
        let mut names: Vec<String> = text
            .split("<Key>")
            .skip(1)
            .map(|rest| rest.split("</Key>").next().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    pub async fn get(&self, bucket: &str, name: &str) -> Vec<u8> {
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.url)
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_region("us-east-1")
            .with_access_key_id("reader")
            .with_secret_access_key("key")
            .build()
            .unwrap();
        let found = store.get(&name.into()).await.unwrap_or_else(|error| panic!("{error}"));
        found.bytes().await.unwrap().to_vec()
    }

    pub async fn json(&self, bucket: &str, name: &str) -> Value {
        serde_json::from_slice(&self.get(bucket, name).await).unwrap()
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
