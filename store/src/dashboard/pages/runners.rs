//! Runner hosts: who they are, when they were heard of, what is in force on them; and how to install one.

use crate::api::ApiError;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render, see_other};
use crate::dashboard::{Pages, filters, html};
use crate::service::now;
use askama::Template;
use axum::http::Method;
use jiff::Timestamp;
use portcullis_common::store_api::{
    self, CreateEnrolment, CreatedSecret, Enrolment, Host, HostState, Role,
};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/runners", Role::Viewer, list);
    pages.get("/runners/{id}", Role::Viewer, show);
    pages.post("/runners/{id}/revoke", Role::Admin, revoke);
    pages.get("/install", Role::Viewer, install);
    pages.post("/install", Role::Admin, enrol);
    pages.post("/enrolments/{id}/revoke", Role::Admin, revoke_enrolment);
}

#[derive(Debug, Template)]
#[template(path = "runners.html")]
struct Runners {
    layout: Layout,
    hosts: Vec<(Host, Option<HostState>, bool)>,
    revoked: usize,
    with_revoked: bool,
    /// The version of this server: hosts that have another one are out of step.
    own_version: &'static str,
}

#[derive(Debug, Template)]
#[template(path = "runner.html")]
struct Runner {
    layout: Layout,
    host: Host,
    state: Option<HostState>,
    is_silent: bool,
}

#[derive(Debug, Template)]
#[template(path = "install.html")]
struct Install {
    layout: Layout,
    /// `vm`, `image` or `arc`.
    kind: &'static str,
    cluster: String,
    url: String,
    made: Option<CreatedSecret>,
    enrolments: Vec<Enrolment>,
}

/// After which time a host is silent: three heartbeats, of which monitors send one every five minutes, and the minute to which the
/// store notes when it heard of a host.
const SILENT_AFTER: Duration = Duration::from_mins(16);

/// Whether a host that used to say every few minutes that it is there does not any more. Of one whose monitor knows no heartbeat,
/// nobody can tell.
fn is_silent(host: &Host, now: Timestamp) -> bool {
    let last = host.last_seen_at.filter(|_| host.version.is_some() && host.revoked_at.is_none());
    last.is_some_and(|last| last + SILENT_AFTER < now)
}

async fn hosts(page: &Page) -> Result<Vec<Host>, PageError> {
    let found: store_api::Page<Host> = page.api.get(&path(&["hosts"])).await?;
    Ok(found.items)
}

async fn list(page: Page) -> PageResult {
    let with_revoked = page.open.query.is_set("revoked");
    let all = hosts(&page).await?;
    let states: store_api::Page<HostState> = page.api.get(&path(&["hosts:state"])).await?;
    let mut by_host: BTreeMap<String, HostState> =
        states.items.into_iter().map(|state| (state.host_id.clone(), state)).collect();
    let revoked = all.iter().filter(|host| host.revoked_at.is_some()).count();
    let hosts = all
        .into_iter()
        .filter(|host| with_revoked || host.revoked_at.is_none())
        .map(|host| {
            let state = by_host.remove(&host.id);
            let is_silent = is_silent(&host, now());
            (host, state, is_silent)
        })
        .collect();
    let layout = page.layout("Runners", Section::Runners);
    let own_version = env!("CARGO_PKG_VERSION");
    render(&Runners { layout, hosts, revoked, with_revoked, own_version })
}

async fn show(page: Page) -> PageResult {
    let id = page.param("id");
    let host = hosts(&page).await?.into_iter().find(|host| host.id == id);
    let host = host.ok_or_else(|| PageError::not_found("there is no such host"))?;
    let state = page.api.find(&path(&["hosts", id, "state"])).await?;
    let title = portcullis_common::text::shown(&host.name, 100);
    let is_silent = is_silent(&host, now());
    render(&Runner { layout: page.layout(title, Section::Runners), host, state, is_silent })
}

async fn revoke(page: Page, _: Fields) -> PageResult {
    let id = page.param("id");
    page.api.delete(&path(&["hosts", id])).await?;
    see_other(&format!("/runners/{}?done=host-revoked", segment(id)))
}

fn kind(name: Option<&str>) -> &'static str {
    match name {
        Some("image") => "image",
        Some("arc") => "arc",
        _ => "vm",
    }
}

async fn install_page(
    page: &Page,
    kind: &'static str,
    cluster: String,
    made: Option<CreatedSecret>,
) -> PageResult {
    let enrolments = if page.may(Role::Admin) {
        page.api.get::<store_api::Page<Enrolment>>(&path(&["enrolments"])).await?.items
    } else {
        Vec::new()
    };
    render(&Install {
        layout: page.layout("Install", Section::Install),
        kind,
        cluster,
        url: page.open.dashboard.public_url().to_owned(),
        made,
        enrolments,
    })
}

async fn install(page: Page) -> PageResult {
    let cluster = page.query("cluster").unwrap_or("prod-linux").to_owned();
    install_page(&page, kind(page.query("kind")), cluster, None).await
}

async fn enrol(page: Page, form: Fields) -> PageResult {
    let number = |name: &str, most: u32| -> Result<u32, PageError> {
        form.number::<u32>(name).filter(|number| (1..=most).contains(number)).ok_or_else(|| {
            ApiError::bad_request(format!("`{name}` must be a number from 1 to {most}")).into()
        })
    };
    let body = CreateEnrolment {
        cluster: form.text("cluster").to_owned(),
        hosts: Some(number("hosts", 100_000)?),
        expires_in_seconds: Some(number("hours", 90 * 24)?.saturating_mul(3600)),
    };
    let made: CreatedSecret =
        page.api.send_json(Method::POST, &path(&["enrolments"]), &body).await?;
    install_page(&page, kind(form.get("kind")), body.cluster, Some(made)).await
}

async fn revoke_enrolment(page: Page, _: Fields) -> PageResult {
    page.api.delete(&path(&["enrolments", page.param("id")])).await?;
    see_other("/install?done=enrolment-revoked")
}

#[cfg(test)]
mod tests {
    use super::is_silent;
    use portcullis_common::store_api::Host;
    use serde_json::json;

    #[test]
    fn a_host_is_silent_after_three_heartbeats() {
        let host = |seen: &str, version: Option<&str>, revoked: Option<&str>| -> Host {
            serde_json::from_value(json!({
                "id": "h", "name": "h", "cluster": "c", "enrolled_at": "2026-01-01T00:00:00Z",
                "last_seen_at": seen, "version": version, "revoked_at": revoked,
            }))
            .unwrap()
        };
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let (late, soon) = ("2026-01-01T11:43:59Z", "2026-01-01T11:45:00Z");
        assert!(is_silent(&host(late, Some("1.0.0"), None), now));
        assert!(!is_silent(&host(soon, Some("1.0.0"), None), now));
        assert!(!is_silent(&host(late, None, None), now), "its monitor knows no heartbeat");
        assert!(!is_silent(&host(late, Some("1.0.0"), Some(soon)), now));
    }
}
