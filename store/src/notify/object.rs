//! An S3-compatible object store: one object is put at a time, whole.

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ClientOptions, ObjectStore as _, PutOptions, PutPayload, RetryConfig,
};
use portcullis_common::hook::with_causes;
use portcullis_common::text::log_line;
use std::error::Error;
use std::time::Duration;

/// The longest error of a server that is kept, in bytes.
const MAX_ERROR_BYTES: usize = 400;

/// Where a bucket is, and as whom it is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket<'a> {
    pub(super) name: &'a str,
    pub(super) region: &'a str,
    pub(super) endpoint: Option<&'a str>,
    pub(super) access_key_id: &'a str,
    pub(super) secret_access_key: &'a str,
}

/// Gives requests to a client that is there already, with what it refuses.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// The address that requests for a bucket go to.
pub(super) fn address(endpoint: Option<&str>, region: &str) -> String {
    endpoint.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), str::to_owned)
}

/// The bucket, to be written to by `client`. Whoever calls tries again by himself.
pub(super) fn open(bucket: Bucket<'_>, client: &reqwest::Client) -> Result<AmazonS3, String> {
    let endpoint = address(bucket.endpoint, bucket.region);
    AmazonS3Builder::new()
        .with_bucket_name(bucket.name)
        .with_region(bucket.region)
        .with_allow_http(endpoint.starts_with("http:"))
        .with_endpoint(endpoint)
        .with_virtual_hosted_style_request(false)
        .with_access_key_id(bucket.access_key_id)
        .with_secret_access_key(bucket.secret_access_key)
        .with_retry(RetryConfig {
            max_retries: 0,
            retry_timeout: Duration::ZERO,
            ..RetryConfig::default()
        })
        .with_http_connector(Connector(client.clone()))
        .build()
        .map_err(|error| told(&error))
}

/// Puts an object; what is there under its name is replaced.
pub(super) async fn put(
    store: &AmazonS3,
    name: &str,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<(), String> {
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentType, content_type.into());
    let options = PutOptions { attributes, ..PutOptions::default() };
    let path = Path::parse(name).map_err(|error| with_causes(&error))?;
    store
        .put_opts(&path, PutPayload::from(body), options)
        .await
        .map(drop)
        .map_err(|error| told(&error))
}

/// What went wrong, each thing once: its errors repeat what caused them, which leaves no room for the last cause, the reason.
fn told(error: &object_store::Error) -> String {
    let first: &dyn Error = error;
    let chain = std::iter::successors(Some(first), |error: &&dyn Error| (*error).source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    let mut parts: Vec<&str> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let cause = texts.get(index + 1).filter(|cause| !cause.is_empty());
        let own = cause.and_then(|cause| text.strip_suffix(cause.as_str())).unwrap_or(text);
        let own = own.trim_end_matches([' ', ':', '-']);
        if !own.is_empty() && parts.last() != Some(&own) {
            parts.push(own);
        }
    }
    log_line(&parts.join(": "), MAX_ERROR_BYTES)
}
