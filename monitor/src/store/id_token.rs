//! Asks GitHub for a job's OIDC token.
//!
//! The address comes from the job's environment, and the monitor asks as root: so it asks nobody but GitHub, over TLS, follows
//! no redirect, and takes a bounded answer. A job that names another address gets no token, nothing else.

use portcullis_common::wire::{IdTokenRequest, MAX_ID_TOKEN_BYTES};
use reqwest::{Client, Url};
use serde::Deserialize;
use std::time::Duration;

/// Where github.com's runners ask for tokens: hosts of this zone, which GitHub alone can name.
const GITHUB_ZONE: &str = "actions.githubusercontent.com";

/// The largest answer in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum IdTokenError {
    /// The address is not GitHub's.
    #[error("the job's address for id tokens is not GitHub's")]
    NotGithub,
    /// GitHub could not be asked.
    #[error("GitHub could not be asked")]
    Request(#[from] reqwest::Error),
    /// The answer is no token.
    #[error("GitHub's answer holds no id token")]
    NoToken,
}

/// The address to ask: `https`, at a host of `github` (`github.com`, or a GitHub Enterprise Server), on its usual port.
///
/// # Errors
/// When it is none of these.
pub fn check_address(text: &str, github: &str) -> Result<Url, IdTokenError> {
    let url = Url::parse(text).map_err(|_| IdTokenError::NotGithub)?;
    let zone = if github == "github.com" { GITHUB_ZONE } else { github };
    let is_github = url.host_str().is_some_and(|host| {
        host == zone || host.strip_suffix(zone).is_some_and(|below| below.ends_with('.'))
    });
    let is_plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    if url.scheme() == "https" && is_github && is_plain {
        return Ok(url);
    }
    Err(IdTokenError::NotGithub)
}

#[derive(Deserialize)]
struct Answer {
    value: String,
}

/// Asks for a token for `audience`.
///
/// # Errors
/// When GitHub can't be asked or answers no token, within `patience`.
pub(super) async fn fetch(
    client: &Client,
    request: &IdTokenRequest,
    github: &str,
    audience: &str,
    patience: Duration,
) -> Result<String, IdTokenError> {
    let mut url = check_address(&request.url, github)?;
    url.query_pairs_mut().append_pair("audience", audience);
    let asked = client.get(url).bearer_auth(&request.token).timeout(patience);
    let mut response = asked.send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(IdTokenError::NoToken);
        }
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| IdTokenError::NoToken)?;
    if answer.value.is_empty() || answer.value.len() > MAX_ID_TOKEN_BYTES {
        return Err(IdTokenError::NoToken);
    }
    Ok(answer.value)
}

#[cfg(test)]
mod tests {
    use super::check_address;

    #[test]
    fn only_github_is_asked() {
        let good =
            "https://pipelinesghubeus1.actions.githubusercontent.com/x/idtoken?api-version=2.0";
        assert!(check_address(good, "github.com").is_ok());
        for bad in [
            "http://pipelines.actions.githubusercontent.com/x",
            "https://actions.githubusercontent.com.evil.test/x",
            "https://evilactions.githubusercontent.com/x",
            "https://raw.githubusercontent.com/x",
            "https://user@pipelines.actions.githubusercontent.com/x",
            "https://pipelines.actions.githubusercontent.com:8443/x",
            "https://169.254.169.254/latest/meta-data",
            "file:///etc/shadow",
            "",
        ] {
            assert!(check_address(bad, "github.com").is_err(), "{bad}");
        }
        assert!(check_address("https://ghes.test/_services/token/x", "ghes.test").is_ok());
        assert!(check_address("https://evil.test/?ghes.test", "ghes.test").is_err());
        assert!(check_address("https://evilghes.test/", "ghes.test").is_err());
    }
}
