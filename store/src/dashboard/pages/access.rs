//! Who may do what: tokens; and who did what: the audit log.

use crate::api::ApiError;
use crate::dashboard::api_client::path;
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use axum::http::Method;
use portcullis_common::store_api::{self, AuditEntry, CreateToken, CreatedSecret, Role, Token};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/access", Role::Admin, access);
    pages.post("/access", Role::Admin, create);
    pages.post("/tokens/{id}/revoke", Role::Admin, revoke);
    pages.get("/audit-log", Role::Admin, audit_log);
}

/// Rows of one page.
const ROWS: &str = "100";

/// The longest life of a token that is asked for in days.
const MAX_DAYS: u32 = 3650;

#[derive(Debug, Template)]
#[template(path = "access.html")]
struct Access {
    layout: Layout,
    tokens: Vec<Token>,
    /// What people can sign in by besides a token: the provider's host, and which of its groups has which role.
    provider: Option<(String, Vec<(String, Role)>)>,
    made: Option<(String, CreatedSecret)>,
    alert: Option<Html>,
}

#[derive(Debug, Template)]
#[template(path = "audit_log.html")]
struct AuditLog {
    layout: Layout,
    rows: String,
    actor: String,
    action: String,
    subject: String,
}

#[derive(Debug, Template)]
#[template(path = "audit_rows.html")]
struct Rows {
    entries: Vec<AuditEntry>,
    next: Option<String>,
}

async fn shown(
    page: &Page,
    made: Option<(String, CreatedSecret)>,
    alert: Option<Html>,
) -> Result<Access, PageError> {
    let found: store_api::Page<Token> = page.api.get(&path(&["tokens"])).await?;
    let layout = page.layout("Access", Section::Access);
    let store = &page.open.dashboard.store;
    let provider = store.sign_in.as_ref().zip(store.configuration.sign_in.as_ref()).map(
        |(sign_in, configured)| {
            let roles = configured.roles.iter().map(|(group, role)| (group.clone(), *role));
            (sign_in.provider(), roles.collect())
        },
    );
    Ok(Access { layout, tokens: found.items, provider, made, alert })
}

async fn access(page: Page) -> PageResult {
    render(&shown(&page, None, None).await?)
}

async fn make(page: &Page, form: &Fields) -> Result<(String, CreatedSecret), PageError> {
    let role: Role = form
        .text("role")
        .parse()
        .map_err(|_| ApiError::bad_request("choose a role: viewer, editor or admin"))?;
    let days: Option<u32> = match form.get("days") {
        None => None,
        Some(text) => Some(
            text.parse()
                .ok()
                .filter(|days| (1..=MAX_DAYS).contains(days))
                .ok_or_else(|| ApiError::bad_request("a token lasts for 1 to 3650 days"))?,
        ),
    };
    let body = CreateToken {
        name: form.text("name").to_owned(),
        role,
        expires_in_seconds: days.map(|days| days * 86_400),
    };
    let made = page.api.send_json(Method::POST, &path(&["tokens"]), &body).await?;
    Ok((body.name, made))
}

async fn create(page: Page, form: Fields) -> PageResult {
    match make(&page, &form).await {
        Ok(made) => render(&shown(&page, Some(made), None).await?),
        Err(error) => {
            let told = alert(error.problem())?;
            render_with(error.problem().status, &shown(&page, None, Some(told)).await?)
        }
    }
}

async fn revoke(page: Page, _: Fields) -> PageResult {
    page.api.delete(&path(&["tokens", page.param("id")])).await?;
    see_other("/access?done=token-revoked")
}

async fn audit_log(page: Page) -> PageResult {
    let mut asked = path(&["audit-log"]).with("limit", ROWS);
    for name in ["actor", "action", "subject", "cursor"] {
        asked = asked.with_some(name, page.query(name));
    }
    let found: store_api::Page<AuditEntry> = page.api.get(&asked).await?;
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| format!("/audit-log?{query}&cursor={cursor}"));
    let rows = Rows { entries: found.items, next };
    if page.is_part {
        return render(&rows);
    }
    let text = |name| page.query(name).unwrap_or_default().to_owned();
    render(&AuditLog {
        layout: page.layout("Audit log", Section::AuditLog),
        rows: rows.render()?,
        actor: text("actor"),
        action: text("action"),
        subject: text("subject"),
    })
}
