//! The dashboard: pages for people, made of what the public API answers.
//!
//! A page is registered with who may see it ([`Pages`]); there is no way to register one without, and no way to register a
//! form's target that does not check that the form was ours. Pages read and change everything by [`api_client`], which calls
//! the API within the process as whoever is signed in ([`session`]). HTML is made from templates, which escape what is
//! put into them; texts of jobs go through the filter `shown` as well.
//!
//! Scripts and styles lie in `web/`, and are bundled by the build (`store/build.rs`).

mod api_client;
mod assets;
mod fields;
mod filters;
mod forgery;
mod html;
mod layout;
mod openid_connect;
mod page;
mod pages;
mod session;
mod sign_in;

pub(crate) use assets::why_missing;

use crate::api::access::{Called, address_of};
use crate::api::rate::RateLimits;
use crate::api::{ApiError, MAX_BODY_BYTES};
use crate::identity::sign_in::Confirmation;
use crate::service::Store;
use api_client::ApiClient;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts as _, Path, RawPathParams, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use fields::Fields;
use layout::Theme;
use page::{OpenPage, Page, PageError, PageResult, see_other};
use portcullis_common::store_api::Role;
use session::Session;
use sign_in::Provider;
use std::sync::Arc;
use tower_http::compression::CompressionLayer;

/// What a page may do: nothing but load our own files and talk to us. No inline scripts, no inline styles, no images that are not
/// files of ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The dashboard.
#[derive(Debug)]
pub(crate) struct Dashboard {
    /// The store, for sessions; everything else goes through the API.
    store: Arc<Store>,
    api: Router,
    limits: Arc<RateLimits>,
    /// Whether people reach the server by HTTPS.
    is_https: bool,
}

impl Dashboard {
    /// How people and runners reach the server.
    fn public_url(&self) -> &str {
        self.store.configuration.public_url.trim_end_matches('/')
    }

    /// Identity providers that people can sign in by; `next` is where they want to go.
    fn providers(&self, next: &str) -> Vec<Provider> {
        let provider = |sign_in| openid_connect::provider(sign_in, next);
        self.store.sign_in.iter().map(provider).collect()
    }
}

/// One page, for those who look at all of them.
#[derive(Clone, Debug)]
pub struct PageInfo {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// `/policies/{name}`.
    pub path: &'static str,
    /// Who may see it; nothing where nobody needs to be signed in.
    pub role: Option<Role>,
}

/// The pages while they are gathered.
#[derive(Debug)]
pub(crate) struct Pages {
    router: Router<Arc<Dashboard>>,
    list: Vec<PageInfo>,
}

