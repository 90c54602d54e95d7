//! What a runner host asks of the store.

use crate::error::StoreError;
use crate::http::{Connection, decode};
use crate::signature::{SignatureError, verify};
use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use portcullis_common::report::Report;
use portcullis_common::resolution::Resolution;
use portcullis_common::store_api::{
    Accepted, Credential, Enrol, Enrolled, Heartbeat, NewJob, ResolveRequest, Resolved,
    SIGNATURE_HEADER,
};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use std::io::Write as _;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// How far this host's clock and the store's may be apart.
const CLOCK_LEEWAY: Duration = Duration::from_mins(2);

/// Random bytes of a nonce.
const NONCE_BYTES: usize = 24;

/// A host with its credential.
#[derive(Debug)]
pub struct HostClient {
    connection: Connection,
    /// The credential as it was given; all but its secret stays.
    credential: Credential,
    /// The secret that is used now.
    secret: RwLock<SecretString>,
}

/// Enrols this host with an enrolment token.
///
/// # Errors
/// When the store refuses or can't be reached.
pub async fn enrol(
    connection: &Connection,
    token: &str,
    host_name: &str,
) -> Result<Enrolled, StoreError> {
    let body = Enrol { host_name: host_name.to_owned() };
    let request = connection.request(Method::POST, "enrol").bearer_auth(token).json(&body);
    decode(&connection.send(request).await?.body)
}

impl HostClient {
    /// A host with its credential.
    pub fn new(connection: Connection, credential: Credential) -> Self {
        let secret = RwLock::new(SecretString::from(credential.credential.clone()));
        Self { connection, credential, secret }
    }

    /// Asks for a credential in the place of this one. It counts from its first use on, so it must be kept where it
    /// survives everything before [`Self::use_credential`]; until then this one goes on. The keys that answers are trusted
    /// by stay those of the enrolment, whatever the store says now.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn renew(&self) -> Result<Credential, StoreError> {
        let request = self.authenticated(Method::POST, "host/credential");
        let renewed: Enrolled = decode(&self.connection.send(request).await?.body)?;
        if renewed.host_id != self.credential.host_id {
            return Err(StoreError::AnotherAnswer("it is the credential of another host"));
        }
        Ok(Credential {
            credential: renewed.credential,
            issued_at: renewed.issued_at,
            expires_at: renewed.expires_at,
            ..self.credential.clone()
        })
    }

    /// Uses a credential from now on.
    pub fn use_credential(&self, credential: &Credential) {
        let mut secret = self.secret.write().unwrap_or_else(PoisonError::into_inner);
        *secret = SecretString::from(credential.credential.clone());
    }

    /// Tells the store by its use that a credential has arrived. What is asked for is of no interest.
    ///
    /// # Errors
    /// When the store does not know the credential or can't be reached.
    pub async fn confirm(&self) -> Result<(), StoreError> {
        let request = self.authenticated(Method::GET, "host");
        self.connection.send(request).await.map(drop)
    }

    /// Tells the store that the monitor is there, and what it is.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let request = self.authenticated(Method::POST, "host/heartbeat").json(heartbeat);
        self.connection.send(request).await.map(drop)
    }

    fn authenticated(&self, method: Method, path: &str) -> RequestBuilder {
        let secret = self.secret.read().unwrap_or_else(PoisonError::into_inner);
        self.connection.request(method, path).bearer_auth(secret.expose_secret())
    }

    /// The audience that GitHub's OIDC tokens for the store must have.
    pub fn audience(&self) -> &str {
        &self.credential.audience
    }

    /// The connection.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Which policy applies to a job. The answer is the store's, to this request, and not over, or it is none.
    ///
    /// # Errors
    /// When the store refuses or can't be reached, or its answer can't be trusted.
    pub async fn resolve(&self, mut request: ResolveRequest) -> Result<Resolution, StoreError> {
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce)
            .map_err(|_| StoreError::Client("the system gave no random numbers".to_owned()))?;
        request.nonce = Some(URL_SAFE_NO_PAD.encode(nonce));
        let sent = self.authenticated(Method::POST, "resolve").json(&request);
        let reply = self.connection.send(sent).await?;
        let signature = reply
            .headers
            .get(SIGNATURE_HEADER)
            .and_then(|value| value.to_str().ok())
            .ok_or(SignatureError::Malformed)?;
        verify(signature, &reply.body, &self.credential.signing_keys)?;
        accept(decode(&reply.body)?, &request, Timestamp::now())
    }

    /// Tells that a job began.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn start_job(&self, job: &NewJob) -> Result<Accepted, StoreError> {
        let request = self.authenticated(Method::POST, "jobs").json(job);
        decode(&self.connection.send(request).await?.body)
    }

    /// Sends events, NDJSON, in order.
    ///
    /// # Errors
    /// When the store refuses or can't be reached; [`StoreError::expected_seq`] tells when it misses events before these.
    pub async fn send_events(&self, job_id: &str, lines: &[u8]) -> Result<Accepted, StoreError> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed
            .write_all(lines)
            .and_then(|()| packed.finish())
            .map_err(|error| StoreError::Client(error.to_string()))?;
        let request = self
            .authenticated(Method::POST, &format!("jobs/{job_id}/events"))
            .header(CONTENT_TYPE, "application/x-ndjson")
            .header(CONTENT_ENCODING, "gzip")
            .body(packed);
        decode(&self.connection.send(request).await?.body)
    }

    /// Sends the report of a job that has ended.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn send_report(&self, report: &Report) -> Result<(), StoreError> {
        let path = format!("jobs/{}/report", report.job_id);
        let request = self.authenticated(Method::PUT, &path).json(report);
        self.connection.send(request).await.map(drop)
    }
}

