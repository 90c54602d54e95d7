//! Runner hosts: enrolment, credentials, revocation.

use super::access::{Access, Called, From, bearer};
use super::extract::{Answer, Created, Done, InPath, JsonBody, TheStore};
use super::problem::{ApiError, ApiResult};
use super::tokens::{entry, is_name};
use super::{ADMIN, RUNNER, Routes, VIEWER};
use crate::database::{EnrolmentUse, NewAuditEntry, NewCredential};
use crate::identity::secret::{SecretKind, generate, hash};
use crate::service::{Store, now};
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use portcullis_common::policy::is_cluster;
use portcullis_common::store_api::{
    CreateEnrolment, CreatedSecret, Enrol, Enrolled, Enrolment, Heartbeat, Host, Page,
};
use std::time::Duration;
use uuid::Uuid;

const TAG: &str = "hosts";

/// How long an enrolment token can be used when it is not said.
const ENROLMENT_SECONDS: u32 = 3600;

/// The longest life of an enrolment token: an image that is baked today and booted in a month.
const MAX_ENROLMENT_SECONDS: u32 = 90 * 24 * 3600;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/enrolments"),
        ADMIN,
        (TAG, "Enrolment tokens that can be used"),
        enrolments,
    );
    routes.api(
        ("POST", "/enrolments"),
        ADMIN,
        (TAG, "Makes an enrolment token; shown this once"),
        create_enrolment,
    );
    routes.api(
        ("DELETE", "/enrolments/{id}"),
        ADMIN,
        (TAG, "Revokes an enrolment token"),
        delete_enrolment,
    );
    routes.api(
        ("POST", "/enrol"),
        Access::Public,
        (TAG, "Enrols a host, with an enrolment token as bearer"),
        enrol,
    );
    routes.api(("GET", "/hosts"), VIEWER, (TAG, "All runner hosts"), hosts);
    routes.api(
        ("DELETE", "/hosts/{id}"),
        ADMIN,
        (TAG, "Revokes a host's credentials at once"),
        revoke,
    );
    routes.api(("GET", "/host"), RUNNER, (TAG, "The calling host itself"), this_host);
    routes.api(
        ("POST", "/host/heartbeat"),
        RUNNER,
        (TAG, "The calling host's monitor is there, and says what it is"),
        heartbeat,
    );
    routes.api(
        ("POST", "/host/credential"),
        RUNNER,
        (TAG, "A new credential for the calling host; the old one ends ten minutes after the first use of the new one"),
        rotate,
    );
}

async fn enrolments(State(store): TheStore) -> ApiResult<Answer<Page<Enrolment>>> {
    Ok(Answer(Page::whole(store.database.enrolments(now().as_millisecond()).await?)))
}

async fn create_enrolment(
    State(store): TheStore,
    called: Called,
    JsonBody(request): JsonBody<CreateEnrolment>,
) -> ApiResult<Created<CreatedSecret>> {
    if !is_cluster(&request.cluster) {
        return Err(ApiError::bad_request("this can't be a cluster's name")
            .hint("1 to 100 letters, digits, `.`, `_` and `-`"));
    }
    let seconds = request.expires_in_seconds.unwrap_or(ENROLMENT_SECONDS);
    let hosts = request.hosts.unwrap_or(1);
    if seconds == 0 || seconds > MAX_ENROLMENT_SECONDS || hosts == 0 {
        return Err(ApiError::bad_request(
            "an enrolment token lasts for 1 second to 90 days, and for at least one host",
        ));
    }
    let secret =
        generate(SecretKind::Enrolment).map_err(|error| ApiError::internal(error.to_string()))?;
    let now = now();
    let enrolment = Enrolment {
        id: Uuid::now_v7().simple().to_string(),
        cluster: request.cluster,
        hosts_left: hosts,
        created_by: called.actor(),
        created_at: now,
        expires_at: now + Duration::from_secs(seconds.into()),
    };
    let noun = if hosts == 1 { "host" } else { "hosts" };
    let detail = format!("cluster {}, {hosts} {noun}", enrolment.cluster);
    let record = entry(&called, "enrolment.create", &enrolment.id, Some(detail));
    store.database.insert_enrolment(&enrolment, &hash(&secret), &record).await?;
    Ok(Created(CreatedSecret { id: enrolment.id, secret, expires_at: Some(enrolment.expires_at) }))
}

async fn delete_enrolment(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    if store.database.delete_enrolment(&id, &entry(&called, "enrolment.revoke", &id, None)).await? {
        return Ok(Done);
    }
    Err(ApiError::not_found("there is no such enrolment token"))
}

