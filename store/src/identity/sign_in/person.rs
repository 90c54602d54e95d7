//! What a provider's claims come to: who it is, and what the person may do.

use super::SignInError;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use portcullis_common::store_api::Role;
use portcullis_common::text::log_line;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest name of a person that is shown, in bytes.
const MAX_NAME_BYTES: usize = 100;

/// The longest subject that is taken (OpenID Connect Core 1.0, 2: 255 characters).
const MAX_SUBJECT_BYTES: usize = 255;

/// The claims of an id token. Issuer, audience and times are checked with the signature.
#[derive(Clone, Debug, Deserialize)]
pub struct IdClaims {
    /// Who it is, for this provider.
    pub sub: String,
    /// For whom the token is: one, or several.
    pub aud: Value,
    /// The party that asked for it; must be told when it is for several.
    #[serde(default)]
    pub azp: Option<String>,
    /// What the sign-in has said.
    #[serde(default)]
    pub nonce: Option<String>,
    /// All others.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl IdClaims {
    /// Checks what is not checked with the signature.
    ///
    /// # Errors
    /// When the token was made for another sign-in or another client.
    pub fn check(&self, client_id: &str, nonce: &str) -> Result<(), SignInError> {
        let refused = |reason: &str| Err(SignInError::Token(reason.to_owned()));
        let told = self.nonce.as_deref().unwrap_or_default();
        if verify_slices_are_equal(told.as_bytes(), nonce.as_bytes()).is_err() {
            return refused("it was made for another sign-in (its nonce is another one)");
        }
        let is_for_others = self.aud.as_array().is_some_and(|all| all.len() > 1);
        let has_wrong_party = match &self.azp {
            Some(party) => party != client_id,
            None => is_for_others,
        };
        if has_wrong_party {
            return refused("it was made for another client (`azp`)");
        }
        if self.sub.is_empty() || self.sub.len() > MAX_SUBJECT_BYTES {
            return refused("it names nobody");
        }
        Ok(())
    }
}

/// A person whom the provider vouches for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Person {
    /// Who it is for good: the provider and its name for the person.
    pub subject: String,
    /// What people call the person.
    pub name: String,
    /// The groups that have a role.
    pub groups: Vec<String>,
    /// What the person may do.
    pub role: Role,
}

impl Person {
    /// The person of claims, with the most that any of the `groups` may do.
    ///
    /// # Errors
    /// When no group may do anything.
    pub fn new(
        claims: &IdClaims,
        issuer: &str,
        groups: &[String],
        roles: &BTreeMap<String, Role>,
    ) -> Result<Self, SignInError> {
        let subject = format!("{issuer} {}", log_line(&claims.sub, MAX_SUBJECT_BYTES));
        let name = name(claims);
        // Others say nothing here, and there may be hundreds.
        let groups: Vec<String> =
            groups.iter().filter(|group| roles.contains_key(*group)).cloned().collect();
        match most(&groups, roles) {
            Some(role) => Ok(Self { subject, name, groups, role }),
            None => Err(SignInError::NoRole { name, subject }),
        }
    }
}

/// The most that any of the groups may do.
pub fn most(groups: &[String], roles: &BTreeMap<String, Role>) -> Option<Role> {
    groups.iter().filter_map(|group| roles.get(group)).max().copied()
}

/// What people call a person. An address that the provider did not verify can be anybody's, so it is not shown as a name.
fn name(claims: &IdClaims) -> String {
    let text = |key: &str| {
        claims.rest.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
    };
    let is_verified = claims.rest.get("email_verified").is_none_or(|value| {
        // Some providers write it as text.
        value.as_bool() == Some(true) || value.as_str() == Some("true")
    });
    let email = text("email").filter(|_| is_verified);
    let name = email.or_else(|| text("preferred_username")).or_else(|| text("name"));
    log_line(name.unwrap_or(&claims.sub), MAX_NAME_BYTES)
}

