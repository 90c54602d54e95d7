//! Who is signed in: a random secret in a cookie, its hash in the database.
//!
//! Every way of signing in ends in [`begin`], which takes who it is and gives the cookie. What a session allows is looked up
//! anew for each request: a token that was revoked counts no more at once, on every server, and a person may do what the
//! groups of the last confirmation may do by the server's configuration. Confirmations are [`super::openid_connect`]'s.
//!
//! The cookie is `HttpOnly`, `SameSite=Lax` (links from elsewhere lead to pages, forms from elsewhere do nothing), and
//! `Secure` with the `__Host-` prefix where people reach the server by HTTPS.

use super::Dashboard;
use crate::api::{ApiError, ApiResult};
use crate::database::{Caller, NewAuditEntry, NewSession, Vouched};
use crate::identity::secret::{MAX_SECRET_BYTES, SecretKind, generate, hash};
use crate::identity::sign_in::Confirmation;
use crate::identity::sign_in::person::Person;
use crate::service::now;
use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use portcullis_common::store_api::Role;
use std::net::IpAddr;
use std::time::Duration;

/// Somebody who is signed in.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Who it is: a token, or a person.
    pub(crate) caller: Caller,
    /// Whether the provider has to be asked again.
    pub(super) confirmation: Confirmation,
    /// The cookie's secret; proofs against forged requests are made of it.
    pub(super) secret: String,
}

impl Session {
    /// What people call who is signed in.
    pub(crate) fn name(&self) -> &str {
        match &self.caller {
            Caller::Token { name, .. }
            | Caller::Person { name, .. }
            | Caller::Host { name, .. } => name,
        }
    }

    /// What the session allows.
    pub(crate) const fn role(&self) -> Role {
        self.caller.role()
    }
}

/// Begins a session for somebody who proved who they are, and returns the value of `Set-Cookie`.
///
/// `groups` are those of a person; `method` says in the audit log how: `token`, `openid-connect`.
///
/// # Errors
/// When it is nobody who may read, or the database can't be used.
pub(crate) async fn begin(
    dashboard: &Dashboard,
    caller: Caller,
    groups: Vec<String>,
    method: &'static str,
    address: IpAddr,
) -> ApiResult<HeaderValue> {
    if !caller.role().allows(Role::Viewer) {
        return Err(ApiError::forbidden(
            "this is a runner's credential; people sign in with a token of their own",
        ));
    }
    let secret =
        generate(SecretKind::Session).map_err(|error| ApiError::internal(error.to_string()))?;
    let now = now();
    let lifetime = lifetime(dashboard);
    let session = NewSession {
        hash: hash(&secret),
        created_ms: now.as_millisecond(),
        expires_ms: (now + lifetime).as_millisecond(),
        caller,
        groups,
    };
    let record = record(&session.caller, "session.begin", Some(method.to_owned()), address);
    dashboard.store.database.insert_session(&session, &record).await?;
    cookie(dashboard, &secret, lifetime)
}

/// The session of a request, if it has one that goes on.
///
/// # Errors
/// When the database can't be used.
pub(crate) async fn of_request(
    dashboard: &Dashboard,
    headers: &HeaderMap,
) -> ApiResult<Option<Session>> {
    let Some(secret) = cookie_value(headers, cookie_name(dashboard)) else { return Ok(None) };
    if secret.len() > MAX_SECRET_BYTES {
        return Ok(None);
    }
    let live = dashboard.store.session(&hash(secret), now().as_millisecond()).await?;
    Ok(live.map(|live| Session {
        caller: live.caller,
        confirmation: live.confirmation,
        secret: secret.to_owned(),
    }))
}

/// Keeps that the provider still vouches for a person, whose session goes on as long as before.
///
/// # Errors
/// When the database can't be used.
pub(super) async fn confirm(
    dashboard: &Dashboard,
    session: &Session,
    person: Person,
    address: IpAddr,
) -> ApiResult<()> {
    let vouched = Vouched { groups: person.groups, confirmed_ms: now().as_millisecond() };
    let caller = Caller::Person { subject: person.subject, name: person.name, role: person.role };
    let change = (caller.role() != session.role()).then(|| {
        let detail = format!("{}, was {}", caller.role(), session.role());
        record(&caller, "session.change", Some(detail), address)
    });
    let hash = hash(&session.secret);
    dashboard.store.database.confirm_session(&hash, &caller, &vouched, change.as_ref()).await?;
    Ok(())
}

/// Ends a session, and returns the value of `Set-Cookie` that removes the cookie. `reason` is why, when it is not the person's
/// own wish.
///
/// # Errors
/// When the database can't be used.
pub(crate) async fn end(
    dashboard: &Dashboard,
    session: &Session,
    reason: Option<String>,
    address: IpAddr,
) -> ApiResult<HeaderValue> {
    let record = record(&session.caller, "session.end", reason, address);
    dashboard.store.database.delete_session(&hash(&session.secret), &record).await?;
    cookie(dashboard, "", Duration::ZERO)
}

/// The audit log's entry of a sign-in.
fn record(
    caller: &Caller,
    action: &'static str,
    detail: Option<String>,
    address: IpAddr,
) -> NewAuditEntry {
    let actor = caller.actor();
    // What a provider calls a person can change, and be the name of two.
    let subject = match caller {
        Caller::Person { subject, .. } => format!("person:{subject}"),
        _ => actor.clone(),
    };
    NewAuditEntry {
        time_ms: now().as_millisecond(),
        subject,
        actor,
        action,
        detail,
        address: Some(address.to_string()),
    }
}

fn lifetime(dashboard: &Dashboard) -> Duration {
    Duration::from_hours(u64::from(dashboard.store.configuration.dashboard.session_hours))
}

/// With the prefix, browsers take the cookie only by HTTPS, for this host alone and the whole of it.
const fn cookie_name(dashboard: &Dashboard) -> &'static str {
    if dashboard.is_https { "__Host-portcullis-session" } else { "portcullis-session" }
}

fn cookie(dashboard: &Dashboard, value: &str, lifetime: Duration) -> ApiResult<HeaderValue> {
    let secure = if dashboard.is_https { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        cookie_name(dashboard),
        lifetime.as_secs()
    );
    HeaderValue::try_from(text).map_err(|_| ApiError::internal("the cookie can't be written"))
}

/// The value of a cookie of the request.
pub(crate) fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}
