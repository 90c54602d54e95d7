//! An S3-compatible object store on the internet's host: moto's server, which `scripts/test` installs below `target`.

use crate::patience::wait_for;
use crate::world::{Process, World};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Stdio;

/// A running store with one bucket. It dies with the world.
#[derive(Debug)]
pub struct ObjectStore<'a> {
    world: &'a World,
    url: String,
    bucket: String,
    _process: Process,
}

fn program() -> Result<PathBuf> {
    // Tests and programs lie at different depths below `target`.
    let executable = std::env::current_exe()?;
    let mut places = executable.ancestors().map(|at| at.join("test-python/bin/moto_server"));
    places
        .find(|program| program.exists())
        .context("target/test-python/bin/moto_server is missing; scripts/test installs it")
}

impl<'a> ObjectStore<'a> {
    /// Starts a store with an empty bucket at `address`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(world: &'a World, address: &str, bucket: &str) -> Result<Self> {
        let process = world
            .internet_command(program()?)
            .args(["-H", address, "-p", "9000"])
            .spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
        let url = format!("http://{address}:9000");
        let store = Self { world, url, bucket: bucket.to_owned(), _process: process };
        wait_for("the object store to make a bucket", || {
            store.curl(&["--request", "PUT"], "").ok()
        })?;
        Ok(store)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The names of all objects, in order.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn names(&self) -> Result<Vec<String>> {
        let list = self.curl(&[], "?list-type=2")?;
        let mut names: Vec<String> = list
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split_once("</Key>"))
            .map(|(name, _)| name.to_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// An object's text.
    ///
    /// # Errors
    /// When it is not there.
    pub fn text(&self, name: &str) -> Result<String> {
        self.curl(&[], &format!("/{name}"))
    }

    fn curl(&self, options: &[&str], rest: &str) -> Result<String> {
        self.world
            .internet_command("curl")
            .args(["--silent", "--show-error", "--fail", "--user", "reader:key"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3"])
            .args(options)
            .arg(format!("{}/{}{rest}", self.url, self.bucket))
            .text()
    }
}
