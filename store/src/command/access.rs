//! `portcullis token`.

use super::connect::StoreOptions;
use super::output::{Output, Table, done, print, show};
use clap::{Args, Subcommand};
use portcullis_common::store_api::{CreateToken, CreatedSecret, Page, Role, Token as StoredToken};
use serde_json::json;

#[derive(Args, Debug)]
pub(super) struct Token {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// List all tokens, without their secrets.
    List,
    /// Make a token and print its secret, this once.
    Create {
        /// Whose it is, or what it is for.
        name: String,
        /// What it allows: admin, editor or viewer.
        #[arg(long)]
        role: Role,
        /// After how many days it ends; without this, never.
        #[arg(long)]
        days: Option<u32>,
    },
    /// Revoke a token at once.
    Revoke {
        /// The token's id.
        id: String,
    },
}

impl Token {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        match &self.command {
            TokenCommand::List => {
                let page: Page<StoredToken> = server.get("tokens", &[]).await?;
                show(self.store.output, &page.items, |tokens| {
                    Table::new(
                        ["ID", "NAME", "ROLE", "CREATED", "BY", "EXPIRES", "LAST USED"],
                        tokens.iter().map(|token| {
                            [
                                token.id.clone(),
                                token.name.clone(),
                                token.role.to_string(),
                                format!("{:.0}", token.created_at),
                                token.created_by.clone(),
                                token.expires_at.map_or_else(
                                    || "never".to_owned(),
                                    |time| format!("{time:.0}"),
                                ),
                                token
                                    .last_used_at
                                    .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}")),
                            ]
                        }),
                    )
                })
            }
            TokenCommand::Create { name, role, days } => {
                let body = CreateToken {
                    name: name.clone(),
                    role: *role,
                    expires_in_seconds: days.map(|days| days.saturating_mul(24 * 3600)),
                };
                let made: CreatedSecret = server.post("tokens", &[], &body).await?;
                secret(self.store.output, &made)
            }
            TokenCommand::Revoke { id } => {
                server.delete(&format!("tokens/{id}"), &[]).await?;
                let answer = json!({ "token": id, "action": "revoked" });
                done(self.store.output, &answer, &format!("token {id} is revoked"))
            }
        }
    }
}

/// Shows a secret alone, so that it can be redirected into a file.
pub(super) fn secret(output: Output, made: &CreatedSecret) -> anyhow::Result<()> {
    match output {
        Output::Table => print(&format!("{}\n", made.secret)),
        _ => show(output, made, |_| Table::new([""], [])),
    }
}