/// The resolution, when the answer is the one to this request and not over.
fn accept(
    resolved: Resolved,
    request: &ResolveRequest,
    now: Timestamp,
) -> Result<Resolution, StoreError> {
    if resolved.nonce.is_none() || resolved.nonce != request.nonce {
        return Err(StoreError::AnotherAnswer("it repeats an earlier one"));
    }
    if resolved.context != request.context {
        return Err(StoreError::AnotherAnswer("it is about another job"));
    }
    if resolved.expires_at + CLOCK_LEEWAY < now {
        return Err(StoreError::AnotherAnswer("it has expired; is this host's clock right?"));
    }
    if resolved.issued_at > now + CLOCK_LEEWAY {
        return Err(StoreError::AnotherAnswer(
            "it comes from the future; is this host's clock right?",
        ));
    }
    Ok(resolved.resolution)
}

#[cfg(test)]
mod tests {
    use super::{CLOCK_LEEWAY, accept};
    use jiff::Timestamp;
    use portcullis_common::job_context::JobContext;
    use portcullis_common::policy::{EffectivePolicy, EgressMode};
    use portcullis_common::resolution::{DefaultPolicy, Identity, Resolution, ScopeKind};
    use portcullis_common::store_api::{ResolveRequest, Resolved};
    use std::time::Duration;

    #[test]
    fn replayed_foreign_and_expired_answers_are_refused() {
        let request = ResolveRequest {
            context: JobContext { run_id: 7, ..JobContext::default() },
            id_token: None,
            cluster: None,
            default_policy: DefaultPolicy::Audit,
            nonce: Some("n".to_owned()),
        };
        let now = Timestamp::now();
        let good = Resolved {
            resolution: Resolution {
                policy: EffectivePolicy::built_in(EgressMode::Block),
                scope: ScopeKind::Default,
                target: "default".to_owned(),
                identity: Identity::Asserted,
                considered: Vec::new(),
            },
            context: request.context.clone(),
            cluster: None,
            nonce: request.nonce.clone(),
            issued_at: now,
            expires_at: now + Duration::from_mins(5),
        };
        assert!(accept(good.clone(), &request, now).is_ok());
        let other = JobContext { run_id: 8, ..JobContext::default() };
        let long_ago = now - Duration::from_hours(1);
        for bad in [
            Resolved { nonce: None, ..good.clone() },
            Resolved { nonce: Some("m".to_owned()), ..good.clone() },
            Resolved { context: other, ..good.clone() },
            Resolved { expires_at: long_ago, ..good.clone() },
            Resolved { issued_at: now + CLOCK_LEEWAY * 2, ..good.clone() },
        ] {
            assert!(accept(bad, &request, now).is_err());
        }
        // Without a nonce of our own nothing can be told apart.
        assert!(
            accept(
                Resolved { nonce: None, ..good },
                &ResolveRequest { nonce: None, ..request },
                now
            )
            .is_err()
        );
    }
}
