//! Signing in by an OpenID Connect provider: off to it, and back.
//!
//! A session is confirmed in the same way, without a word to the person: before a page is shown the browser goes to the
//! provider (`prompt=none`) and comes back at once, with the groups of this moment. No token of the provider is kept for it.

use super::page::{OpenPage, PageError, PageResult, own_path, see_other, see_other_with_cookie};
use super::session::{self, Session};
use super::sign_in::{self, Provider};
use super::{Dashboard, Pages};
use crate::api::ApiError;
use crate::database::{Caller, NewAuditEntry};
use crate::identity::sign_in::attempt::{ATTEMPT_LIFE, Answered};
use crate::identity::sign_in::{CALLBACK_PATH, Confirmation, SignIn, SignInError};
use crate::service::now;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderValue, StatusCode};
use std::time::Duration;

/// Where it begins.
const PATH: &str = "/sign-in/openid-connect";

pub(super) fn pages(pages: &mut Pages) {
    pages.open_get(PATH, begin);
    pages.open_get(CALLBACK_PATH, come_back);
}

/// The provider as the sign-in page shows it; `next` is where somebody wants to go.
pub(super) fn provider(sign_in: &SignIn, next: &str) -> Provider {
    let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
    Provider { name: sign_in.provider(), href: format!("{PATH}?next={next}") }
}

async fn begin(page: OpenPage) -> PageResult {
    let next = own_path(page.query.get("next")).to_owned();
    let result = match provider_of(&page.dashboard) {
        Ok(sign_in) => sign_in.begin(&next, now().as_second()).await.map_err(|error| told(&error)),
        Err(error) => Err(error),
    };
    match result {
        Ok(begun) => {
            let cookie = attempt_cookie(&page.dashboard, &begun.cookie, ATTEMPT_LIFE)?;
            see_other_with_cookie(begun.url.as_str(), cookie)
        }
        Err(error) => sign_in::show(&page, &next, Some(&error)),
    }
}

/// Off to the provider, to confirm a session before a page is shown; `None` when the page is to be shown without.
pub(super) async fn confirm(page: &OpenPage, session: &Session, whole: &str) -> Option<PageResult> {
    let sign_in = page.dashboard.store.sign_in.as_ref()?;
    let begun = sign_in.confirm(session.name(), own_path(Some(whole)), now().as_second()).await;
    Some(match begun {
        Ok(begun) => attempt_cookie(&page.dashboard, &begun.cookie, ATTEMPT_LIFE)
            .and_then(|cookie| see_other_with_cookie(begun.url.as_str(), cookie)),
        Err(error) if session.confirmation == Confirmation::Overdue => {
            sign_in::show(page, own_path(Some(whole)), Some(&told(&error)))
        }
        // There is time left, in which the provider may come back.
        Err(error) => {
            tracing::warn!(error = %error, "a session could not be confirmed");
            return None;
        }
    })
}

async fn come_back(page: OpenPage) -> PageResult {
    let mut response = match finish(&page).await {
        Ok((cookie, return_to)) => {
            let mut response = see_other(&return_to)?;
            if let Some(cookie) = cookie {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            response
        }
        Err(error) => {
            let mut response = sign_in::show(&page, "/", Some(&error.error))?;
            if let Some(cookie) = error.ended {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            response
        }
    };
    // Good or not, it is over.
    let over = attempt_cookie(&page.dashboard, "", Duration::ZERO)?;
    response.headers_mut().append(SET_COOKIE, over);
    Ok(response)
}

/// Why nobody is signed in.
struct Failed {
    error: PageError,
    /// The cookie that ends the session that was to be confirmed.
    ended: Option<HeaderValue>,
}

impl<E: Into<PageError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), ended: None }
    }
}

