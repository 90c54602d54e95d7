//! `portcullis policy`.

use super::connect::{Place, StoreOptions};
use super::dry_run::DryRunOptions;
use super::import_endpoints::ImportOptions;
use super::output::{Found, Output, Table, print, show};
use crate::catalog;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use portcullis_common::policy::{MAX_FILE_BYTES, PolicyDocument};
use portcullis_common::resolution::PolicySet;
use portcullis_common::store_api::{
    LintFinding, Page, Policy as StoredPolicy, PolicyDiff, PolicySummary, PolicyVersion,
    RenamePolicy, RestorePolicy,
};
use portcullis_store_client::{OperatorClient, StoreError};
use std::io::Read as _;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Policy {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// List all policies.
    List,
    /// Show a policy as YAML.
    Get {
        /// The policy.
        name: String,
        /// An earlier version.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Write a policy from a file, or from standard input with `-`.
    Apply {
        /// The file, YAML or JSON.
        file: PathBuf,
        /// Why; stands in the history.
        #[arg(long)]
        comment: Option<String>,
    },
    /// Delete a policy that nothing uses.
    Delete {
        /// The policy.
        name: String,
    },
    /// Give a policy another name; those that extend it follow.
    Rename {
        /// The policy.
        name: String,
        /// Its new name.
        new_name: String,
    },
    /// List the versions of a policy.
    History {
        /// The policy.
        name: String,
    },
    /// Show what changed between two versions: the last two, if nothing is said.
    Diff {
        /// The policy.
        name: String,
        /// Show what a file would change, instead.
        #[arg(long, conflicts_with_all = ["from", "to"])]
        file: Option<PathBuf>,
        /// The older version.
        #[arg(long)]
        from: Option<u64>,
        /// The newer version.
        #[arg(long)]
        to: Option<u64>,
    },
    /// Write an earlier version anew as the newest one.
    Restore {
        /// The policy.
        name: String,
        /// The version.
        version: u64,
    },
    /// Tell what a reviewer should know about a policy.
    Lint {
        /// The policy.
        name: String,
        /// Also endpoints that no job has called in so many days.
        #[arg(long, value_name = "DAYS")]
        unused_days: Option<u32>,
        /// End with status 3 when there is something.
        #[arg(long)]
        check: bool,
    },
    /// Judge a policy, stored or not, against recorded runs: what it would have stopped, and what of it nobody needs.
    DryRun(DryRunOptions),
    /// Add endpoints of a file or a baseline to a policy.
    ImportEndpoints(ImportOptions),
    /// Print what a policy allows, with what it extends, one endpoint a line.
    ExportEndpoints {
        /// The policy.
        name: String,
    },
}

impl Policy {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let place = self.store.place()?;
        match (&self.command, &place) {
            (PolicyCommand::List, Place::Directory(policies)) => self.list_files(policies),
            (PolicyCommand::Get { name, version: None }, Place::Directory(policies)) => {
                print(&document(policies, name)?.to_yaml()?)
            }
            (PolicyCommand::ExportEndpoints { name }, Place::Directory(policies)) => {
                let rules = policies.library().rules(name);
                let rules = rules.with_context(|| no_policy(name))??;
                let lines = rules.allowed.iter().flat_map(|rule| [&rule.text, "\n"]);
                print(&lines.collect::<String>())
            }
            (PolicyCommand::Diff { name, file: Some(file), .. }, Place::Directory(policies)) => {
                self.differences(name, document(policies, name)?, 0, file)
            }
            (
                PolicyCommand::Lint { name, unused_days: None, check },
                Place::Directory(policies),
            ) => {
                let findings = catalog::lint(policies.library(), name);
                let findings = findings.with_context(|| no_policy(name))??;
                self.findings(&Page::whole(findings), *check)
            }
            (_, Place::Directory(_)) => {
                bail!(
                    "this needs a server\n\nhint: a directory of files is changed by changing its files"
                )
            }
            (_, Place::Server(server)) => self.ask(server).await,
        }
    }

    async fn ask(&self, server: &OperatorClient) -> anyhow::Result<()> {
        let output = self.store.output;
        match &self.command {
            PolicyCommand::List => {
                let mut all: Vec<PolicySummary> = Vec::new();
                let mut query = vec![("limit", "1000".to_owned())];
                loop {
                    let page: Page<PolicySummary> = server.get("policies", &query).await?;
                    all.extend(page.items);
                    let Some(cursor) = page.next_cursor else { break };
                    query = vec![("limit", "1000".to_owned()), ("cursor", cursor)];
                }
                show(output, &all, |all| {
                    Table::new(
                        ["NAME", "VERSION", "MODE", "ATTACHED TO", "UPDATED", "BY"],
                        all.iter().map(|policy| {
                            [
                                policy.name.clone(),
                                policy.version.to_string(),
                                policy.egress_policy.map_or_else(
                                    || "-".to_owned(),
                                    |mode| format!("{mode:?}").to_lowercase(),
                                ),
                                targets(&policy.attachments),
                                format!("{:.0}", policy.updated_at),
                                policy.updated_by.clone(),
                            ]
                        }),
                    )
                })
            }
            PolicyCommand::Get { name, version: None } => {
                print(&server.get_text(&format!("policies/{name}"), "application/yaml", &[]).await?)
            }
            PolicyCommand::Get { name, version: Some(version) } => {
                let path = format!("policies/{name}/versions/{version}");
                let version: PolicyVersion = server.get(&path, &[]).await?;
                let document = version.document.context("the store sent no document")?;
                print(&document.0.to_yaml()?)
            }
            PolicyCommand::Apply { file, comment } => apply(server, file, comment.as_deref()).await,
            PolicyCommand::Delete { name } => {
                Ok(server.delete(&format!("policies/{name}"), &[]).await?)
            }
            PolicyCommand::Rename { name, new_name } => {
                let body = RenamePolicy { name: new_name.clone(), comment: None };
                let policy: StoredPolicy =
                    server.post(&format!("policies/{name}/rename"), &[], &body).await?;
                written(&policy, "renamed")
            }
            PolicyCommand::History { name } => {
                let path = format!("policies/{name}/versions");
                let page: Page<PolicyVersion> =
                    server.get(&path, &[("limit", "1000".to_owned())]).await?;
                show(output, &page.items, |items| {
                    Table::new(
                        ["VERSION", "WRITTEN", "BY", "NAME", "COMMENT"],
                        items.iter().map(|version| {
                            [
                                version.version.to_string(),
                                format!("{:.0}", version.created_at),
                                version.author.clone(),
                                version.name.clone(),
                                version.comment.clone().unwrap_or_default(),
                            ]
                        }),
                    )
                })
            }
            PolicyCommand::Diff { name, file: Some(file), .. } => {
                let policy: StoredPolicy = server.get(&format!("policies/{name}"), &[]).await?;
                self.differences(name, &policy.document.0, policy.summary.version, file)
            }
            PolicyCommand::Diff { name, from, to, file: None } => {
                let query: Vec<(&str, String)> = [("from", from), ("to", to)]
                    .into_iter()
                    .filter_map(|(key, version)| version.map(|version| (key, version.to_string())))
                    .collect();
                let diff: PolicyDiff = server.get(&format!("policies/{name}/diff"), &query).await?;
                match output {
                    Output::Table => print(&diff.unified),
                    _ => show(output, &diff, |_| Table::new([""], [])),
                }
            }
            PolicyCommand::Restore { name, version } => {
                let body = RestorePolicy { version: *version, comment: None };
                let policy: StoredPolicy =
                    server.post(&format!("policies/{name}/restore"), &[], &body).await?;
                written(&policy, "restored")
            }
            PolicyCommand::Lint { name, unused_days, check } => {
                let days = unused_days.map(|days| ("unused_days", days.to_string()));
                let query: Vec<_> = days.into_iter().collect();
                self.findings(&server.get(&format!("policies/{name}/lint"), &query).await?, *check)
            }
            PolicyCommand::DryRun(options) => options.run(&self.store, server).await,
            PolicyCommand::ImportEndpoints(options) => options.run(output, server).await,
            PolicyCommand::ExportEndpoints { name } => {
                let path = format!("policies/{name}/endpoints");
                print(&server.get_text(&path, "text/plain", &[]).await?)
            }
        }
    }

    fn list_files(&self, policies: &PolicySet) -> anyhow::Result<()> {
        let documents: Vec<&PolicyDocument> =
            policies.library().documents().map(|source| &source.document).collect();
        show(self.store.output, &documents, |all| {
            Table::new(
                ["NAME", "MODE", "ATTACHED TO"],
                all.iter().map(|document| {
                    [
                        document.name.to_string(),
                        document.egress_policy.map_or_else(
                            || "-".to_owned(),
                            |mode| format!("{mode:?}").to_lowercase(),
                        ),
                        targets(&document.attach),
                    ]
                }),
            )
        })
    }

    /// What a file would change in a policy.
    fn differences(
        &self,
        name: &str,
        old: &PolicyDocument,
        version: u64,
        file: &std::path::Path,
    ) -> anyhow::Result<()> {
        let (bytes, source) = read(file)?;
        let documents =
            portcullis_common::policy::parse_documents(&source, &bytes).map_err(|errors| {
                anyhow::anyhow!("{}", errors.to_string().trim_start_matches("error: "))
            })?;
        let new = documents
            .iter()
            .find(|source| source.document.name.as_str() == name)
            .with_context(|| format!("{source} has no policy named `{name}`"))?;
        // Attachments are no part of a version.
        let without =
            |document: &PolicyDocument| PolicyDocument { attach: Vec::new(), ..document.clone() };
        let (old, new) = (without(old), without(&new.document));
        let mut diff = catalog::diff(name, (version, &old), (version + 1, &new));
        // A file is no version yet, and neither is one of a directory.
        let header = (format!("+++ {name} version {}", version + 1), format!("+++ {source}"));
        diff.unified = diff.unified.replacen(&header.0, &header.1, 1);
        if version == 0 {
            diff.unified =
                diff.unified.replacen(&format!("--- {name} version 0"), &format!("--- {name}"), 1);
        }
        match self.store.output {
            Output::Table => print(&diff.unified),
            output => show(output, &diff, |_| Table::new([""], [])),
        }
    }

    fn findings(&self, page: &Page<LintFinding>, check: bool) -> anyhow::Result<()> {
        show(self.store.output, &page.items, |items| {
            Table::new(
                ["RULE", "FINDING", "HINT"],
                items.iter().map(|finding| {
                    [finding.rule.clone(), finding.message.clone(), finding.hint.clone()]
                }),
            )
        })?;
        if check && !page.items.is_empty() {
            return Err(Found(format!("there are {} findings", page.items.len())).into());
        }
        Ok(())
    }
}

