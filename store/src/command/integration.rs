//! `portcullis integration`.

use super::connect::StoreOptions;
use super::output::{Output, Table, done, show};
use anyhow::{Context as _, bail};
use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use portcullis_common::store_api::{
    Delivery, DeliveryState, Integration as Stored, Page, Secret, Target, WriteIntegration,
    WriteTarget,
};
use portcullis_store_client::OperatorClient;
use serde::Serialize;
use serde_json::json;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The largest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// Random bytes of a key that is made here.
const KEY_BYTES: usize = 32;

#[derive(Args, Debug)]
pub(super) struct Integration {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: IntegrationCommand,
}

#[derive(Debug, Subcommand)]
enum IntegrationCommand {
    /// List all integrations, without their secrets.
    List,
    /// Make an integration from a YAML or JSON file; `-` is standard input. See docs/notifications.md.
    Create {
        /// The file.
        file: PathBuf,
        /// Make a key for a webhook that has none, and print it, this once.
        #[arg(long)]
        generate_secret: bool,
    },
    /// Change the integration of the file's name. Secrets that the file leaves out stay as they are.
    Update {
        /// The file.
        file: PathBuf,
    },
    /// Tell an integration that this is a test. Fails when it does not take it.
    Test {
        /// The integration's name or id.
        integration: String,
    },
    /// Remove an integration with its deliveries.
    Delete {
        /// The integration's name or id.
        integration: String,
    },
    /// List what an integration was told, the newest first.
    Deliveries {
        /// The integration's name or id.
        integration: String,
        /// Only in this state: `pending`, `delivered`, `dead`.
        #[arg(long)]
        state: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Try a delivery that was given up again.
    Retry {
        /// The delivery's id.
        delivery: String,
    },
}

impl Integration {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let output = self.store.output;
        match &self.command {
            IntegrationCommand::List => {
                let page: Page<Stored> = server.get("integrations", &[]).await?;
                show(output, &page.items, |items| list(items))
            }
            IntegrationCommand::Create { file, generate_secret } => {
                let mut written = read(file)?;
                let made = if *generate_secret { add_key(&mut written)? } else { None };
                let stored: Stored = server.post("integrations", &[], &written).await?;
                let mut sentence = format!("integration {} created, id {}", stored.name, stored.id);
                if let Some(key) = &made {
                    sentence.push('\n');
                    sentence.push_str(key);
                }
                done(output, &Made { integration: &stored, secret: made.as_deref() }, &sentence)
            }
            IntegrationCommand::Update { file } => {
                let written = read(file)?;
                let found = find(&server, &written.name).await?;
                let path = format!("integrations/{}", found.id);
                let stored: Stored = server.put(&path, &written).await?;
                done(output, &stored, &format!("integration {} updated", stored.name))
            }
            IntegrationCommand::Test { integration } => {
                let found = find(&server, integration).await?;
                let path = format!("integrations/{}/test", found.id);
                let delivery: Delivery = server.post(&path, &[], &json!({})).await?;
                if delivery.state == DeliveryState::Delivered {
                    return done(output, &delivery, &format!("integration {} works", found.name));
                }
                if output != Output::Table {
                    show(output, &delivery, |_| Table::new([""], []))?;
                }
                bail!(
                    "integration {} does not work: {}",
                    found.name,
                    delivery.last_error.as_deref().unwrap_or("no reason is known")
                )
            }
            IntegrationCommand::Delete { integration } => {
                let found = find(&server, integration).await?;
                server.delete(&format!("integrations/{}", found.id), &[]).await?;
                let answer = json!({ "integration": found.id, "action": "deleted" });
                done(output, &answer, &format!("integration {} deleted", found.name))
            }
            IntegrationCommand::Deliveries { integration, state, limit } => {
                let found = find(&server, integration).await?;
                let mut query = vec![("limit", limit.to_string())];
                query.extend(state.as_ref().map(|state| ("state", state.clone())));
                let path = format!("integrations/{}/deliveries", found.id);
                let page: Page<Delivery> = server.get(&path, &query).await?;
                show(output, &page.items, |items| deliveries(items))
            }
            IntegrationCommand::Retry { delivery } => {
                server.post_empty(&format!("deliveries/{delivery}/retry")).await?;
                let answer = json!({ "delivery": delivery, "action": "retried" });
                done(output, &answer, &format!("delivery {delivery} is tried again"))
            }
        }
    }
}

/// An integration that was made, and the key that was made for it, which is told this once.
#[derive(Debug, Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    integration: &'a Stored,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

