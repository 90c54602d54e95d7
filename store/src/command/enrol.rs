//! `portcullis enrol`.

use super::access::secret;
use super::connect::StoreOptions;
use super::output::{Table, done, show};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use portcullis_common::store_api::{
    CreateEnrolment, CreatedSecret, Credential, Host as StoredHost, Page,
};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

#[derive(Args, Debug)]
pub(super) struct Enrol {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: EnrolCommand,
}

#[derive(Debug, Subcommand)]
enum EnrolCommand {
    /// Make an enrolment token and print it, this once.
    Create {
        /// The cluster that the hosts will belong to.
        #[arg(long)]
        cluster: String,
        /// How many hosts may enrol with it.
        #[arg(long, default_value_t = 1)]
        hosts: u32,
        /// For how many minutes it can be used.
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
    /// Enrol this host: on the runner host, as root, with an enrolment token.
    Host {
        /// A file with the enrolment token; `-` for standard input.
        #[arg(long, value_name = "FILE")]
        enrolment_file: PathBuf,
        /// What this host calls itself; without this, its host name.
        #[arg(long)]
        name: Option<String>,
        /// Where the credential is kept, readable by root alone.
        #[arg(long, default_value = "/etc/portcullis/credential", value_name = "FILE")]
        credential_file: PathBuf,
    },
    /// List all runner hosts.
    List,
    /// Revoke a host's credentials at once.
    Revoke {
        /// The host's id.
        id: String,
    },
}

impl Enrol {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            EnrolCommand::Create { cluster, hosts, minutes } => {
                let body = CreateEnrolment {
                    cluster: cluster.clone(),
                    hosts: Some(*hosts),
                    expires_in_seconds: Some(minutes.saturating_mul(60)),
                };
                let made: CreatedSecret =
                    self.store.server()?.post("enrolments", &[], &body).await?;
                secret(self.store.output, &made)
            }
            EnrolCommand::Host { enrolment_file, name, credential_file } => {
                let (token, _) = super::policy::read(enrolment_file)?;
                let token = String::from_utf8(token).context("the enrolment token is no text")?;
                let name = match name {
                    Some(name) => name.clone(),
                    None => fs::read_to_string("/proc/sys/kernel/hostname")
                        .context("the host's name can't be read; say --name")?
                        .trim()
                        .to_owned(),
                };
                let connection = self.store.connection()?;
                let enrolled =
                    portcullis_store_client::enrol(&connection, token.trim(), &name).await?;
                let credential = Credential {
                    host_id: enrolled.host_id,
                    credential: enrolled.credential,
                    issued_at: enrolled.issued_at,
                    expires_at: enrolled.expires_at,
                    signing_keys: enrolled.signing_keys,
                    audience: enrolled.audience,
                };
                keep(credential_file, &credential)?;
                let answer = json!({
                    "host_id": credential.host_id, "host_name": name, "cluster": enrolled.cluster,
                    "credential_file": credential_file, "expires_at": credential.expires_at,
                });
                let sentence = format!(
                    "host {name} is enrolled in cluster {}; its credential is in {}",
                    enrolled.cluster,
                    credential_file.display()
                );
                done(self.store.output, &answer, &sentence)
            }
            EnrolCommand::List => {
                let page: Page<StoredHost> = self.store.server()?.get("hosts", &[]).await?;
                show(self.store.output, &page.items, |hosts| {
                    Table::new(
                        ["ID", "NAME", "CLUSTER", "VERSION", "ENROLLED", "LAST SEEN", "REVOKED"],
                        hosts.iter().map(|host| {
                            let time = |time: Option<jiff::Timestamp>| {
                                time.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"))
                            };
                            [
                                host.id.clone(),
                                host.name.clone(),
                                host.cluster.clone(),
                                host.version.clone().unwrap_or_else(|| "-".to_owned()),
                                format!("{:.0}", host.enrolled_at),
                                time(host.last_seen_at),
                                time(host.revoked_at),
                            ]
                        }),
                    )
                })
            }
            EnrolCommand::Revoke { id } => {
                self.store.server()?.delete(&format!("hosts/{id}"), &[]).await?;
                let answer = json!({ "host_id": id, "action": "revoked" });
                done(self.store.output, &answer, &format!("host {id} is revoked"))
            }
        }
    }
}

/// Keeps a credential where its owner alone can read it, whole or not at all.
fn keep(path: &Path, credential: &Credential) -> anyhow::Result<()> {
    let failed = || {
        format!(
            "{} can't be written; the enrolment token is used up, make a new one",
            path.display()
        )
    };
    let new = path.with_extension("new");
    let bytes = serde_json::to_vec_pretty(credential)?;
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&new, path)
    };
    write().with_context(failed)
}
