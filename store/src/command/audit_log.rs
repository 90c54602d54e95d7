//! `portcullis audit-log`.

use super::connect::StoreOptions;
use super::output::{Table, show};
use clap::Args;
use portcullis_common::store_api::{AuditEntry, Page};

#[derive(Args, Debug)]
pub(super) struct AuditLog {
    #[command(flatten)]
    store: StoreOptions,
    /// Only what this actor did: `token:ci`.
    #[arg(long)]
    actor: Option<String>,
    /// Only this action, or this kind of action: `policy.write`, `policy`.
    #[arg(long)]
    action: Option<String>,
    /// Only what concerns this: `policy:node-build`.
    #[arg(long)]
    subject: Option<String>,
    /// How many entries.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

impl AuditLog {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut query = vec![("limit", self.limit.to_string())];
        for (key, value) in
            [("actor", &self.actor), ("action", &self.action), ("subject", &self.subject)]
        {
            query.extend(value.as_ref().map(|value| (key, value.clone())));
        }
        let page: Page<AuditEntry> = self.store.server()?.get("audit-log", &query).await?;
        show(self.store.output, &page.items, |entries| {
            Table::new(
                ["TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL", "FROM"],
                entries.iter().map(|entry| {
                    [
                        format!("{:.0}", entry.time),
                        entry.actor.clone(),
                        entry.action.clone(),
                        entry.subject.clone(),
                        entry.detail.clone().unwrap_or_default(),
                        entry.address.clone().unwrap_or_default(),
                    ]
                }),
            )
        })
    }
}
