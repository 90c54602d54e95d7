//! What is stored of an integration: settings that anybody may read, and secrets apart from them.

use super::signature;
use portcullis_common::store_api::{MessageFormat, Secret, Target, WriteTarget};
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use url::Url;

/// The most headers of an integration's own.
const MAX_HEADERS: usize = 20;

/// The longest text of a setting in bytes.
const MAX_TEXT_BYTES: usize = 2000;

/// Headers that a request has by itself; others can't be set to what makes it another request.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// Where an integration tells: what of it may be shown.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Settings {
    /// A signed request.
    Webhook {
        /// How messages are written.
        format: MessageFormat,
    },
    /// Slack.
    Slack,
    /// An object store.
    S3 {
        /// The bucket.
        bucket: String,
        /// Its region.
        region: String,
        /// Another server than AWS.
        endpoint: Option<String>,
        /// What names of objects begin with.
        prefix: String,
        /// The id of the access key.
        access_key_id: String,
        /// Whether every batch of raw events becomes an object as well.
        events: bool,
        /// How messages are written.
        format: MessageFormat,
    },
    /// A collector of OpenTelemetry logs.
    Otlp,
}

/// What of an integration is never shown. `Debug` does not show it either.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Secrets {
    /// The address; tokens stand in paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Secret>,
    /// The key of signatures, or the secret access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

/// Why settings can't be used: what is wrong, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct SettingsError {
    /// What is wrong.
    pub detail: String,
    /// What to do.
    pub hint: &'static str,
}

fn wrong<T>(detail: impl Into<String>, hint: &'static str) -> Result<T, SettingsError> {
    Err(SettingsError { detail: detail.into(), hint })
}

impl Settings {
    /// Whether batches of raw events are told as well.
    pub const fn takes_events(&self) -> bool {
        matches!(self, Self::S3 { events: true, .. })
    }

    /// What kind of integration it is.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack => "slack",
            Self::S3 { .. } => "s3",
            Self::Otlp => "otlp",
        }
    }
}

/// Reads what was written. `before` is what is stored already, when an integration is changed: secrets that are left out stay,
/// but only as long as they go where they went before; else somebody could have them sent to himself.
///
/// # Errors
/// When something is missing or makes no sense.
pub fn read_target(
    target: &WriteTarget,
    before: Option<(&Settings, &Secrets)>,
    allow_http: bool,
) -> Result<(Settings, Secrets), SettingsError> {
    let kept = before.map(|(_, secrets)| secrets);
    match target {
        WriteTarget::Webhook { url, secret, headers, format } => {
            let same_kind = matches!(before, None | Some((Settings::Webhook { .. }, _)));
            let url = address(url.as_ref(), kept.filter(|_| same_kind), allow_http)?;
            let kept = kept.filter(|kept| same_kind && has_same_origin(kept, &url));
            let key = secret.clone().or_else(|| kept.and_then(|kept| kept.key.clone()));
            let Some(key) = key else {
                return wrong(
                    "the key of signatures is missing",
                    "send `secret`: `whsec_` and 24 to 64 random bytes in base64; when the address leads to another host, it has to be sent again",
                );
            };
            if signature::key(key.expose()).is_none() {
                return wrong(
                    "the key of signatures can't be used",
                    "it is `whsec_` and 24 to 64 random bytes in base64, such as the output of `openssl rand -base64 32` behind `whsec_`",
                );
            }
            let headers = headers_of(headers.as_ref(), kept)?;
            let secrets = Secrets { url: Some(url), key: Some(key), headers };
            Ok((Settings::Webhook { format: *format }, secrets))
        }
        WriteTarget::Slack { url } => {
            let same_kind = matches!(before, None | Some((Settings::Slack, _)));
            let url = address(url.as_ref(), kept.filter(|_| same_kind), allow_http)?;
            Ok((Settings::Slack, Secrets { url: Some(url), ..Secrets::default() }))
        }
        WriteTarget::Otlp { url, headers } => {
            let same_kind = matches!(before, None | Some((Settings::Otlp, _)));
            let url = address(url.as_ref(), kept.filter(|_| same_kind), allow_http)?;
            let kept = kept.filter(|kept| same_kind && has_same_origin(kept, &url));
            let headers = headers_of(headers.as_ref(), kept)?;
            Ok((Settings::Otlp, Secrets { url: Some(url), key: None, headers }))
        }
        WriteTarget::S3 {
            bucket,
            region,
            endpoint,
            prefix,
            access_key_id,
            secret_access_key,
            events,
            format,
        } => {
            bucket_name(bucket, region, prefix, access_key_id)?;
            if let Some(endpoint) = endpoint {
                parse(endpoint, allow_http)?;
            }
            let kept = match before {
                Some((Settings::S3 { endpoint: old, .. }, secrets)) if old == endpoint => {
                    secrets.key.clone()
                }
                _ => None,
            };
            let Some(key) = secret_access_key.clone().or(kept) else {
                return wrong(
                    "the secret access key is missing",
                    "send `secret_access_key`; when the endpoint changes, it has to be sent again",
                );
            };
            if !is_header_text(key.expose()) {
                return wrong(
                    "the secret access key can't be used",
                    "it has visible characters only",
                );
            }
            let settings = Settings::S3 {
                bucket: bucket.clone(),
                region: region.clone(),
                endpoint: endpoint.clone(),
                prefix: prefix.trim_matches('/').to_owned(),
                access_key_id: access_key_id.clone(),
                events: *events,
                format: *format,
            };
            Ok((settings, Secrets { key: Some(key), ..Secrets::default() }))
        }
    }
}