/// The groups that a claim tells, a list or one; dots in the claim's name lead into objects unless a claim has just that name.
/// `None` when there is no such claim.
pub fn groups(claims: &Map<String, Value>, claim: &str) -> Option<Vec<String>> {
    let found = claims.get(claim).or_else(|| {
        let mut parts = claim.split('.');
        let first = claims.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    })?;
    match found {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(several) => {
            Some(several.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{IdClaims, Person, groups, name};
    use crate::identity::sign_in::SignInError;
    use portcullis_common::store_api::Role;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn claims(more: &Value) -> IdClaims {
        let mut claims = json!({ "sub": "s1", "aud": "portcullis", "nonce": "n" });
        let all = claims.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        serde_json::from_value(claims).unwrap()
    }

    #[test]
    fn a_token_for_somebody_else_is_refused() {
        let check = |more: &Value| claims(more).check("portcullis", "n");
        for good in [
            json!({}),
            json!({ "azp": "portcullis" }),
            json!({ "aud": ["portcullis"] }),
            json!({ "aud": ["portcullis", "other"], "azp": "portcullis" }),
        ] {
            assert!(check(&good).is_ok(), "{good}");
        }
        for bad in [
            json!({ "nonce": "m" }),
            json!({ "nonce": "" }),
            json!({ "nonce": null }),
            json!({ "azp": "other" }),
            json!({ "aud": ["portcullis", "other"] }),
            json!({ "aud": ["portcullis", "other"], "azp": "other" }),
            json!({ "sub": "" }),
            json!({ "sub": "s".repeat(300) }),
        ] {
            assert!(matches!(check(&bad), Err(SignInError::Token(_))), "{bad}");
        }
    }

    #[test]
    fn the_most_that_a_group_may_counts_and_nothing_else() {
        let roles: BTreeMap<String, Role> =
            [("dev".to_owned(), Role::Viewer), ("ops".to_owned(), Role::Admin)].into();
        let role = |groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            Person::new(&claims(&json!({})), "https://login.test", &groups, &roles)
                .map(|person| (person.role, person.subject))
        };
        let subject = "https://login.test s1".to_owned();
        assert_eq!(role(&["dev"]).unwrap(), (Role::Viewer, subject.clone()));
        assert_eq!(role(&["dev", "ops", "x"]).unwrap(), (Role::Admin, subject));
        for none in [&[][..], &["x"], &["OPS"], &["ops "], &["op"]] {
            assert!(matches!(role(none), Err(SignInError::NoRole { .. })), "{none:?}");
        }
    }

    #[test]
    fn groups_are_found_where_providers_put_them() {
        let of = |more: Value, claim: &str| groups(more.as_object().unwrap(), claim);
        let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(of(json!({ "groups": ["a", 1, "b"] }), "groups"), list(&["a", "b"]));
        assert_eq!(of(json!({ "groups": "a" }), "groups"), list(&["a"]));
        assert_eq!(
            of(json!({ "realm_access": { "roles": ["a"] } }), "realm_access.roles"),
            list(&["a"])
        );
        assert_eq!(
            of(json!({ "https://x.test/groups": ["a"] }), "https://x.test/groups"),
            list(&["a"])
        );
        for none in [json!({}), json!({ "groups": { "a": true } }), json!({ "groups": null })] {
            assert_eq!(of(none, "groups"), None);
        }
    }

    #[test]
    fn a_name_is_one_that_the_provider_stands_for() {
        for (more, expected) in [
            (json!({ "email": "a@b.test", "email_verified": true }), "a@b.test"),
            (json!({ "email": "a@b.test", "email_verified": "true" }), "a@b.test"),
            (json!({ "email": "a@b.test" }), "a@b.test"),
            (
                json!({ "email": "boss@b.test", "email_verified": false, "preferred_username": "mal" }),
                "mal",
            ),
            (json!({ "name": "  Ada  " }), "Ada"),
            (json!({}), "s1"),
        ] {
            assert_eq!(name(&claims(&more)), expected);
        }
        let hostile = name(&claims(&json!({ "name": format!("a\u{202e}\n{}", "x".repeat(500)) })));
        assert!(hostile.len() <= 110 && !hostile.contains(['\n', '\u{202e}']), "{hostile}");
    }
}
