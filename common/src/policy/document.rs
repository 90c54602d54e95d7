//! A policy as its author writes it, before `extends` is followed.

use super::{Attachment, EgressMode, FailureMode, LockdownMode, PolicyName};
use crate::endpoint::{Endpoint, EndpointError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::sync::Arc;

/// A policy as its author writes it. A key that is absent says nothing: `extends` may bring it.
///
/// Keys are kebab-case in YAML and `snake_case` in JSON, and both are read in both.
// To tell a person everything that is wrong with a text, read it by `parse_documents`; `Deserialize` stops at the first mistake.
// This type serializes kebab-case; [`JsonPolicyDocument`] serializes `snake_case`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PolicyDocument {
    /// The policy's name.
    pub name: PolicyName,
    /// What it is for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// What happens to calls that no endpoint allows.
    #[serde(default, alias = "egress_policy", skip_serializing_if = "Option::is_none")]
    pub egress_policy: Option<EgressMode>,
    /// What may be reached: a list, or one text with white space between the entries.
    #[serde(default, alias = "allowed_endpoints", skip_serializing_if = "Option::is_none")]
    pub allowed_endpoints: Option<EndpointList>,
    /// What must not be reached, also in audit mode; wins over what is allowed.
    #[serde(default, alias = "denied_endpoints", skip_serializing_if = "Option::is_none")]
    pub denied_endpoints: Option<EndpointList>,
    /// Policies that this one builds on: allowed and denied endpoints are united, of any other key the nearest
    /// document's value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extends: Vec<PolicyName>,
    /// Whether a blocked call also fails the job.
    #[serde(default, alias = "fail_on_block", skip_serializing_if = "Option::is_none")]
    pub fail_on_block: Option<bool>,
    /// Whether setuid programs stop working for the job.
    #[serde(default, alias = "disable_sudo", skip_serializing_if = "Option::is_none")]
    pub disable_sudo: Option<bool>,
    /// Whether in addition the container engines' sockets are closed to the job.
    #[serde(
        default,
        alias = "disable_sudo_and_containers",
        skip_serializing_if = "Option::is_none"
    )]
    pub disable_sudo_and_containers: Option<bool>,
    /// Whether file events are left out.
    #[serde(default, alias = "disable_file_monitoring", skip_serializing_if = "Option::is_none")]
    pub disable_file_monitoring: Option<bool>,
    /// Whether events stay on the host.
    #[serde(default, alias = "disable_telemetry", skip_serializing_if = "Option::is_none")]
    pub disable_telemetry: Option<bool>,
    /// What happens when this policy can't be had or put in force; absent leaves it to the host.
    #[serde(default, alias = "on_failure", skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<FailureMode>,
    /// What kills the job at once.
    #[serde(default, alias = "lockdown_mode", skip_serializing_if = "Option::is_none")]
    pub lockdown_mode: Option<LockdownMode>,
    /// What the policy is attached to; only in files of an embedded store and in import and export.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attach: Vec<Attachment>,
}

impl PolicyDocument {
    /// A document that says nothing but its name.
    pub const fn new(name: PolicyName) -> Self {
        Self {
            name,
            description: None,
            egress_policy: None,
            allowed_endpoints: None,
            denied_endpoints: None,
            extends: Vec::new(),
            fail_on_block: None,
            disable_sudo: None,
            disable_sudo_and_containers: None,
            disable_file_monitoring: None,
            disable_telemetry: None,
            on_failure: None,
            lockdown_mode: None,
            attach: Vec::new(),
        }
    }

    /// The document as YAML, kebab-case, as the embedded store reads it.
    ///
    /// # Errors
    /// When the text can't be written as YAML; no document that was read is such a one.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(self)
    }
}

/// A [`PolicyDocument`] that serializes with the `snake_case` keys of the JSON form. It reads both forms.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct JsonPolicyDocument(pub PolicyDocument);

impl Serialize for JsonPolicyDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = serde_json::to_value(&self.0).map_err(serde::ser::Error::custom)?;
        match value {
            serde_json::Value::Object(keys) => serializer
                .collect_map(keys.iter().map(|(key, value)| (key.replace('-', "_"), value))),
            other => other.serialize(serializer),
        }
    }
}

impl JsonSchema for JsonPolicyDocument {
    fn schema_name() -> Cow<'static, str> {
        "PolicyDocumentJson".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = PolicyDocument::json_schema(generator);
        if let Some(serde_json::Value::Object(keys)) = schema.get_mut("properties") {
            *keys = std::mem::take(keys)
                .into_iter()
                .map(|(key, value)| (key.replace('-', "_"), value))
                .collect();
        }
        schema
    }
}

/// An endpoint with the text its author wrote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrittenEndpoint {
    /// The text: `GitHub.com`.
    text: Arc<str>,
    /// What it means: `github.com:443`.
    endpoint: Endpoint,
}

impl WrittenEndpoint {
    /// Reads an endpoint and keeps the text.
    ///
    /// # Errors
    /// When the text is no endpoint.
    pub fn new(text: &str) -> Result<Self, EndpointError> {
        Ok(Self { endpoint: text.parse()?, text: text.into() })
    }

    /// The text as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text, shared.
    pub(crate) fn shared_text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// What it means.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl From<Endpoint> for WrittenEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self { text: endpoint.to_string().into(), endpoint }
    }
}

impl Serialize for WrittenEndpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// A list of endpoints, written as a list or as one text with white space between the entries.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct EndpointList(pub Vec<WrittenEndpoint>);

impl<'de> Deserialize<'de> for EndpointList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a list of endpoints, or one text with white space between them"
        )]
        enum Written {
            Text(String),
            List(Vec<String>),
        }
        let entries = match Written::deserialize(deserializer)? {
            Written::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
            Written::List(list) => list,
        };
        let read = |text: &String| {
            WrittenEndpoint::new(text).map_err(|error| {
                de::Error::custom(format!("`{}`: {error}; {}", text.escape_debug(), error.hint))
            })
        };
        entries.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl JsonSchema for EndpointList {
    fn schema_name() -> Cow<'static, str> {
        "EndpointList".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let endpoint = generator.subschema_for::<Endpoint>();
        json_schema!({
            "description": "A list of endpoints, or one text with white space between them.",
            "anyOf": [{ "type": "array", "items": endpoint }, { "type": "string" }]
        })
    }
}
