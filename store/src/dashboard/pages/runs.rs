//! Runs, and the jobs of one.

use super::DAYS;
use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::store_api::{self, Role, Run, RunJobs};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/runs", Role::Viewer, list);
    pages.get("/runs/{id}", Role::Viewer, show);
}

/// Rows of one page.
const ROWS: &str = "50";

/// Parameters that are the API's as well.
const FILTERS: [&str; 9] = [
    "repository",
    "organization",
    "workflow",
    "cluster",
    "policy",
    "blocked",
    "detections",
    "endpoint",
    "cursor",
];

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a box of the page, or says what it is empty of"
)]
#[derive(Debug, Template)]
#[template(path = "runs.html")]
struct Runs {
    layout: Layout,
    rows: String,
    repository: String,
    policy: String,
    cluster: String,
    endpoint: String,
    days: String,
    blocked: bool,
    detections: bool,
    is_filtered: bool,
    is_empty: bool,
}

#[derive(Debug, Template)]
#[template(path = "runs_rows.html")]
struct Rows {
    runs: Vec<Run>,
    /// What goes on to the jobs of a run: the endpoint that they called.
    within: String,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "run.html")]
struct Show {
    layout: Layout,
    run: RunJobs,
    link: Option<GitHubRun>,
    /// What goes on to the calls of a job.
    within: String,
}

/// The endpoint of an address as the query of the next one, so that one gets from a destination to the calls themselves.
fn of_endpoint(page: &Page) -> String {
    page.query("endpoint").map_or_else(String::new, |endpoint| {
        let mut query = url::form_urlencoded::Serializer::new("?".to_owned());
        query.append_pair("endpoint", endpoint).finish()
    })
}

async fn list(page: Page) -> PageResult {
    let mut asked = path(&["runs"]).with("limit", ROWS);
    for name in FILTERS {
        asked = asked.with_some(name, page.query(name));
    }
    asked = asked.with_some("since", super::since(&page.open.query).as_deref());
    let found: store_api::Page<Run> = page.api.get(&asked).await?;
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| format!("/runs?{query}&cursor={cursor}"));
    let rows = Rows { runs: found.items, within: of_endpoint(&page), next };
    if page.is_part {
        return render(&rows);
    }
    let text = |name| page.query(name).unwrap_or_default().to_owned();
    render(&Runs {
        layout: page.layout("Runs", Section::Runs),
        is_empty: rows.runs.is_empty(),
        rows: rows.render()?,
        repository: text("repository"),
        policy: text("policy"),
        cluster: text("cluster"),
        endpoint: text("endpoint"),
        days: text("days"),
        blocked: page.open.query.is_set("blocked"),
        detections: page.open.query.is_set("detections"),
        is_filtered: !query.is_empty(),
    })
}

/// Where a run is at GitHub. A job says which server it came from, so people are shown whose page the link leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct GitHubRun {
    /// The server's name.
    pub(super) host: String,
    /// The run's page there.
    pub(super) href: String,
}

/// The run at GitHub, where the server's address is one that a link may lead to.
pub(super) fn github(server_url: &str, repository: &str, run_id: u64) -> Option<GitHubRun> {
    let mut url = url::Url::parse(server_url).ok().filter(|url| url.scheme() == "https")?;
    let host = url.host_str()?.to_owned();
    let (owner, name) = repository.split_once('/')?;
    let run = run_id.to_string();
    url.set_query(None);
    url.set_fragment(None);
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.path_segments_mut().ok()?.clear().extend([owner, name, "actions", "runs", &run]);
    Some(GitHubRun { host, href: url.into() })
}

async fn show(page: Page) -> PageResult {
    let run: RunJobs = page.api.get(&path(&["runs", page.param("id")])).await?;
    let server = run.job_records.first().map(|job| job.context.server_url.as_str());
    let link = server.and_then(|server| github(server, &run.run.repository, run.run.run_id));
    let title =
        format!("{} #{}", portcullis_common::text::shown(&run.run.workflow, 80), run.run.run_id);
    let layout = page.layout(title, Section::Runs);
    render(&Show { layout, run, link, within: of_endpoint(&page) })
}

#[cfg(test)]
mod tests {
    use super::github;

    #[test]
    fn a_link_leads_to_a_run_and_says_whose() {
        let found = github("https://github.com", "octo/hello", 7).unwrap();
        assert_eq!(
            (found.host.as_str(), found.href.as_str()),
            ("github.com", "https://github.com/octo/hello/actions/runs/7")
        );
        let odd = github("https://a:b@evil.test/x?y#z", "o/../\"x y", 7).unwrap();
        assert_eq!(odd.host, "evil.test");
        assert!(
            odd.href.starts_with("https://evil.test/o/") && !odd.href.contains(['"', ' ', '@']),
            "{odd:?}"
        );
        for wrong in
            ["javascript:alert(1)", "http://github.com", "data:text/html,x", "", "github.com"]
        {
            assert_eq!(github(wrong, "octo/hello", 7), None, "{wrong}");
        }
        assert_eq!(github("https://github.com", "no-slash", 7), None);
    }
}
