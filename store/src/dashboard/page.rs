//! What a page is made of: who asks for it, with which parameters, and the API as its caller may use it.

use super::Dashboard;
use super::api_client::ApiClient;
use super::fields::Fields;
use super::filters;
use super::forgery;
use super::html::Html;
use super::layout::{Layout, Section, Theme};
use super::session::{self, Session};
use crate::api::ApiError;
use askama::Template;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use portcullis_common::store_api::{Problem, ProblemDetail, Role};
use std::net::IpAddr;
use std::sync::Arc;

/// A request that needs nobody to be signed in.
#[derive(Clone, Debug)]
pub(crate) struct OpenPage {
    /// The dashboard.
    pub(crate) dashboard: Arc<Dashboard>,
    /// Where the request came from.
    pub(crate) address: IpAddr,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// The parameters of its address.
    pub(crate) query: Fields,
    /// How the reader wants pages to look.
    pub(crate) theme: Theme,
}

/// A request of somebody who is signed in.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// What needs no session.
    pub(crate) open: OpenPage,
    /// Who is signed in.
    pub(crate) session: Session,
    /// The API, as this person may use it.
    pub(crate) api: ApiClient,
    /// Whether a script asks for a part of the page.
    pub(crate) is_part: bool,
    pub(super) params: Vec<(String, String)>,
}

/// What pages return.
pub(crate) type PageResult = Result<Response, PageError>;

/// Why a page can't be shown, or what it asked for can't be done.
#[derive(Clone, Debug)]
pub(crate) enum PageError {
    /// What the API answered.
    Problem(Box<Problem>),
}

impl PageError {
    /// Something is wrong here.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        let detail = detail.into();
        tracing::error!(error = detail, "a page failed");
        ApiError::internal(detail).into()
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: &str) -> Self {
        ApiError::not_found(detail).into()
    }

    /// What went wrong.
    pub(crate) fn problem(&self) -> &Problem {
        let Self::Problem(problem) = self;
        problem
    }
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        Self::Problem(error.problem)
    }
}

impl From<PageError> for ApiError {
    fn from(PageError::Problem(problem): PageError) -> Self {
        Self::of(problem)
    }
}

impl From<askama::Error> for PageError {
    fn from(error: askama::Error) -> Self {
        Self::internal(format!("a template: {error}"))
    }
}

/// What went wrong, on a page or within one.
#[derive(Debug, Template)]
#[template(path = "alert.html")]
pub(crate) struct Alert<'a> {
    title: &'a str,
    detail: &'a str,
    hint: Option<&'a str>,
    errors: &'a [ProblemDetail],
}

impl<'a> Alert<'a> {
    fn new(problem: &'a Problem) -> Self {
        Self {
            title: &problem.title,
            detail: &problem.detail,
            hint: problem.hint.as_deref(),
            errors: &problem.errors,
        }
    }
}

/// An alert as HTML, to be put into a page.
pub(crate) fn alert(problem: &Problem) -> Result<Html, PageError> {
    Ok(Html::rendered(Alert::new(problem).render()?))
}

#[derive(Debug, Template)]
#[template(path = "error.html")]
struct ErrorPage {
    layout: Layout,
    alert: Html,
}

impl Page {
    /// A part of the path: `{name}`.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// A parameter of the address.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.open.query.get(name)
    }

    /// Whether who asks may do what this role may.
    pub(crate) const fn may(&self, role: Role) -> bool {
        self.session.role().allows(role)
    }

    /// The frame of a page.
    pub(crate) fn layout(&self, title: impl Into<String>, section: Section) -> Layout {
        Layout::new(self, title.into(), section)
    }

    /// The proof that this page's forms carry.
    pub(crate) fn proof(&self) -> String {
        forgery::masked(&self.session)
    }

    /// The page that tells what went wrong.
    pub(super) fn error(&self, error: &PageError) -> Response {
        let problem = error.problem();
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let rendered = alert(problem).and_then(|alert| {
            if self.is_part {
                return Ok(html(alert.to_string()));
            }
            let layout = self.layout(problem.title.clone(), Section::None);
            render(&ErrorPage { layout, alert })
        });
        let mut response = rendered.unwrap_or_else(|_| status.into_response());
        *response.status_mut() = status;
        if self.is_part {
            let headers = response.headers_mut();
            for (name, value) in [("hx-retarget", "#alerts"), ("hx-reswap", "innerHTML")] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
        }
        response
    }
}

impl OpenPage {
    /// The session of this request, if there is one.
    pub(crate) async fn session(&self) -> Result<Option<Session>, PageError> {
        Ok(session::of_request(&self.dashboard, &self.headers).await?)
    }
}

/// A template as an answer.
pub(crate) fn render(template: &impl Template) -> PageResult {
    Ok(html(template.render()?))
}

/// A template as an answer with a status: a form that has to be mended.
pub(crate) fn render_with(status: u16, template: &impl Template) -> PageResult {
    let mut response = render(template)?;
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    Ok(response)
}

fn html(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// Leads on to another page, by GET.
pub(crate) fn see_other(to: &str) -> PageResult {
    let location = HeaderValue::try_from(to)
        .map_err(|_| PageError::internal("an address that can't be written"))?;
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// Leads on to another page, with a cookie.
pub(crate) fn see_other_with_cookie(to: &str, cookie: HeaderValue) -> PageResult {
    let mut response = see_other(to)?;
    response.headers_mut().append(SET_COOKIE, cookie);
    Ok(response)
}

/// A page of this server that a parameter asks to be led to; nothing else is followed.
pub(crate) fn own_path(next: Option<&str>) -> &str {
    let is_own = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && !path.contains('\\')
            && path.bytes().all(|byte| byte.is_ascii_graphic())
            && path.len() <= 2000
    };
    next.filter(is_own).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::own_path;

    #[test]
    fn only_own_pages_are_led_to() {
        for (given, led) in [
            (Some("/runs?blocked=true"), "/runs?blocked=true"),
            (Some("https://evil.test/"), "/"),
            (Some("//evil.test/"), "/"),
            (Some("/\\evil.test/"), "/"),
            (Some("/a\r\nset-cookie: x"), "/"),
            (Some("javascript:alert(1)"), "/"),
            (None, "/"),
        ] {
            assert_eq!(own_path(given), led);
        }
    }
}