impl Pages {
    /// Registers a page.
    pub(crate) fn get<H, F>(&mut self, path: &'static str, role: Role, handler: H)
    where
        H: Fn(Page) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = PageResult> + Send,
    {
        let route = get(async move |State(dashboard): State<Arc<Dashboard>>, request: Request| {
            let (page, _) = match admit(dashboard, request, role).await {
                Ok(admitted) => admitted,
                Err(response) => return *response,
            };
            let kept = page.clone();
            handler(page).await.unwrap_or_else(|error| kept.error(&error))
        });
        self.add("GET", path, Some(role), route);
    }

    /// Registers what a form is sent to.
    pub(crate) fn post<H, F>(&mut self, path: &'static str, role: Role, handler: H)
    where
        H: Fn(Page, Fields) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = PageResult> + Send,
    {
        let route = post(async move |State(dashboard): State<Arc<Dashboard>>, request: Request| {
            let (page, form) = match admit(dashboard, request, role).await {
                Ok(admitted) => admitted,
                Err(response) => return *response,
            };
            let kept = page.clone();
            let result = match own_form(&page, &form) {
                Ok(()) => handler(page, form).await,
                Err(error) => Err(error),
            };
            result.unwrap_or_else(|error| kept.error(&error))
        });
        self.add("POST", path, Some(role), route);
    }

    /// Registers a page that needs nobody to be signed in: ways of signing in.
    pub(crate) fn open_get<H, F>(&mut self, path: &'static str, handler: H)
    where
        H: Fn(OpenPage) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = PageResult> + Send,
    {
        let route =
            get(async move |State(dashboard): State<Arc<Dashboard>>, request: Request| match open(
                dashboard, request,
            )
            .await
            {
                Ok((page, _)) => answer_open(handler(page).await),
                Err(error) => answer_open(Err(error)),
            });
        self.add("GET", path, None, route);
    }

    /// Registers what a form of such a page is sent to.
    pub(crate) fn open_post<H, F>(&mut self, path: &'static str, handler: H)
    where
        H: Fn(OpenPage, Fields) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = PageResult> + Send,
    {
        let route =
            post(
                async move |State(dashboard): State<Arc<Dashboard>>, request: Request| match open(
                    dashboard, request,
                )
                .await
                {
                    Ok((page, form)) => answer_open(handler(page, form).await),
                    Err(error) => answer_open(Err(error)),
                },
            );
        self.add("POST", path, None, route);
    }

    fn add(
        &mut self,
        method: &'static str,
        path: &'static str,
        role: Option<Role>,
        route: MethodRouter<Arc<Dashboard>>,
    ) {
        self.list.push(PageInfo { method, path, role });
        let router = std::mem::take(&mut self.router);
        self.router = router.route(path, route);
    }
}

/// All pages of a store, the list of them, and what answers where there is none.
pub(crate) fn pages<S: Clone + Send + Sync + 'static>(
    store: &Arc<Store>,
    api: Router,
    limits: &Arc<RateLimits>,
) -> (Router<S>, Vec<PageInfo>, Unknown) {
    let configuration = &store.configuration;
    let is_https = configuration.tls.is_some() || configuration.public_url.starts_with("https://");
    let (store, limits) = (Arc::clone(store), Arc::clone(limits));
    let dashboard = Arc::new(Dashboard { store, api, limits, is_https });
    let mut gathered = Pages { router: Router::new(), list: Vec::new() };
    sign_in::pages(&mut gathered);
    openid_connect::pages(&mut gathered);
    pages::pages(&mut gathered);
    let asset =
        async |Path(file): Path<String>, headers: HeaderMap| assets::answer(&file, &headers);
    let router = gathered
        .router
        .layer(axum::middleware::map_response(with_headers))
        .layer(CompressionLayer::new().gzip(true))
        .layer(axum::middleware::from_fn(unless_missing))
        .route("/assets/{file}", get(asset))
        .with_state(Arc::clone(&dashboard));
    (router, gathered.list, Unknown(dashboard))
}

/// Says in the place of every page that there is none, where the program was built so.
async fn unless_missing(request: Request, next: Next) -> Response {
    match assets::missing() {
        Some(text) => (StatusCode::NOT_IMPLEMENTED, text).into_response(),
        None => next.run(request).await,
    }
}

/// Answers requests for what is nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Unknown(Arc<Dashboard>);

impl Unknown {
    /// A page for people, a problem for programs.
    pub(crate) async fn answer(&self, request: Request) -> Response {
        let error = ApiError::not_found("there is nothing at this address");
        let takes = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
        let is_page = assets::is_built()
            && request.method() == Method::GET
            && !request.uri().path().starts_with("/api/")
            && takes.is_some_and(|takes| takes.contains("text/html"));
        if !is_page {
            return error.into_response();
        }
        let response = match admit(Arc::clone(&self.0), request, Role::Viewer).await {
            Ok((page, _)) => page.error(&error.into()),
            Err(response) => *response,
        };
        with_headers(response).await
    }
}

/// What every page is sent with.
async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Reads a request that needs nobody to be signed in.
async fn open(
    dashboard: Arc<Dashboard>,
    request: Request,
) -> Result<(OpenPage, Fields), PageError> {
    let (parts, body) = request.into_parts();
    let address = address_of(&parts.extensions)?;
    dashboard.limits.check_public(address)?;
    let form = if parts.method == Method::POST {
        let bytes = to_bytes(body, MAX_BODY_BYTES)
            .await
            .map_err(|_| ApiError::bad_request("the form is too large, or did not arrive"))?;
        Fields::read(&bytes)
    } else {
        Fields::default()
    };
    let page = OpenPage {
        dashboard,
        address,
        query: Fields::read(parts.uri.query().unwrap_or_default().as_bytes()),
        theme: Theme::of(&parts.headers),
        headers: parts.headers,
    };
    Ok((page, form))
}

fn answer_open(result: PageResult) -> Response {
    result.unwrap_or_else(|error| ApiError::from(error).into_response())
}

/// Reads a request of somebody who has to be signed in, with a role; else leads to where one signs in, or refuses.
async fn admit(
    dashboard: Arc<Dashboard>,
    request: Request,
    role: Role,
) -> Result<(Page, Fields), Box<Response>> {
    let early = |result| Box::new(answer_open(result));
    let (mut parts, body) = request.into_parts();
    let params = RawPathParams::from_request_parts(&mut parts, &())
        .await
        .map(|params| {
            params.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        })
        .unwrap_or_default();
    let whole = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let is_part = parts.headers.contains_key("hx-request");
    let is_get = parts.method == Method::GET;
    let (open, form) = open(Arc::clone(&dashboard), Request::from_parts(parts, body))
        .await
        .map_err(|error| early(Err(error)))?;
    // A browser that is to show a page; not a script of one, and not a form.
    let is_shown = is_get
        && !is_part
        && open.headers.get("sec-fetch-dest").is_none_or(|value| value == "document");
    let session = open.session().await.map_err(|error| early(Err(error)))?;
    if let Some(session) = &session
        && session.confirmation != Confirmation::Fresh
        && is_shown
        && let Some(away) = openid_connect::confirm(&open, session, &whole).await
    {
        return Err(early(away));
    }
    let goes_on = |session: &Session| session.confirmation != Confirmation::Overdue;
    let Some(session) = session.filter(goes_on) else {
        let next: String = url::form_urlencoded::byte_serialize(whole.as_bytes()).collect();
        let to = if is_get && !is_part && whole != "/" {
            format!("{}?next={next}", sign_in::PATH)
        } else {
            sign_in::PATH.to_owned()
        };
        let mut response = see_other(&to).unwrap_or_else(|error| answer_open(Err(error)));
        if is_part {
            // A script that follows a redirect would put the sign-in page into a part of this one.
            response = StatusCode::UNAUTHORIZED.into_response();
            let value = HeaderValue::from_static(sign_in::PATH);
            response.headers_mut().insert(HeaderName::from_static("hx-redirect"), value);
        }
        return Err(Box::new(response));
    };
    let called =
        Called { caller: session.caller.clone().into(), address: open.address, policies: None };
    let api = ApiClient { router: dashboard.api.clone(), called };
    let page = Page { open, session, api, is_part, params };
    if !page.may(role) {
        let error = ApiError::forbidden(format!(
            "you are signed in with role {}, and this needs role {role}",
            page.session.role()
        ));
        return Err(Box::new(
            page.error(&error.hint("ask an admin for a token that allows it").into()),
        ));
    }
    Ok((page, form))
}

/// Whether a form came from our own page, filled in by who is signed in.
fn own_form(page: &Page, form: &Fields) -> Result<(), PageError> {
    let header = page.open.headers.get(forgery::HEADER).and_then(|value| value.to_str().ok());
    let given = form.raw(forgery::FIELD).or(header).unwrap_or_default();
    let public_url = &page.open.dashboard.store.configuration.public_url;
    if forgery::is_foreign(&page.open.headers, public_url)
        || !forgery::is_proof(&page.session, given)
    {
        return Err(ApiError::forbidden("the form was not filled in on this server's own page")
            .hint("load the page again, and do it once more; somebody may have tried to make your browser do this")
            .into());
    }
    Ok(())
}
