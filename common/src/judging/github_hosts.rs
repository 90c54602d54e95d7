//! GitHub's own hosts that a runner needs: the one list, explained in `docs/github-hosts.md`.
//!
//! Exact names; a wildcard only below a name that GitHub alone can register. Storage accounts of Azure are named one by
//! one: below `blob.core.windows.net` anybody can register.

use crate::endpoint::{Endpoint, EndpointError};
use crate::policy::Rule;
use std::sync::Arc;

/// The policy that these rules say they come from.
pub const POLICY_NAME: &str = "github-infrastructure";

/// The server of GitHub's cloud.
const CLOUD: &str = "github.com";

/// What a runner of github.com needs: <https://docs.github.com/en/actions/reference/runners/self-hosted-runners>,
/// section "Accessible domains by function", without what only workflows need (packages, Git LFS).
const CLOUD_HOSTS: [&str; 9] = [
    // Essential operations: job assignment, API, OIDC tokens, results.
    "github.com",
    "api.github.com",
    "*.actions.githubusercontent.com",
    // Downloads of actions, and of their release assets.
    "codeload.github.com",
    "release-assets.githubusercontent.com",
    // Updates of the runner.
    "objects.githubusercontent.com",
    "objects-origin.githubusercontent.com",
    "github-releases.githubusercontent.com",
    "github-registry-files.githubusercontent.com",
];

/// The storage accounts of job summaries, logs, artifacts and caches: `productionresultssa0` to `productionresultssa19`.
const RESULT_ACCOUNTS: std::ops::RangeInclusive<u32> = 0..=19;

/// The hosts that a runner of `server` needs, on port 443.
///
/// `server` is `github.com` or the host name of a GitHub Enterprise Server, whose runners need the server itself and its
/// API; actions are downloaded from `codeload` when subdomain isolation is on:
/// <https://docs.github.com/en/enterprise-server@latest/actions/reference/runners/self-hosted-runners>.
///
/// # Errors
/// When `server` is no host name.
pub fn github_hosts(server: &str) -> Result<Vec<Arc<Rule>>, EndpointError> {
    let texts: Vec<String> = if server.eq_ignore_ascii_case(CLOUD) {
        let results =
            RESULT_ACCOUNTS.map(|n| format!("productionresultssa{n}.blob.core.windows.net:443"));
        CLOUD_HOSTS.iter().map(|host| format!("{host}:443")).chain(results).collect()
    } else {
        ["", "api.", "codeload."].iter().map(|label| format!("{label}{server}:443")).collect()
    };
    texts
        .into_iter()
        .map(|text| {
            let endpoint = text.parse::<Endpoint>()?;
            Ok(Arc::new(Rule { endpoint, text: text.into(), policy: POLICY_NAME.into() }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Host;

    const DOCUMENTATION: &str = include_str!("../../../docs/github-hosts.md");

    #[test]
    fn the_list_is_the_documented_one() {
        let mut documented: Vec<&str> = DOCUMENTATION
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|name| !name.contains("HOSTNAME"))
            .collect();
        documented.sort_unstable();
        let rules = github_hosts("GitHub.com").unwrap();
        let mut listed: Vec<&str> =
            rules.iter().map(|rule| rule.text.strip_suffix(":443").unwrap()).collect();
        listed.sort_unstable();
        assert_eq!(listed, documented);
    }

    #[test]
    fn nobody_but_github_can_register_a_name_below_a_wildcard() {
        let rules = github_hosts(CLOUD).unwrap();
        let wildcards: Vec<&str> = rules
            .iter()
            .filter(|rule| matches!(rule.endpoint.host, Host::Wildcard(_)))
            .map(|rule| &*rule.text)
            .collect();
        assert_eq!(wildcards, ["*.actions.githubusercontent.com:443"]);
        assert!(rules.iter().all(|rule| &*rule.policy == POLICY_NAME));
    }

    #[test]
    fn an_enterprise_server_has_names_of_its_own() {
        let rules = github_hosts("git.example.com").unwrap();
        let texts: Vec<&str> = rules.iter().map(|rule| &*rule.text).collect();
        assert_eq!(
            texts,
            ["git.example.com:443", "api.git.example.com:443", "codeload.git.example.com:443"]
        );
        github_hosts("not a name").unwrap_err();
        github_hosts("evil.test:1-65535 x").unwrap_err();
    }
}
