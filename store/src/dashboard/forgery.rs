//! Proof that a form was filled in on our own page: a value made of the session's secret, in every form of ours.
//!
//! It is masked anew for each page, because pages are sent packed, and the length of a packed page that repeats what somebody
//! else chose could tell the value letter by letter (BREACH). Where the browser says where a request comes from, that
//! must be us as well.

use super::session::Session;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::fill;
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// Bytes of a proof.
const LENGTH: usize = 32;

/// The name of the form's field.
pub(super) const FIELD: &str = "proof";
/// The header that scripts send it in.
pub(super) const HEADER: &str = "x-portcullis-proof";

fn proof(session: &Session) -> [u8; LENGTH] {
    Sha256::new_with_prefix("portcullis form\0").chain_update(&session.secret).finalize().into()
}

/// The proof for one page.
pub(super) fn masked(session: &Session) -> String {
    let mut bytes = [0; 2 * LENGTH];
    let (mask, masked) = bytes.split_at_mut(LENGTH);
    // Without random numbers the proof is sent as it is: the mask is a second line of defence.
    let _ = fill(mask);
    for ((out, proof), mask) in masked.iter_mut().zip(proof(session)).zip(mask) {
        *out = proof ^ *mask;
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Whether what a request brings is the session's proof.
pub(super) fn is_proof(session: &Session, given: &str) -> bool {
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(given) else { return false };
    if bytes.len() != 2 * LENGTH {
        return false;
    }
    let (mask, masked) = bytes.split_at(LENGTH);
    let found: Vec<u8> = mask.iter().zip(masked).map(|(mask, masked)| mask ^ masked).collect();
    verify_slices_are_equal(&found, &proof(session)).is_ok()
}

/// Whether the browser says that a request comes from another site's page. Programs that say nothing are no browsers that
/// carry somebody's cookie.
pub(super) fn is_foreign(headers: &HeaderMap, public_url: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return true;
    }
    let Some(origin) = text(ORIGIN.as_str()) else { return false };
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    // Behind a proxy the host that we see may be the proxy's name for us.
    let is_public = public_url.trim_end_matches('/').eq_ignore_ascii_case(origin);
    !is_public && text(HOST.as_str()).is_none_or(|host| !host.eq_ignore_ascii_case(authority))
}

#[cfg(test)]
mod tests {
    use super::{is_foreign, is_proof, masked};
    use crate::dashboard::session::Session;
    use crate::database::Caller;
    use crate::identity::sign_in::Confirmation;
    use axum::http::{HeaderMap, HeaderName, HeaderValue};
    use portcullis_common::store_api::Role;

    fn session(secret: &str) -> Session {
        let caller = Caller::Token { id: "1".into(), name: "a".into(), role: Role::Admin };
        Session { caller, confirmation: Confirmation::Fresh, secret: secret.to_owned() }
    }

    #[test]
    fn a_proof_is_good_for_its_session_alone() {
        let (one, two) = (session("one"), session("two"));
        let (first, second) = (masked(&one), masked(&one));
        assert_ne!(first, second, "masked anew for each page");
        assert!(is_proof(&one, &first) && is_proof(&one, &second));
        assert!(!is_proof(&two, &first));
        for wrong in ["", "x", &first[1..], "AAAA"] {
            assert!(!is_proof(&one, wrong), "{wrong}");
        }
    }

    #[test]
    fn other_sites_are_told_apart() {
        let foreign = |pairs: &[(&'static str, &'static str)]| {
            let headers: HeaderMap = pairs
                .iter()
                .map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
            is_foreign(&headers, "https://store.test/")
        };
        assert!(!foreign(&[("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:1")]));
        assert!(!foreign(&[("host", "inner"), ("origin", "https://store.test")]));
        assert!(!foreign(&[("host", "store.test"), ("sec-fetch-site", "same-origin")]));
        assert!(!foreign(&[("host", "store.test")]));
        assert!(foreign(&[("host", "store.test"), ("origin", "https://evil.test")]));
        assert!(foreign(&[("host", "store.test"), ("origin", "null")]));
        assert!(foreign(&[("host", "store.test"), ("sec-fetch-site", "cross-site")]));
        assert!(foreign(&[("host", "store.test"), ("sec-fetch-site", "same-site")]));
    }
}