/// What may be shown of an integration.
pub fn shown_target(settings: &Settings, secrets: &Secrets) -> Target {
    let origin = secrets.url.as_ref().map(|url| origin(url.expose())).unwrap_or_default();
    let header_names: Vec<String> = secrets.headers.keys().cloned().collect();
    match settings.clone() {
        Settings::Webhook { format } => Target::Webhook { origin, header_names, format },
        Settings::Slack => Target::Slack { origin },
        Settings::Otlp => Target::Otlp { origin, header_names },
        Settings::S3 { bucket, region, endpoint, prefix, access_key_id, events, format } => {
            Target::S3 { bucket, region, endpoint, prefix, access_key_id, events, format }
        }
    }
}

/// The part of an address that is no secret.
fn origin(url: &str) -> String {
    Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}

fn has_same_origin(kept: &Secrets, url: &Secret) -> bool {
    kept.url.as_ref().is_some_and(|old| origin(old.expose()) == origin(url.expose()))
}

fn address(
    given: Option<&Secret>,
    kept: Option<&Secrets>,
    allow_http: bool,
) -> Result<Secret, SettingsError> {
    match given.cloned().or_else(|| kept.and_then(|kept| kept.url.clone())) {
        None => wrong("the address is missing", "send `url`"),
        Some(url) => parse(url.expose(), allow_http).map(|_| url),
    }
}

fn parse(text: &str, allow_http: bool) -> Result<Url, SettingsError> {
    // The text itself is not repeated: it may be a secret.
    let hint = "write an address such as https://hooks.example.com/portcullis";
    let Ok(url) = Url::parse(text) else { return wrong("the address is none", hint) };
    if text.len() > MAX_TEXT_BYTES || !url.has_host() || url.fragment().is_some() {
        return wrong("the address is none that can be used", hint);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong(
            "the address has a user or a password in it",
            "send them as a header of the integration",
        );
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_http => Ok(url),
        "http" => wrong(
            "the address is not encrypted",
            "use https; plain HTTP is for `allow-http` in [notifications] of store.toml, and goes to `allowed-networks` alone",
        ),
        _ => wrong("the address is neither https nor http", hint),
    }
}

fn headers_of(
    given: Option<&BTreeMap<String, Secret>>,
    kept: Option<&Secrets>,
) -> Result<BTreeMap<String, Secret>, SettingsError> {
    let Some(given) = given else {
        return Ok(kept.map(|kept| kept.headers.clone()).unwrap_or_default());
    };
    if given.len() > MAX_HEADERS {
        return wrong("there are too many headers", "an integration has at most 20");
    }
    let mut headers = BTreeMap::new();
    for (name, value) in given {
        let name = name.to_ascii_lowercase();
        let is_good = HeaderName::from_bytes(name.as_bytes()).is_ok()
            && value.expose().len() <= MAX_TEXT_BYTES
            && HeaderValue::from_str(value.expose()).is_ok();
        if !is_good {
            return wrong(
                "a header can't be sent",
                "names have letters, digits and hyphens, values have visible characters in one line",
            );
        }
        if OWN_HEADERS.contains(&name.as_str()) {
            return wrong(format!("the header `{name}` can't be changed"), "leave it out");
        }
        headers.insert(name, value.clone());
    }
    Ok(headers)
}

