//! One attempt to tell something to somebody.

use super::client::{Outgoing, told};
use super::message::{Message, ocsf, open_telemetry, slack, webhook};
use super::object::{self, Bucket};
use super::settings::{Secrets, Settings};
use super::signature;
use jiff::Timestamp;
use portcullis_common::store_api::{MessageFormat, Secret};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use url::Url;

/// Why an attempt failed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Failure {
    /// The status that was answered.
    pub status: Option<u16>,
    /// What went wrong, for a person. Nothing of what the target answered but its status.
    pub error: String,
    /// How long the target asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether trying again is of no use.
    pub is_final: bool,
}

impl Failure {
    fn of(error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::default() }
    }

    fn last(error: impl Into<String>) -> Self {
        Self { is_final: true, ..Self::of(error) }
    }
}

/// Sends messages.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) outgoing: Outgoing,
}

impl Sender {
    /// Tells a message; the status that was answered, where there is one. `id` is the delivery's, the same with each attempt.
    ///
    /// # Errors
    /// When the target can't be reached, may not be reached, or does not take it.
    pub(super) async fn send(
        &self,
        settings: &Settings,
        secrets: &Secrets,
        id: &str,
        message: &Message,
    ) -> Result<Option<u16>, Failure> {
        match (settings, message) {
            (Settings::Webhook { format, .. }, Message::Notification(notification)) => {
                let body = match format {
                    MessageFormat::Portcullis => webhook(notification),
                    MessageFormat::Ocsf => ocsf(notification),
                };
                self.webhook(secrets, id, &body).await
            }
            (Settings::Slack, Message::Notification(notification)) => {
                self.post(secrets, &slack(notification)).await
            }
            (Settings::Otlp, Message::Notification(notification)) => {
                self.post(secrets, &open_telemetry(notification)).await
            }
            (Settings::S3 { .. }, _) => self.object(settings, secrets, id, message).await,
            (_, Message::Events { .. }) => {
                Err(Failure::last("this integration takes no raw events"))
            }
        }
    }

    async fn webhook(
        &self,
        secrets: &Secrets,
        id: &str,
        body: &Value,
    ) -> Result<Option<u16>, Failure> {
        let key = secrets.key.as_ref().and_then(|key| signature::key(key.expose()));
        let key = key.ok_or_else(|| Failure::last("the key of signatures can't be read"))?;
        let bytes = body.to_string().into_bytes();
        let timestamp = Timestamp::now().as_second();
        let request = self
            .request(secrets)?
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature::sign(&key, id, timestamp, &bytes));
        answered(request.body(bytes)).await
    }

    async fn post(&self, secrets: &Secrets, body: &Value) -> Result<Option<u16>, Failure> {
        answered(self.request(secrets)?.body(body.to_string())).await
    }

    fn request(&self, secrets: &Secrets) -> Result<RequestBuilder, Failure> {
        let url = secrets.url.as_ref().and_then(|url| Url::parse(url.expose()).ok());
        let url = url.ok_or_else(|| Failure::last("the address can't be read"))?;
        let client = self.outgoing.client(&url).map_err(|error| Failure::of(error.to_string()))?;
        let request = client.post(url).header(CONTENT_TYPE, "application/json");
        Ok(with_headers(request, &secrets.headers))
    }

    async fn object(
        &self,
        settings: &Settings,
        secrets: &Secrets,
        id: &str,
        message: &Message,
    ) -> Result<Option<u16>, Failure> {
        let Settings::S3 { bucket, region, endpoint, prefix, access_key_id, format, .. } = settings
        else {
            return Err(Failure::last("this is no object store"));
        };
        let url = Url::parse(&object::address(endpoint.as_deref(), region))
            .map_err(|_| Failure::last("the endpoint can't be read"))?;
        let client = self.outgoing.client(&url).map_err(|error| Failure::of(error.to_string()))?;
        let bucket = Bucket {
            name: bucket,
            region,
            endpoint: endpoint.as_deref(),
            access_key_id,
            secret_access_key: secrets.key.as_ref().map(Secret::expose).unwrap_or_default(),
        };
        let store = object::open(bucket, client).map_err(Failure::last)?;
        let (name, content_type, body) = match message {
            Message::Notification(notification) => {
                let body = match format {
                    MessageFormat::Portcullis => webhook(notification),
                    MessageFormat::Ocsf => ocsf(notification),
                };
                let day = notification.time.strftime("%Y/%m/%d");
                (
                    format!("notifications/{day}/{id}.json"),
                    "application/json",
                    (body.to_string() + "\n").into_bytes(),
                )
            }
            Message::Events { job_id, first_seq, last_seq, time, lines } => {
                let day = time.strftime("%Y/%m/%d");
                let mut body = lines.join("\n").into_bytes();
                body.push(b'\n');
                (
                    format!("events/{day}/{job_id}/{first_seq:012}-{last_seq:012}.ndjson"),
                    "application/x-ndjson",
                    body,
                )
            }
        };
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        object::put(&store, &name, content_type, body).await.map(|()| None).map_err(Failure::of)
    }
}

fn with_headers(request: RequestBuilder, headers: &BTreeMap<String, Secret>) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(name, value.expose()))
}

/// Sends a request. Of the answer only its status and `Retry-After` are looked at: what it says is for nobody.
async fn answered(request: RequestBuilder) -> Result<Option<u16>, Failure> {
    let response = request.send().await.map_err(|error| Failure::of(told(error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(Some(status.as_u16()));
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let error = if status.is_redirection() {
        format!("the target answered {status}; redirects are not followed")
    } else {
        format!("the target answered {status}")
    };
    Err(Failure {
        status: Some(status.as_u16()),
        error,
        retry_after,
        // The receiver is gone for good and says so.
        is_final: status == StatusCode::GONE,
    })
}