fn read(path: &Path) -> anyhow::Result<WriteIntegration> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path)
            .with_context(|| format!("{} can't be read", path.display()))?;
        file.take(MAX_BYTES)
            .read_to_string(&mut text)
            .with_context(|| format!("{} can't be read", path.display()))?;
    }
    // Secrets may stand in it: the message has the place, not the text.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options)
        .with_context(|| format!("{} is no integration", path.display()))
}

/// Makes a key for a webhook that has none.
fn add_key(written: &mut WriteIntegration) -> anyhow::Result<Option<String>> {
    let WriteTarget::Webhook { secret, .. } = &mut written.target else {
        bail!("only webhooks have a key")
    };
    if secret.is_some() {
        bail!("the file has a key already; leave out --generate-secret");
    }
    let mut bytes = [0; KEY_BYTES];
    fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gave no random numbers"))?;
    let key = format!("whsec_{}", STANDARD.encode(bytes));
    *secret = Some(Secret::new(key.clone()));
    Ok(Some(key))
}

async fn find(server: &OperatorClient, name: &str) -> anyhow::Result<Stored> {
    let page: Page<Stored> = server.get("integrations", &[]).await?;
    page.items
        .into_iter()
        .find(|integration| integration.id == name || integration.name == name)
        .with_context(|| format!("there is no integration named {name:?}"))
}

fn list(items: &[Stored]) -> Table {
    Table::new(
        ["NAME", "KIND", "TARGET", "ENABLED", "WAITING", "GIVEN UP", "ID"],
        items.iter().map(|item| {
            let (kind, target) = match &item.target {
                Target::Webhook { origin, .. } => ("webhook", origin.clone()),
                Target::Slack { origin } => ("slack", origin.clone()),
                Target::Otlp { origin, .. } => ("otlp", origin.clone()),
                Target::S3 { bucket, prefix, .. } => ("s3", format!("{bucket}/{prefix}")),
            };
            [
                item.name.clone(),
                kind.to_owned(),
                target,
                if item.enabled { "yes" } else { "no" }.to_owned(),
                item.pending.to_string(),
                item.dead.to_string(),
                item.id.clone(),
            ]
        }),
    )
}

fn deliveries(items: &[Delivery]) -> Table {
    let none = || "-".to_owned();
    Table::new(
        ["TIME", "TYPE", "STATE", "ATTEMPTS", "STATUS", "NEXT", "ERROR", "ID"],
        items.iter().map(|item| {
            let state = match item.state {
                DeliveryState::Pending => "pending",
                DeliveryState::Delivered => "delivered",
                DeliveryState::Dead => "dead",
            };
            [
                format!("{:.0}", item.created_at),
                item.kind.clone(),
                state.to_owned(),
                item.attempts.to_string(),
                item.last_status.map_or_else(none, |status| status.to_string()),
                item.next_attempt_at.map_or_else(none, |time| format!("{time:.0}")),
                item.last_error.clone().unwrap_or_else(none),
                item.id.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::add_key;
    use crate::notify::read_target;
    use portcullis_common::store_api::{Notification, WriteIntegration, WriteTarget};

    const DOCUMENT: &str = include_str!("../../../docs/notifications.md");

    fn block(info: &str) -> &'static str {
        let start = format!("```{info}\n");
        DOCUMENT.split(&start).nth(1).unwrap().split("```").next().unwrap()
    }

    #[test]
    fn the_documented_file_is_read() {
        let mut written: WriteIntegration =
            serde_saphyr::from_str(block("yaml integration")).unwrap();
        assert_eq!(written.selection.detection_types, ["Reverse-Shell"]);
        assert_eq!(written.selection.scopes.len(), 3);
        read_target(&written.target, None, false).unwrap();
        assert!(add_key(&mut written).is_err(), "it has a key");
        let WriteTarget::Webhook { secret, .. } = &mut written.target else { panic!("no webhook") };
        *secret = None;
        assert!(add_key(&mut written).unwrap().unwrap().starts_with("whsec_"));
        read_target(&written.target, None, false).unwrap();
    }

    #[test]
    fn the_documented_message_is_one() {
        let message: serde_json::Value = serde_json::from_str(block("json notification")).unwrap();
        let data: Notification = serde_json::from_value(message["data"].clone()).unwrap();
        let again = serde_json::to_value(&data).unwrap();
        assert_eq!(again, message["data"], "with these keys and no others");
    }
}
