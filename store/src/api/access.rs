//! Who may call what. Every route is registered with its [`Access`]; there is no way to register one without.

use super::describe::{DescribeInput, Operation};
use super::problem::ApiError;
use super::rate::RateLimits;
use crate::database::Caller;
use crate::service::{Authentication, AuthenticationError, Store, WriteRequest};
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use portcullis_common::store_api::Role;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Who may call a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Everybody; `tests/unauthenticated-endpoints.txt` lists these routes.
    Public,
    /// Everybody who has this role or more.
    Role(Role),
    /// Runner hosts, and people who may read.
    RunnerOrViewer,
}

impl Access {
    /// Who may call, in words.
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Public => None,
            Self::Role(Role::Runner) => Some("role runner"),
            Self::Role(Role::Viewer) => Some("role viewer"),
            Self::Role(Role::Editor) => Some("role editor"),
            Self::Role(Role::Admin) => Some("role admin"),
            Self::RunnerOrViewer => Some("role runner or viewer"),
        }
    }

    const fn allows(self, role: Role) -> bool {
        match self {
            Self::Public => true,
            Self::Role(needed) => role.allows(needed),
            Self::RunnerOrViewer => role.allows(Role::Runner) || role.allows(Role::Viewer),
        }
    }
}

/// The caller of a request, as far as its route asks for one.
#[derive(Clone, Debug)]
pub struct Called {
    /// Who it is.
    pub caller: Arc<Caller>,
    /// Where the request came from.
    pub address: IpAddr,
    /// The generation of the policies when the caller was looked up, if that was for this request.
    pub policies: Option<i64>,
}

impl Called {
    /// Who it is, for the record: `token:ci`, `host:01a2…`.
    pub fn actor(&self) -> String {
        self.caller.actor()
    }

    /// The record of a change that this caller asks for.
    pub fn write_request(&self) -> WriteRequest {
        WriteRequest { actor: self.actor(), address: Some(self.address.to_string()) }
    }

    /// The id and cluster of the host that calls; `None` when it is no host.
    pub fn host(&self) -> Option<(&str, &str)> {
        match &*self.caller {
            Caller::Host { id, cluster, .. } => Some((id, cluster)),
            Caller::Token { .. } | Caller::Person { .. } => None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Called {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Only a route that is registered as public can get here without a caller.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::unauthorized("a token is needed"))
    }
}

impl DescribeInput for Called {
    fn describe(_: &mut Operation<'_>) {}
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct From(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        address_of(&parts.extensions).map(Self)
    }
}

impl DescribeInput for From {
    fn describe(_: &mut Operation<'_>) {}
}

pub(crate) fn address_of(extensions: &axum::http::Extensions) -> Result<IpAddr, ApiError> {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(address)| address.ip().to_canonical())
        .ok_or_else(|| ApiError::internal("the caller's address is not known"))
}

/// What the check of every route needs.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The store.
    pub store: Arc<Store>,
    /// How much is too much.
    pub limits: Arc<RateLimits>,
    /// Who may call the route.
    pub access: Access,
}

/// Who calls, for requests that the dashboard makes within the process for somebody who is signed in. Nothing that comes from
/// the network can carry it: it is a value of this program's own memory beside the request.
#[derive(Clone, Debug)]
pub(crate) struct InProcess(pub(crate) Called);

/// Lets a request through to its route when its caller may call it, and not too often.
pub async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    if has_nul(&request) {
        return ApiError::bad_request("the address has a NUL character, which no name here has")
            .into_response();
    }
    match admit(&guard, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// PostgreSQL can't even be asked for a text with a NUL. It can only stand escaped in an address.
fn has_nul(request: &Request) -> bool {
    request.uri().path_and_query().is_some_and(|whole| whole.as_str().contains("%00"))
}

async fn admit(guard: &Guard, request: &mut Request) -> Result<(), ApiError> {
    let address = address_of(request.extensions())?;
    if guard.access == Access::Public {
        return guard.limits.check_public(address);
    }
    let result = match request.extensions().get::<InProcess>() {
        Some(InProcess(called)) => Ok(called.clone()),
        None => authenticate(guard, request.headers(), address).await,
    };
    let called = match result {
        Ok(called) => called,
        Err(error) => {
            if error.problem.status == 401 {
                guard.limits.check_failure(address)?;
            }
            return Err(error);
        }
    };
    let role = called.caller.role();
    if !guard.access.allows(role) {
        let needed = guard.access.words().unwrap_or_default();
        return Err(ApiError::forbidden(format!(
            "this token has role {role}, and {needed} is needed"
        ))
        .hint("an admin can make a token with `portcullis token create`"));
    }
    guard.limits.check_caller(&called.actor())?;
    request.extensions_mut().insert(called);
    Ok(())
}

async fn authenticate(
    guard: &Guard,
    headers: &HeaderMap,
    address: IpAddr,
) -> Result<Called, ApiError> {
    let secret = bearer(headers)?;
    match guard.store.authenticate(secret).await {
        Ok(Authentication { caller, policies }) => {
            Ok(Called { caller, address, policies: Some(policies) })
        }
        Err(AuthenticationError::Database(error)) => Err(error.into()),
        Err(error @ (AuthenticationError::Unknown | AuthenticationError::Expired)) => {
            Err(ApiError::unauthorized(error.to_string()))
        }
    }
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        ApiError::unauthorized("a token is needed").hint("send it as `Authorization: Bearer TOKEN`")
    };
    let value = headers.get(AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        return Ok(token.trim());
    }
    Err(missing())
}
