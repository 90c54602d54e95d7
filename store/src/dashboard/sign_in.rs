//! Signing in and out.

use super::html::Html;
use super::layout::Layout;
use super::page::{
    OpenPage, Page, PageError, PageResult, alert, own_path, render_with, see_other,
    see_other_with_cookie,
};
use super::{Pages, fields::Fields, filters, forgery, session};
use crate::api::ApiError;
use crate::database::NewAuditEntry;
use crate::service::{AuthenticationError, now};
use askama::Template;
use portcullis_common::store_api::Role;

/// Where people sign in.
pub(super) const PATH: &str = "/sign-in";

pub(super) fn pages(pages: &mut Pages) {
    pages.open_get(PATH, form);
    pages.open_post(PATH, sign_in);
    pages.post("/sign-out", Role::Viewer, sign_out);
}

/// An identity provider that people can sign in by.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// What it is called.
    pub(crate) name: String,
    /// Where signing in begins.
    pub(crate) href: String,
}

#[derive(Debug, Template)]
#[template(path = "sign_in.html")]
struct SignIn {
    layout: Layout,
    next: String,
    alert: Option<Html>,
    providers: Vec<Provider>,
}

/// The page, with what went wrong the last time.
pub(crate) fn show(page: &OpenPage, next: &str, error: Option<&PageError>) -> PageResult {
    let shown = SignIn {
        layout: Layout::open(page, "Sign in"),
        next: next.to_owned(),
        alert: error.map(|error| alert(error.problem())).transpose()?,
        providers: page.dashboard.providers(next),
    };
    render_with(error.map_or(200, |error| error.problem().status), &shown)
}

async fn form(page: OpenPage) -> PageResult {
    let next = own_path(page.query.get("next")).to_owned();
    if page.session().await?.is_some() {
        return see_other(&next);
    }
    show(&page, &next, None)
}

async fn sign_in(page: OpenPage, form: Fields) -> PageResult {
    let next = own_path(form.get("next")).to_owned();
    match begin(&page, form.text("token")).await {
        Ok(cookie) => see_other_with_cookie(&next, cookie),
        Err(error) => show(&page, &next, Some(&error)),
    }
}

async fn begin(page: &OpenPage, secret: &str) -> Result<axum::http::HeaderValue, PageError> {
    let dashboard = &page.dashboard;
    // A page of another site must not sign somebody in as somebody else.
    if forgery::is_foreign(&page.headers, &dashboard.store.configuration.public_url) {
        return Err(ApiError::forbidden("the form was not sent from this page").into());
    }
    match dashboard.store.authenticate(secret).await {
        Ok(found) => Ok(session::begin(
            dashboard,
            (*found.caller).clone(),
            Vec::new(),
            "token",
            page.address,
        )
        .await?),
        Err(AuthenticationError::Database(error)) => Err(ApiError::from(error).into()),
        Err(error) => {
            dashboard.limits.check_failure(page.address)?;
            let record = NewAuditEntry {
                time_ms: now().as_millisecond(),
                actor: "nobody".to_owned(),
                action: "session.refuse",
                subject: "dashboard".to_owned(),
                detail: Some(error.to_string()),
                address: Some(page.address.to_string()),
            };
            dashboard.store.database.audit(&record).await.map_err(ApiError::from)?;
            Err(ApiError::unauthorized(error.to_string())
                .hint("an admin can make a token under Access, or with `portcullis token create`")
                .into())
        }
    }
}

async fn sign_out(page: Page, _: Fields) -> PageResult {
    let cookie = session::end(&page.open.dashboard, &page.session, None, page.open.address).await?;
    see_other_with_cookie("/sign-in?done=signed-out", cookie)
}