fn bucket_name(
    bucket: &str,
    region: &str,
    prefix: &str,
    access_key_id: &str,
) -> Result<(), SettingsError> {
    let is_bucket = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if !is_bucket {
        return wrong("this can't be a bucket's name", "3 to 63 letters, digits, dots and hyphens");
    }
    let is_region = (1..=64).contains(&region.len())
        && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !is_region {
        return wrong("this can't be a region", "such as `eu-central-1`");
    }
    let is_prefix = prefix.len() <= 200
        && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-=".contains(&byte))
        && !prefix.split('/').any(|part| part == "." || part == "..");
    if !is_prefix {
        return wrong(
            "this can't be the beginning of an object's name",
            "at most 200 letters, digits, `/`, `.`, `_`, `-` and `=`",
        );
    }
    if !(1..=128).contains(&access_key_id.len()) || !is_header_text(access_key_id) {
        return wrong("this can't be the id of an access key", "such as `AKIA…`");
    }
    Ok(())
}

fn is_header_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::{Secrets, Settings, read_target, shown_target};
    use portcullis_common::store_api::{MessageFormat, WriteTarget};
    use serde_json::{Value, json};

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read(value: Value) -> Result<(Settings, Secrets), String> {
        let target: WriteTarget = serde_json::from_value(value).unwrap();
        read_target(&target, None, false).map_err(|error| error.detail)
    }

    fn webhook(url: &str) -> Value {
        json!({ "kind": "webhook", "url": url, "secret": KEY, "headers": { "Authorization": "Bearer s3cret" } })
    }

    #[test]
    fn what_can_not_be_used_is_refused() {
        for (value, told) in [
            (webhook("http://hooks.test/a"), "not encrypted"),
            (webhook("ftp://hooks.test/a"), "neither https nor http"),
            (webhook("hooks.test"), "the address is none"),
            (webhook("https://user:word@hooks.test"), "a user or a password"),
            (json!({ "kind": "webhook", "url": "https://h.test" }), "signatures is missing"),
            (
                json!({ "kind": "webhook", "url": "https://h.test", "secret": "whsec_AAAA" }),
                "signatures can't",
            ),
            (
                json!({ "kind": "webhook", "url": "https://h.test", "secret": KEY, "headers": { "Host": "x" } }),
                "`host` can't be changed",
            ),
            (
                json!({ "kind": "webhook", "url": "https://h.test", "secret": KEY, "headers": { "a": "x\r\nb: c" } }),
                "a header can't be sent",
            ),
            (json!({ "kind": "slack" }), "the address is missing"),
            (
                json!({ "kind": "s3", "bucket": "b/../c", "region": "r", "access_key_id": "a", "secret_access_key": "s" }),
                "bucket",
            ),
            (
                json!({ "kind": "s3", "bucket": "bucket", "region": "r", "prefix": "a/../b", "access_key_id": "a", "secret_access_key": "s" }),
                "object's name",
            ),
            (
                json!({ "kind": "s3", "bucket": "bucket", "region": "r", "access_key_id": "a" }),
                "secret access key is missing",
            ),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.contains(told), "{value}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let (settings, secrets) =
            read(webhook("https://hooks.test/services/T0K3N?key=s3cret")).unwrap();
        let shown = serde_json::to_string(&shown_target(&settings, &secrets)).unwrap();
        assert_eq!(
            shown,
            r#"{"kind":"webhook","origin":"https://hooks.test","header_names":["authorization"],"format":"portcullis"}"#
        );
        let debug = format!("{settings:?} {secrets:?}");
        assert!(
            !debug.contains("s3cret") && !debug.contains("T0K3N") && !debug.contains(KEY),
            "{debug}"
        );
    }

    #[test]
    fn secrets_stay_only_where_they_went_before() {
        let (settings, secrets) = read(webhook("https://hooks.test/a")).unwrap();
        let change = |url: Option<&str>| {
            let target = WriteTarget::Webhook {
                url: url.map(|url| serde_json::from_value(json!(url)).unwrap()),
                secret: None,
                headers: None,
                format: MessageFormat::Ocsf,
            };
            read_target(&target, Some((&settings, &secrets)), false)
        };
        for url in [None, Some("https://hooks.test/b")] {
            let (changed, kept) = change(url).unwrap();
            assert_eq!(changed, Settings::Webhook { format: MessageFormat::Ocsf });
            assert_eq!((kept.key, kept.headers), (secrets.key.clone(), secrets.headers.clone()));
        }
        // Another host, another port, another kind.
        for url in ["https://evil.test/a", "https://hooks.test:8443/a"] {
            assert!(change(Some(url)).unwrap_err().detail.contains("missing"));
        }
        let slack = WriteTarget::Slack { url: None };
        assert!(read_target(&slack, Some((&settings, &secrets)), false).is_err());
    }
}
