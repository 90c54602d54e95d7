//! `portcullis doctor`.

use super::connect::{Place, StoreOptions};
use super::output::{Table, show};
use anyhow::bail;
use clap::Args;
use portcullis_common::hook::with_causes;
use portcullis_common::store_api::{Page, PolicySummary};
use portcullis_store_client::StoreError;
use serde::Serialize;

#[derive(Args, Debug)]
pub(super) struct Doctor {
    #[command(flatten)]
    store: StoreOptions,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
}

impl Doctor {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let checks = self.look().await;
        show(self.store.output, &checks, |checks| {
            Table::new(
                ["", "WHAT", "FOUND"],
                checks.iter().map(|check| {
                    [
                        if check.ok { "ok" } else { "FAIL" }.to_owned(),
                        check.name.to_owned(),
                        check.found.clone(),
                    ]
                }),
            )
        })?;
        let failed = checks.iter().filter(|check| !check.ok).count();
        if failed > 0 {
            bail!("{failed} of {} checks failed", checks.len());
        }
        Ok(())
    }

    async fn look(&self) -> Vec<Check> {
        let check = |name, result: Result<String, String>| match result {
            Ok(found) => Check { name, ok: true, found },
            Err(found) => Check { name, ok: false, found },
        };
        let place = self.store.place().map_err(|error| with_causes(error.as_ref()));
        let server = match place {
            Err(problem) => return vec![check("configuration", Err(problem))],
            Ok(Place::Directory(policies)) => {
                let found =
                    format!("{} policies without a mistake", policies.library().names().count());
                return vec![check("policy files", Ok(found))];
            }
            Ok(Place::Server(server)) => server,
        };
        let name = self.store.server_name();
        let mut checks = vec![check("configuration", Ok(name))];
        let asked: Result<Page<PolicySummary>, StoreError> =
            server.get("policies", &[("limit", "1".to_owned())]).await;
        let (reached, allowed) = match &asked {
            Ok(_) => {
                (Ok("the store answers".to_owned()), Some(Ok("the token may read".to_owned())))
            }
            Err(StoreError::Refused(problem)) if problem.status < 500 => {
                (Ok("the store answers".to_owned()), Some(Err(problem.detail.clone())))
            }
            Err(error) => (Err(with_causes(error)), None),
        };
        checks.push(check("connection", reached));
        checks.extend(allowed.map(|allowed| check("token", allowed)));
        checks
    }
}