/// The cookie of a session that begins, and where to go.
async fn finish(page: &OpenPage) -> Result<(Option<HeaderValue>, String), Failed> {
    let dashboard = &page.dashboard;
    let text = |name: &str| page.query.get(name).map(str::to_owned);
    let answered = Answered {
        code: text("code"),
        state: text("state"),
        iss: text("iss"),
        error: text("error"),
        error_description: text("error_description"),
    };
    let cookie = session::cookie_value(&page.headers, cookie_name(dashboard));
    let sign_in = provider_of(dashboard)?;
    let error = match sign_in.finish(cookie, &answered, now().as_second()).await {
        Ok(signed_in) => {
            let person = signed_in.person;
            if signed_in.confirms
                && let Some(session) = page.session().await?
                && matches!(&session.caller, Caller::Person { subject, .. } if *subject == person.subject)
            {
                session::confirm(dashboard, &session, person, page.address).await?;
                return Ok((None, signed_in.return_to));
            }
            let caller =
                Caller::Person { subject: person.subject, name: person.name, role: person.role };
            let method = "openid-connect";
            let cookie =
                session::begin(dashboard, caller, person.groups, method, page.address).await?;
            return Ok((Some(cookie), signed_in.return_to));
        }
        Err(error) => error,
    };
    let is_confirmation = sign_in.is_confirmation(cookie, &answered);
    let is_said = matches!(error, SignInError::Refused(_) | SignInError::NoRole { .. });
    if !(is_confirmation && is_said) {
        refuse(page, &error).await?;
        return Err(told(&error).into());
    }
    // Nobody tried anything: the provider no longer vouches for somebody who was signed in.
    let ended = match page.session().await? {
        Some(session) => {
            let reason = Some(format!("not confirmed: {error}"));
            Some(session::end(dashboard, &session, reason, page.address).await?)
        }
        None => None,
    };
    let problem = ApiError::unauthorized(format!("your session is over: {error}"))
        .hint("sign in again; the provider was asked whether you are still who you were");
    Err(Failed { error: problem.into(), ended })
}

/// Counts and records that somebody was not let in. That the provider is away is nobody's attempt.
async fn refuse(page: &OpenPage, error: &SignInError) -> Result<(), PageError> {
    let detail = match error {
        SignInError::Unavailable { .. } | SignInError::Randomness(_) => {
            tracing::warn!(error = %error, "nobody can sign in by the provider");
            return Ok(());
        }
        SignInError::NoRole { subject, .. } => format!("openid-connect: {error} ({subject})"),
        _ => format!("openid-connect: {error}"),
    };
    page.dashboard.limits.check_failure(page.address)?;
    let record = NewAuditEntry {
        time_ms: now().as_millisecond(),
        actor: "nobody".to_owned(),
        action: "session.refuse",
        subject: "dashboard".to_owned(),
        detail: Some(detail),
        address: Some(page.address.to_string()),
    };
    page.dashboard.store.database.audit(&record).await.map_err(ApiError::from)?;
    Ok(())
}

/// What somebody is told.
fn told(error: &SignInError) -> PageError {
    let (status, kind, hint) = match error {
        SignInError::Attempt(_) => {
            (StatusCode::BAD_REQUEST, "bad-request", "begin again, in this browser")
        }
        SignInError::Refused(_) => {
            (StatusCode::FORBIDDEN, "forbidden", "begin again, or ask who runs the provider")
        }
        SignInError::Token(_) => (
            StatusCode::FORBIDDEN,
            "forbidden",
            "the provider, or its settings for this store, are not as they must be; the admins can see it in the audit log",
        ),
        SignInError::NoRole { .. } => (
            StatusCode::FORBIDDEN,
            "forbidden",
            "an admin gives groups of the provider a role in [sign-in.roles] of the server's configuration",
        ),
        SignInError::Unavailable { .. } | SignInError::Randomness(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "try again in a moment; the server's log has the reason",
        ),
    };
    ApiError::new(status, kind, error.to_string()).hint(hint).into()
}

fn provider_of(dashboard: &Dashboard) -> Result<&SignIn, PageError> {
    dashboard.store.sign_in.as_ref().ok_or_else(|| {
        ApiError::not_found("this server has no provider that people sign in by")
            .hint("[sign-in] of the server's configuration names one")
            .into()
    })
}

const fn cookie_name(dashboard: &Dashboard) -> &'static str {
    if dashboard.is_https { "__Host-portcullis-sign-in" } else { "portcullis-sign-in" }
}

/// The cookie that a browser keeps while it is away. `Lax`, because it comes back by a link from another site.
fn attempt_cookie(
    dashboard: &Dashboard,
    value: &str,
    life: Duration,
) -> Result<HeaderValue, PageError> {
    let secure = if dashboard.is_https { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        cookie_name(dashboard),
        life.as_secs()
    );
    HeaderValue::try_from(text).map_err(|_| PageError::internal("a cookie that can't be written"))
}
