//! GitHub's OIDC tokens of jobs: who signed them, for whom, when, and whether they say the same as the job's context.
//!
//! The algorithm is pinned to RS256, which is what GitHub signs with; a token that names another is refused, and so is one
//! whose key is of another kind. Keys are those of the [`Issuer`].

use super::issuer::{Issuer, KeysAt};
use jsonwebtoken::{Algorithm, Validation};
use portcullis_common::job_context::JobContext;
use serde::Deserialize;
use std::time::Duration;

/// How far the clocks of GitHub and the store may be apart.
const LEEWAY: Duration = Duration::from_mins(1);

/// The claims that are compared.
#[derive(Clone, Debug, Deserialize)]
pub struct Claims {
    /// `octo/hello`.
    pub repository: String,
    /// `octo/hello/.github/workflows/ci.yml@refs/heads/main`.
    pub workflow_ref: String,
    /// The workflow that holds the job, when a reusable workflow runs.
    #[serde(default)]
    pub job_workflow_ref: Option<String>,
    /// The run, a number as text.
    pub run_id: String,
    /// The attempt, a number as text.
    pub run_attempt: String,
    /// The owner of the repository.
    #[serde(default)]
    pub repository_owner: Option<String>,
    /// The commit.
    #[serde(default)]
    pub sha: Option<String>,
    /// When the token ends, in seconds since 1970.
    pub exp: i64,
}

/// Why a token is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is no valid token of the issuer for this store.
    #[error("the id token is refused: {0}")]
    Token(String),
    /// It is valid, and says something else than the job.
    #[error(
        "the id token contradicts the job's environment: its `{claim}` is `{token}`, not `{context}`"
    )]
    Contradiction {
        /// The claim.
        claim: &'static str,
        /// What the token says.
        token: String,
        /// What the job says.
        context: String,
    },
    /// The issuer's keys can't be had.
    #[error("the keys of {issuer} can't be had: {reason}")]
    KeysUnavailable {
        /// The issuer.
        issuer: String,
        /// Why.
        reason: String,
    },
}

/// Verifies tokens of one issuer for one audience.
#[derive(Debug)]
pub struct Verifier {
    issuer: Issuer,
    audience: String,
}

impl Verifier {
    /// Tokens that `issuer` (`https://token.actions.githubusercontent.com`) made for `audience`.
    pub fn new(issuer: &str, audience: &str, client: reqwest::Client) -> Self {
        Self { issuer: Issuer::new(issuer, KeysAt::Issuer, client), audience: audience.to_owned() }
    }

    /// The audience that tokens must have.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Verifies a token and that it belongs to the job.
    ///
    /// # Errors
    /// When it is not valid, contradicts the context, or the issuer's keys can't be had.
    pub async fn verify(&self, token: &str, context: &JobContext) -> Result<Claims, IdentityError> {
        let claims = self.claims(token).await?;
        compare(&claims, context)?;
        Ok(claims)
    }

    /// Verifies a token for what it is.
    ///
    /// # Errors
    /// When it is not valid, or the issuer's keys can't be had.
    pub async fn claims(&self, token: &str) -> Result<Claims, IdentityError> {
        let refused = |error: jsonwebtoken::errors::Error| IdentityError::Token(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        if header.alg != Algorithm::RS256 {
            let reason = format!("its algorithm is {:?}, and RS256 is the only one", header.alg);
            return Err(IdentityError::Token(reason));
        }
        let key_id =
            header.kid.ok_or_else(|| IdentityError::Token("it names no key (`kid`)".to_owned()))?;
        let unavailable = |reason| IdentityError::KeysUnavailable {
            issuer: self.issuer.url().to_owned(),
            reason,
        };
        let key = self.issuer.key(&key_id, header.alg).await.map_err(unavailable)?;
        let key = key.ok_or_else(|| {
            IdentityError::Token(
                "the issuer has no key of the name that it was signed with".to_owned(),
            )
        })?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[self.issuer.url()]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        let token = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(refused)?;
        Ok(token.claims)
    }
}

/// Whether a token speaks of the job.
fn compare(claims: &Claims, context: &JobContext) -> Result<(), IdentityError> {
    let run_id = context.run_id.to_string();
    let run_attempt = context.run_attempt.to_string();
    // GitHub does not tell letter case apart in owners and repositories; a workflow's path and ref are exact.
    let same_repository = claims.repository.eq_ignore_ascii_case(&context.repository);
    let checks: [(&'static str, bool, &str, &str); 4] = [
        ("repository", same_repository, &claims.repository, &context.repository),
        (
            "workflow_ref",
            same_workflow(&claims.workflow_ref, &context.workflow_ref),
            &claims.workflow_ref,
            &context.workflow_ref,
        ),
        ("run_id", claims.run_id == run_id, &claims.run_id, &run_id),
        ("run_attempt", claims.run_attempt == run_attempt, &claims.run_attempt, &run_attempt),
    ];
    match checks.into_iter().find(|(_, same, ..)| !same) {
        None => Ok(()),
        Some((claim, _, token, context)) => Err(IdentityError::Contradiction {
            claim,
            token: portcullis_common::text::log_line(token, 200),
            context: portcullis_common::text::log_line(context, 200),
        }),
    }
}

/// Whether two references name the same workflow: owner and repository in any case, the rest exactly.
fn same_workflow(one: &str, other: &str) -> bool {
    let split = |text: &str| {
        let end = text.match_indices('/').nth(1).map_or(text.len(), |(index, _)| index);
        (text[..end].to_ascii_lowercase(), text[end..].to_owned())
    };
    split(one) == split(other)
}

#[cfg(test)]
mod tests {
    use super::{Claims, compare, same_workflow};
    use portcullis_common::job_context::JobContext;

    #[test]
    fn every_compared_claim_counts() {
        let context = JobContext {
            repository: "Octo/hello".to_owned(),
            workflow_ref: "Octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
            run_id: 7,
            run_attempt: 1,
            ..JobContext::default()
        };
        let good = Claims {
            repository: "octo/hello".to_owned(),
            workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
            job_workflow_ref: None,
            run_id: "7".to_owned(),
            run_attempt: "1".to_owned(),
            repository_owner: None,
            sha: None,
            exp: 0,
        };
        assert!(compare(&good, &context).is_ok());
        for bad in [
            Claims { repository: "octo/other".to_owned(), ..good.clone() },
            Claims { workflow_ref: good.workflow_ref.replace("ci", "CI"), ..good.clone() },
            Claims { workflow_ref: good.workflow_ref.replace("main", "dev"), ..good.clone() },
            Claims { run_id: "07".to_owned(), ..good.clone() },
            Claims { run_attempt: "2".to_owned(), ..good.clone() },
        ] {
            assert!(compare(&bad, &context).is_err(), "{bad:?}");
        }
        assert!(!same_workflow("a/b/c@d", "a/b/C@d") && same_workflow("A/b", "a/B"));
    }
}
