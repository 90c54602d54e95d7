//! The HTTP API (`/api/v1`), one file per group of endpoints.
//!
//! A route is registered once, by [`Routes::add`]: with its path, who may call it, what it is in words, and its handler.
//! The router, the check of callers and the OpenAPI document are made from that.

pub mod access;
mod audit;
mod baselines;
mod bundle;
mod compatibility;
pub mod describe;
mod endpoints;
pub mod extract;
mod health;
mod hosts;
mod insights;
mod integrations;
mod jobs;
mod policies;
mod policy_attachments;
mod policy_versions;
pub mod problem;
pub mod rate;
mod resolve;
mod runs;
mod suppressions;
mod tokens;

pub use access::Access;
pub use problem::{ApiError, ApiResult, PROBLEM_JSON};

use crate::dashboard::{self, PageInfo};
use crate::metrics::Metrics;
use crate::service::Store;
use access::{Guard, guard};
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodFilter;
use axum::{Json, Router};
use describe::{About, Described, Document};
use portcullis_common::store_api::{API_ROOT, Role};
use rate::RateLimits;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{
    MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::set_header::SetResponseHeaderLayer;

/// The largest body in bytes, as it comes and after it is unpacked: a bundle of thousands of policies, a batch of events.
pub const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// The header that carries a request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One route, for those who look at all of them.
#[derive(Clone, Debug)]
pub struct RouteInfo {
    /// `GET`.
    pub method: &'static str,
    /// `/api/v1/policies/{name}`.
    pub path: String,
    /// Who may call it.
    pub access: Access,
}

/// The routes while they are gathered.
#[derive(Debug)]
pub struct Routes {
    router: Router<Arc<Store>>,
    document: Document,
    list: Vec<RouteInfo>,
    store: Arc<Store>,
    limits: Arc<RateLimits>,
}

/// The API, ready to be served.
#[derive(Debug)]
pub struct Api {
    /// Answers requests. Needs to be served with the callers' addresses (`ConnectInfo`).
    pub router: Router,
    /// Every route.
    pub routes: Vec<RouteInfo>,
    /// The OpenAPI document.
    pub document: Arc<Value>,
    /// Every page of the dashboard.
    pub pages: Vec<PageInfo>,
    /// To forget idle callers now and then.
    pub limits: Arc<RateLimits>,
}

impl Routes {
    /// Registers a route.
    pub fn add<T, Arguments, H>(
        &mut self,
        (method, path): (&'static str, &str),
        access: Access,
        (tag, summary): (&'static str, &'static str),
        handler: H,
    ) where
        T: 'static,
        H: Handler<T, Arc<Store>> + Described<Arguments>,
    {
        let about = About { summary, tag, access: access.words() };
        self.document.add::<Arguments, H>(method, path, about);
        self.list.push(RouteInfo { method, path: path.to_owned(), access });
        let filter = match method {
            "GET" => MethodFilter::GET,
            "PUT" => MethodFilter::PUT,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::POST,
        };
        let state =
            Guard { store: Arc::clone(&self.store), limits: Arc::clone(&self.limits), access };
        let route = axum::routing::on(filter, handler).layer(from_fn_with_state(state, guard));
        let router = std::mem::take(&mut self.router);
        self.router = router.route(path, route);
    }

    /// As [`Self::add`], below the root of the API.
    pub fn api<T, Arguments, H>(
        &mut self,
        (method, path): (&'static str, &str),
        access: Access,
        about: (&'static str, &'static str),
        handler: H,
    ) where
        T: 'static,
        H: Handler<T, Arc<Store>> + Described<Arguments>,
    {
        self.add((method, &format!("{API_ROOT}{path}")), access, about, handler);
    }
}

/// Who may read.
const VIEWER: Access = Access::Role(Role::Viewer);
/// Who may change policies.
const EDITOR: Access = Access::Role(Role::Editor);
/// Who may change who may do what.
const ADMIN: Access = Access::Role(Role::Admin);
/// Runner hosts.
const RUNNER: Access = Access::Role(Role::Runner);

/// All routes of a store.
pub fn api(store: &Arc<Store>, metrics: &Arc<Metrics>) -> Api {
    let limits = Arc::new(RateLimits::new(&store.configuration.limits));
    let mut routes = Routes {
        router: Router::new(),
        document: Document::default(),
        list: Vec::new(),
        store: Arc::clone(store),
        limits: Arc::clone(&limits),
    };
    health::routes(&mut routes);
    policies::routes(&mut routes);
    policy_versions::routes(&mut routes);
    policy_attachments::routes(&mut routes);
    bundle::routes(&mut routes);
    resolve::routes(&mut routes);
    tokens::routes(&mut routes);
    hosts::routes(&mut routes);
    audit::routes(&mut routes);
    jobs::routes(&mut routes);
    runs::routes(&mut routes);
    suppressions::routes(&mut routes);
    integrations::routes(&mut routes);
    baselines::routes(&mut routes);
    insights::routes(&mut routes);
    endpoints::routes(&mut routes);
    compatibility::routes(&mut routes);
    let Routes { router, document, mut list, store, .. } = routes;
    let document = Arc::new(document.finish());
    let shown = Arc::clone(&document);
    let exposition = Arc::clone(metrics);
    for path in ["/openapi.json", "/metrics"] {
        list.push(RouteInfo { method: "GET", path: path.to_owned(), access: Access::Public });
    }
    let timeout = store.configuration.limits.request_timeout();
    // The dashboard calls the same routes, within the process.
    let in_process =
        router.clone().layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).with_state(Arc::clone(&store));
    let (dashboard, pages, unknown) = dashboard::pages(&store, in_process, &limits);
    let router = router
        .merge(dashboard)
        .route("/openapi.json", axum::routing::get(async move || Json((*shown).clone())))
        .route("/metrics", axum::routing::get(async move || exposition.answer()))
        .fallback(async move |request: Request| unknown.answer(request).await)
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this can't be done with what is at this address",
            )
        })
        .layer(from_fn_with_state(timeout, in_time))
        .layer(from_fn_with_state(Arc::clone(metrics), observe))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(RequestDecompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES))
        .layer(from_fn(as_problem))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("the request made the server fail; others are not affected")
                .into_response()
        }))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header(CACHE_CONTROL, "no-store"))
        .layer(header(STRICT_TRANSPORT_SECURITY, "max-age=31536000"))
        .layer(header(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .with_state(store);
    Api { router, routes: list, document, pages, limits }
}

fn header(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

/// Refusals that come from the machinery, not from a handler, as problem documents as well.
async fn as_problem(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let has_text = response
        .headers()
        .get(axum::http::header::CONTENT_TYPE)
        .is_none_or(|value| value.as_bytes().starts_with(b"text/plain"));
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if has_text => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "the body is larger than may be",
        )
        .hint("send less at a time")
        .into_response(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE if has_text => ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "bad-request",
            "the body is packed in a way that is not known",
        )
        .hint("send it as it is, or with Content-Encoding gzip or zstd")
        .into_response(),
        _ => response,
    }
}

/// Gives up a request that takes too long, with everything it waits for: a body that trickles in, a database that hangs.
async fn in_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            format!("the request took longer than {} seconds", limit.as_secs()),
        )
        .hint("send less at a time; if the store is slow, its log and /metrics show it")
        .retry_after(2)
        .into_response(),
    }
}

/// Counts and logs each request.
async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .map(|id| id.chars().take(64).collect::<String>())
        .unwrap_or_default();
    let response = next.run(request).await;
    let status = response.status();
    let elapsed = started.elapsed();
    metrics.request(&path, &method, status, elapsed);
    let is_probe =
        method == Method::GET && matches!(path.as_str(), "/healthz" | "/readyz" | "/metrics");
    if status.is_server_error() {
        tracing::warn!(request.id = id, http.method = %method, http.route = path, http.status = status.as_u16(), duration_ms = elapsed.as_secs_f64() * 1e3, "a request failed");
    } else if !is_probe {
        tracing::info!(request.id = id, http.method = %method, http.route = path, http.status = status.as_u16(), duration_ms = elapsed.as_secs_f64() * 1e3, "answered");
    }
    response
}