/// Targets in words.
fn targets(targets: &[portcullis_common::policy::Attachment]) -> String {
    match targets {
        [] => "-".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn document<'a>(policies: &'a PolicySet, name: &str) -> anyhow::Result<&'a PolicyDocument> {
    let source = policies.library().get(name);
    Ok(&source.with_context(|| no_policy(name))?.document)
}

fn written(policy: &StoredPolicy, what: &str) -> anyhow::Result<()> {
    print(&format!("policy {} {what}, version {}\n", policy.summary.name, policy.summary.version))
}

/// Writes a document over the version that is there now, so that what somebody else writes meanwhile is not lost.
async fn apply(
    server: &OperatorClient,
    file: &std::path::Path,
    comment: Option<&str>,
) -> anyhow::Result<()> {
    let (bytes, source) = read(file)?;
    let name = portcullis_common::policy::parse_documents(&source, &bytes)
        .map_err(|errors| anyhow::anyhow!("{}", errors.to_string().trim_start_matches("error: ")))?
        .first()
        .map(|source| source.document.name.to_string())
        .context("there is no policy in this file")?;
    let path = format!("policies/{name}");
    let tag = match server.get_versioned::<StoredPolicy>(&path).await {
        Ok((_, tag)) => tag,
        Err(StoreError::Refused(problem)) if problem.status == 404 => None,
        Err(error) => return Err(error.into()),
    };
    let mut query = vec![("source", source)];
    query.extend(comment.map(|comment| ("comment", comment.to_owned())));
    let policy: StoredPolicy = server.put_text(&path, &query, bytes, tag.as_deref()).await?;
    written(&policy, if tag.is_some() { "updated" } else { "created" })
}

/// A file or standard input, bounded, with what messages call it.
pub(super) fn read(file: &std::path::Path) -> anyhow::Result<(Vec<u8>, String)> {
    let limit = 16 * MAX_FILE_BYTES as u64;
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
        return Ok((bytes, "standard input".to_owned()));
    }
    std::fs::File::open(file)
        .and_then(|opened| opened.take(limit).read_to_end(&mut bytes))
        .with_context(|| format!("{} can't be read", file.display()))?;
    Ok((bytes, file.display().to_string()))
}

fn no_policy(name: &str) -> String {
    format!("there is no policy named `{name}`\n\nhint: `portcullis policy list` shows all names")
}
