//! Baselines: where jobs usually call, and the policy that is made of it.

use super::policy::download;
use crate::api::ApiError;
use crate::dashboard::api_client::{Path, path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::{self, Html};
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use axum::http::Method;
use portcullis_common::policy::EgressMode;
use portcullis_common::store_api::{
    self, BaselineSource, BaselineSummary, DestinationSummary, PolicyFromBaseline,
    PolicyOfBaseline, Role,
};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/baselines", Role::Viewer, list);
    pages.get("/baselines/of", Role::Viewer, show);
    pages.get("/baselines/endpoints.txt", Role::Viewer, export);
    pages.post("/baselines/of", Role::Editor, create_policy);
}

/// Rows of one page.
const ROWS: &str = "100";

#[derive(Debug, Template)]
#[template(path = "baselines.html")]
struct Baselines {
    layout: Layout,
    rows: String,
    source: String,
    state: String,
    repository: String,
    is_empty: bool,
    is_filtered: bool,
}

#[derive(Debug, Template)]
#[template(path = "baselines_rows.html")]
struct Rows {
    baselines: Vec<BaselineSummary>,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "baseline.html")]
struct Show {
    layout: Layout,
    source: BaselineSource,
    query: String,
    /// What it has learned; nothing before its first run.
    learned: Option<BaselineSummary>,
    endpoints: Vec<DestinationSummary>,
    next: Option<String>,
    alert: Option<Html>,
    name: String,
}

/// The parameters that name a baseline.
pub(super) fn parameters(source: &BaselineSource) -> Vec<(&'static str, &str)> {
    match source {
        BaselineSource::Job { repository, workflow, job } => vec![
            ("source", "job"),
            ("repository", repository),
            ("workflow", workflow),
            ("job", job),
        ],
        BaselineSource::Repository { repository } => {
            vec![("source", "repository"), ("repository", repository)]
        }
        BaselineSource::Organization { organization } => {
            vec![("source", "organization"), ("organization", organization)]
        }
        BaselineSource::Cluster { cluster } => vec![("source", "cluster"), ("cluster", cluster)],
    }
}

/// The baseline that parameters or a form name.
pub(super) fn source(fields: &Fields) -> Result<BaselineSource, PageError> {
    let needed = |name: &str, words: &str| {
        fields
            .get(name)
            .map(str::to_owned)
            .ok_or_else(|| PageError::from(ApiError::bad_request(format!("say {words}"))))
    };
    Ok(match fields.text("source") {
        "job" => BaselineSource::Job {
            repository: needed("repository", "which repository")?,
            workflow: needed("workflow", "which workflow")?,
            job: needed("job", "which job")?,
        },
        "repository" => {
            BaselineSource::Repository { repository: needed("repository", "which repository")? }
        }
        "organization" => BaselineSource::Organization {
            organization: needed("organization", "which organization")?,
        },
        "cluster" => BaselineSource::Cluster { cluster: needed("cluster", "which cluster")? },
        _ => return Err(ApiError::bad_request("say whose baseline").into()),
    }
    .normalised())
}

/// The query of a baseline's address.
fn query_of(source: &BaselineSource) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters(source)).finish()
}

fn asked(source: &BaselineSource) -> Path {
    with_parameters(path(&["baselines"]), source)
}

fn with_parameters(path: Path, source: &BaselineSource) -> Path {
    parameters(source).into_iter().fold(path, |path, (name, value)| path.with(name, value))
}

async fn list(page: Page) -> PageResult {
    let mut asked = path(&["baselines", "states"]).with("limit", ROWS);
    for name in ["source", "state", "repository", "cursor"] {
        asked = asked.with_some(name, page.query(name));
    }
    let found: store_api::Page<BaselineSummary> = page.api.get(&asked).await?;
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| format!("/baselines?{query}&cursor={cursor}"));
    let rows = Rows { baselines: found.items, next };
    if page.is_part {
        return render(&rows);
    }
    let text = |name| page.query(name).unwrap_or_default().to_owned();
    render(&Baselines {
        layout: page.layout("Baselines", Section::Baselines),
        is_empty: rows.baselines.is_empty(),
        rows: rows.render()?,
        source: text("source"),
        state: text("state"),
        repository: text("repository"),
        is_filtered: !query.is_empty(),
    })
}