async fn enrol(
    State(store): TheStore,
    From(address): From,
    headers: HeaderMap,
    JsonBody(request): JsonBody<Enrol>,
) -> ApiResult<Created<Enrolled>> {
    let secret = bearer(&headers)?;
    if !is_name(&request.host_name) {
        return Err(ApiError::bad_request(
            "a host's name has 1 to 100 visible characters in one line",
        ));
    }
    let credential =
        generate(SecretKind::Host).map_err(|error| ApiError::internal(error.to_string()))?;
    let now = now();
    let now_ms = now.as_millisecond();
    let expires_at = credential_end(&store, now);
    let host = EnrolmentUse {
        enrolment_hash: hash(secret),
        host_id: Uuid::now_v7().simple().to_string(),
        host_name: request.host_name,
        credential: NewCredential {
            id: Uuid::now_v7().simple().to_string(),
            hash: hash(&credential),
            expires_ms: expires_at.as_millisecond(),
        },
        now_ms,
    };
    let record = NewAuditEntry {
        time_ms: now_ms,
        actor: format!("host:{}", host.host_id),
        action: "host.enrol",
        subject: format!("host:{}", host.host_id),
        detail: Some(host.host_name.clone()),
        address: Some(address.to_string()),
    };
    let cluster = store.database.enrol(&host, &record).await?.ok_or_else(|| {
        ApiError::unauthorized("the enrolment token is not known, used up or over")
            .hint("an admin can make one with `portcullis enrol create --cluster NAME`")
    })?;
    Ok(Created(enrolled(&store, host.host_id, cluster, (credential, now, expires_at))))
}

/// When a credential that is made now ends, unless the host renews it before.
fn credential_end(store: &Store, now: Timestamp) -> Timestamp {
    now + Duration::from_hours(24) * store.configuration.hosts.credential_days
}

fn enrolled(
    store: &Store,
    host_id: String,
    cluster: String,
    (credential, issued_at, expires_at): (String, Timestamp, Timestamp),
) -> Enrolled {
    Enrolled {
        host_id,
        cluster,
        credential,
        issued_at: Some(issued_at),
        expires_at: Some(expires_at),
        signing_keys: vec![store.signer.public().clone()],
        audience: store.verifier.audience().to_owned(),
    }
}

async fn hosts(State(store): TheStore) -> ApiResult<Answer<Page<Host>>> {
    Ok(Answer(Page::whole(store.database.hosts().await?)))
}

async fn this_host(State(store): TheStore, called: Called) -> ApiResult<Answer<Host>> {
    let (host_id, _) = called.host().ok_or_else(|| ApiError::forbidden("only a host can ask"))?;
    let hosts = store.database.hosts().await?;
    let own = hosts.into_iter().find(|host| host.id == host_id);
    own.map(Answer).ok_or_else(|| ApiError::not_found("this host was removed"))
}

async fn heartbeat(
    State(store): TheStore,
    called: Called,
    JsonBody(said): JsonBody<Heartbeat>,
) -> ApiResult<Done> {
    let (id, _) = called.host().ok_or_else(|| ApiError::forbidden("only a host has a monitor"))?;
    if !is_name(&said.version) || said.kernel.as_deref().is_some_and(|kernel| !is_name(kernel)) {
        return Err(ApiError::bad_request("a version has 1 to 100 visible characters in one line"));
    }
    store.database.note_heartbeat(id, &said, now().as_millisecond()).await?;
    Ok(Done)
}

async fn revoke(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    let record = entry(&called, "host.revoke", &id, None);
    if store.database.revoke_host(&id, now().as_millisecond(), &record).await? {
        return Ok(Done);
    }
    Err(ApiError::not_found("there is no such host, or it was revoked already"))
}

async fn rotate(State(store): TheStore, called: Called) -> ApiResult<Created<Enrolled>> {
    let (host_id, cluster) = called
        .host()
        .ok_or_else(|| ApiError::forbidden("only a host can replace its credential"))?;
    let credential =
        generate(SecretKind::Host).map_err(|error| ApiError::internal(error.to_string()))?;
    let now = now();
    let expires_at = credential_end(&store, now);
    let new = NewCredential {
        id: Uuid::now_v7().simple().to_string(),
        hash: hash(&credential),
        expires_ms: expires_at.as_millisecond(),
    };
    let record = entry(&called, "host.rotate", host_id, None);
    store.database.rotate_credential(host_id, &new, now.as_millisecond(), &record).await?;
    let made = (credential, now, expires_at);
    Ok(Created(enrolled(&store, host_id.to_owned(), cluster.to_owned(), made)))
}
