//! All policies as one text, out and in.

use super::access::Called;
use super::extract::{Answer, Params, Text, TextBody, TheStore};
use super::policies::comment;
use super::problem::{ApiResult, invalid_policy};
use super::{EDITOR, Routes, VIEWER};
use crate::catalog::{self, Snapshot};
use axum::extract::State;
use portcullis_common::policy::parse_documents;
use portcullis_common::store_api::ImportOutcome;
use portcullis_common::text::log_line;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

const TAG: &str = "bundles";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/policies:export"),
        VIEWER,
        (TAG, "All policies with their attachments, as the files of a directory would have them"),
        export,
    );
    routes.api(
        ("POST", "/policies:import"),
        EDITOR,
        (TAG, "Makes the store hold what a bundle says; doing it again changes nothing"),
        import,
    );
}

async fn export(State(store): TheStore) -> ApiResult<Text> {
    let snapshot = store.snapshot().await?;
    Ok(Text("application/yaml", catalog::export(&snapshot)))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct ImportParams {
    /// Tell what would be done, and do nothing.
    dry_run: bool,
    /// Also delete the policies that are not in the bundle.
    prune: bool,
    /// Why; stands in the history.
    comment: Option<String>,
    /// What messages call the bundle: the name of the file it comes from.
    source: Option<String>,
}

async fn import(
    State(store): TheStore,
    called: Called,
    Params(params): Params<ImportParams>,
    TextBody(body): TextBody,
) -> ApiResult<Answer<ImportOutcome>> {
    let file = params
        .source
        .as_deref()
        .map_or_else(|| "bundle".to_owned(), |source| log_line(source, 200));
    let bundle = parse_documents(&file, &body).map_err(|errors| invalid_policy(&errors))?;
    let comment = comment(params.comment.as_deref())?;
    let mut first_versions = BTreeMap::new();
    let snapshot = store.snapshot().await?;
    for source in &bundle {
        let name = source.document.name.as_str();
        if snapshot.get(name).is_none() {
            first_versions
                .insert(name.to_owned(), store.database.next_version_of_name(name).await?);
        }
    }
    let actor = called.actor();
    let decide = |snapshot: &Snapshot, now| -> ApiResult<_> {
        let imported = catalog::import(
            snapshot,
            bundle.clone(),
            &first_versions,
            params.prune,
            comment,
            &actor,
            now,
        )?;
        Ok(imported)
    };
    if params.dry_run {
        let (_, policies) = decide(&snapshot, crate::service::now())?;
        return Ok(Answer(ImportOutcome { dry_run: true, policies }));
    }
    let detail =
        format!("{} policies{}", bundle.len(), if params.prune { ", others deleted" } else { "" });
    let record = ("policy.import", "policies".to_owned(), Some(detail));
    let (_, policies) = store.change(&called.write_request(), record, decide).await?;
    Ok(Answer(ImportOutcome { dry_run: false, policies }))
}