async fn shown(page: &Page, fields: &Fields, alert: Option<Html>) -> Result<Show, PageError> {
    let source = source(fields)?;
    let asked = asked(&source).with("limit", ROWS).with_some("cursor", page.query("cursor"));
    let found: store_api::Page<DestinationSummary> = page.api.get(&asked).await?;
    let states = with_parameters(path(&["baselines", "states"]), &source).with("limit", "1");
    let states: store_api::Page<BaselineSummary> = page.api.get(&states).await?;
    let query = query_of(&source);
    let next = found.next_cursor.map(|cursor| {
        let cursor: String = url::form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
        format!("/baselines/of?{query}&cursor={cursor}")
    });
    let words = portcullis_common::text::shown(&source.words(), 200);
    Ok(Show {
        layout: page.layout(format!("Baseline of {words}"), Section::Baselines),
        query,
        learned: states.items.into_iter().find(|one| one.source == source),
        endpoints: found.items,
        next,
        alert,
        name: fields.get("name").map_or_else(|| suggested_name(&source), str::to_owned),
        source,
    })
}

/// A policy's name that fits a baseline.
fn suggested_name(source: &BaselineSource) -> String {
    let text = match source {
        BaselineSource::Job { repository, job, .. } => format!("{repository}-{job}"),
        BaselineSource::Repository { repository } => repository.clone(),
        BaselineSource::Organization { organization } => organization.clone(),
        BaselineSource::Cluster { cluster } => cluster.clone(),
    };
    let letters: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    letters.trim_matches('-').chars().take(54).chain("-baseline".chars()).collect()
}

async fn show(page: Page) -> PageResult {
    let fields = page.open.query.clone();
    render(&shown(&page, &fields, None).await?)
}

async fn export(page: Page) -> PageResult {
    let source = source(&page.open.query)?;
    let text = page.api.text(&asked(&source), "text/plain").await?;
    let name = suggested_name(&source);
    Ok(download(&format!("{name}-endpoints.txt"), "text/plain; charset=utf-8", text))
}

async fn create_policy(page: Page, form: Fields) -> PageResult {
    let request = PolicyFromBaseline {
        name: form.text("name").to_owned(),
        baseline: source(&form)?,
        egress_policy: if form.text("mode") == "block" {
            EgressMode::Block
        } else {
            EgressMode::Audit
        },
        description: None,
        min_runs: form.number("min_runs"),
        since: None,
        dry_run: false,
        comment: form.get("comment").map(str::to_owned),
    };
    let asked = path(&["policies:from-baseline"]);
    match page.api.send_json::<PolicyOfBaseline>(Method::POST, &asked, &request).await {
        Ok(made) => {
            let name = segment(made.document.0.name.as_str());
            see_other(&format!("/policies/{name}?done=created"))
        }
        Err(error) => {
            let told = alert(error.problem())?;
            render_with(error.problem().status, &shown(&page, &form, Some(told)).await?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{query_of, source, suggested_name};
    use crate::dashboard::fields::Fields;

    #[test]
    fn a_baseline_is_named_by_its_address() {
        let query = "source=job&repository=octo%2Fhello&workflow=octo%2Fhello%2F.github%2Fworkflows%2Fci.yml&job=build";
        let read = source(&Fields::read(query.as_bytes())).unwrap();
        assert_eq!(query_of(&read), query);
        assert_eq!(suggested_name(&read), "octo-hello-build-baseline");
        assert!(source(&Fields::read(b"source=job&repository=a/b")).is_err());
        assert!(source(&Fields::read(b"")).is_err());
    }
}
