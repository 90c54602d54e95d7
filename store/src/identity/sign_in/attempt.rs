//! A sign-in while a browser is away at the provider.
//!
//! Nothing of it is kept on the server, so that any replica can go on with it, and nobody can fill the database by beginning
//! sign-ins: the browser keeps it in a cookie, sealed, so that it can neither be read nor changed there. It is good for
//! one sign-in, because the provider takes a code once.

use super::SignInError;
use crate::identity::secret::NoRandomness;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_common::text::log_line;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use url::Url;

/// How long somebody may take at the provider.
pub const ATTEMPT_LIFE: Duration = Duration::from_mins(10);

/// The longest path that is gone back to, in bytes.
const MAX_RETURN_BYTES: usize = 1024;

/// Random bytes of state, nonce and verifier each.
const RANDOM_BYTES: usize = 32;

/// What the cookie's seal is bound to.
const PURPOSE: &[u8] = b"portcullis sign-in attempt 1";

/// What a browser keeps while it is away.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attempt {
    /// What the provider has to repeat: binds its answer to this browser.
    pub state: String,
    /// What the id token has to repeat: binds the token to this sign-in.
    pub nonce: String,
    /// The secret of PKCE: binds the code to this sign-in.
    pub verifier: String,
    /// The path of this store to go back to.
    pub return_to: String,
    /// When it began, in seconds since 1970.
    pub begun_s: i64,
    /// The name of the person whose session it is to confirm; absent for a sign-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirms: Option<String>,
}

/// What the provider sent a browser back with.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Answered {
    /// The code, when all went well.
    #[serde(default)]
    pub code: Option<String>,
    /// What it repeats.
    #[serde(default)]
    pub state: Option<String>,
    /// Who answers (RFC 9207), if the provider says so.
    #[serde(default)]
    pub iss: Option<String>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// The same in words.
    #[serde(default)]
    pub error_description: Option<String>,
}

impl Attempt {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(return_to: &str, now_s: i64) -> Result<Self, NoRandomness> {
        Ok(Self {
            state: random()?,
            nonce: random()?,
            verifier: random()?,
            return_to: local_path(return_to).to_owned(),
            begun_s: now_s,
            confirms: None,
        })
    }

    /// The provider's page for it. A session is confirmed without a word to the person: the provider sends the browser back at
    /// once, or says that it would have to ask (OpenID Connect Core 1.0, 3.1.2.1: `prompt`, `login_hint`).
    pub fn url(&self, mut endpoint: Url, client_id: &str, redirect_uri: &str, scope: &str) -> Url {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&self.verifier));
        if let Some(name) = &self.confirms {
            endpoint
                .query_pairs_mut()
                .append_pair("prompt", "none")
                .append_pair("login_hint", name);
        }
        endpoint
            .query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", client_id)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("scope", scope)
            .append_pair("state", &self.state)
            .append_pair("nonce", &self.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        endpoint
    }

    /// Whether an answer repeats this attempt's state.
    pub fn is_answered_by(&self, answered: &Answered) -> bool {
        let state = answered.state.as_deref().unwrap_or_default();
        verify_slices_are_equal(state.as_bytes(), self.state.as_bytes()).is_ok()
    }

    /// The code of an answer, when the answer is the one to this attempt.
    ///
    /// # Errors
    /// When it is another's, comes too late, or says that the sign-in failed.
    pub fn accept<'a>(
        &self,
        answered: &'a Answered,
        issuer: &str,
        now_s: i64,
    ) -> Result<&'a str, SignInError> {
        if !self.is_answered_by(answered) {
            return Err(SignInError::Attempt("its state is another one"));
        }
        let life = i64::try_from(ATTEMPT_LIFE.as_secs()).unwrap_or(i64::MAX);
        if !(self.begun_s..self.begun_s.saturating_add(life)).contains(&now_s) {
            return Err(SignInError::Attempt("it took longer than ten minutes"));
        }
        let other =
            answered.iss.as_ref().is_some_and(|named| named.trim_end_matches('/') != issuer);
        if other {
            return Err(SignInError::Attempt("another provider answers"));
        }
        if let Some(error) = &answered.error {
            let words = answered.error_description.as_deref().unwrap_or_default();
            return Err(SignInError::Refused(log_line(&format!("{error} {words}"), 200)));
        }
        answered
            .code
            .as_deref()
            .filter(|code| !code.is_empty())
            .ok_or(SignInError::Attempt("the provider sent no code"))
    }
}

/// A path of this store and nothing else: what could lead a browser to another host becomes `/`.
pub fn local_path(text: &str) -> &str {
    // `//host` and `/\host` are addresses of other hosts to a browser; it also drops tabs and newlines before it looks.
    let is_local = text.starts_with('/')
        && !text.starts_with("//")
        && !text.contains('\\')
        && !text.contains(|letter: char| letter.is_control() || letter.is_whitespace())
        && text.len() <= MAX_RETURN_BYTES;
    if is_local { text } else { "/" }
}

fn random() -> Result<String, NoRandomness> {
    let mut bytes = [0; RANDOM_BYTES];
    fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Closes attempts so that a browser can keep them.
#[derive(Debug)]
pub struct Sealer(RandomizedNonceKey);

impl Sealer {
    /// A new key, as text that [`Self::from_text`] reads.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<String, NoRandomness> {
        random()
    }

    /// Reads a key; `None` when it is none.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim()).ok()?;
        RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok().map(Self)
    }

    /// An attempt as the value of a cookie.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal(&self, attempt: &Attempt) -> Result<String, NoRandomness> {
        let mut text = serde_json::to_vec(attempt).map_err(|_| NoRandomness)?;
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(PURPOSE), &mut text)
            .map_err(|_| NoRandomness)?;
        let sealed = [nonce.as_ref().as_slice(), &text].concat();
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The attempt of a cookie.
    ///
    /// # Errors
    /// When this store did not seal it.
    pub fn open(&self, cookie: &str) -> Result<Attempt, SignInError> {
        let wrong = SignInError::Attempt("its cookie is not one of this store");
        let opened = || {
            let mut sealed = URL_SAFE_NO_PAD.decode(cookie).ok()?;
            let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let text = self.0.open_in_place(nonce, Aad::from(PURPOSE), text).ok()?;
            serde_json::from_slice(text).ok()
        };
        opened().ok_or(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::{ATTEMPT_LIFE, Answered, Attempt, Sealer, local_path};
    use crate::identity::sign_in::SignInError;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use sha2::{Digest as _, Sha256};
    use url::Url;

    const ISSUER: &str = "https://login.test";

    #[test]
    fn only_the_answer_to_this_attempt_is_accepted() {
        let attempt = Attempt::new("/runs/7", 1000).unwrap();
        let good = Answered {
            code: Some("c0de".to_owned()),
            state: Some(attempt.state.clone()),
            ..Answered::default()
        };
        let life = i64::try_from(ATTEMPT_LIFE.as_secs()).unwrap();
        assert_eq!(attempt.accept(&good, ISSUER, 1000).unwrap(), "c0de");
        assert_eq!(attempt.accept(&good, ISSUER, 999 + life).unwrap(), "c0de");
        let named = Answered { iss: Some(format!("{ISSUER}/")), ..good.clone() };
        assert_eq!(attempt.accept(&named, ISSUER, 1000).unwrap(), "c0de");
        for (bad, now) in [
            (Answered { state: None, ..good.clone() }, 1000),
            (Answered { state: Some(attempt.nonce.clone()), ..good.clone() }, 1000),
            (Answered { code: None, ..good.clone() }, 1000),
            (Answered { code: Some(String::new()), ..good.clone() }, 1000),
            (Answered { iss: Some("https://evil.test".to_owned()), ..good.clone() }, 1000),
            (good.clone(), 1000 + life),
            (good.clone(), 999),
        ] {
            let error = attempt.accept(&bad, ISSUER, now).unwrap_err();
            assert!(matches!(error, SignInError::Attempt(_)), "{bad:?}: {error}");
        }
        let refused = Answered { error: Some("access_denied\u{1b}[2J".to_owned()), ..good };
        let error = attempt.accept(&refused, ISSUER, 1000).unwrap_err().to_string();
        assert!(error.contains("access_denied") && !error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn what_a_browser_keeps_can_neither_be_read_nor_changed() {
        let sealer = Sealer::from_text(&Sealer::generate().unwrap()).unwrap();
        let other = Sealer::from_text(&Sealer::generate().unwrap()).unwrap();
        let attempt = Attempt::new("/", 7).unwrap();
        let cookie = sealer.seal(&attempt).unwrap();
        assert_eq!(sealer.open(&cookie).unwrap(), attempt);
        assert_ne!(sealer.seal(&attempt).unwrap(), cookie, "no two seals are the same");
        let bytes = URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        for secret in [&attempt.verifier, &attempt.nonce, &attempt.state] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
        assert!(other.open(&cookie).is_err());
        for index in [0, 5, 20, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(sealer.open(&URL_SAFE_NO_PAD.encode(changed)).is_err(), "byte {index}");
        }
        for none in ["", "x", "AAAA", "%%%", &cookie[..20]] {
            assert!(sealer.open(none).is_err(), "{none}");
        }
        assert!(Sealer::from_text("c2hvcnQ").is_none());
    }

    #[test]
    fn the_address_has_the_challenge_and_never_the_verifier() {
        let attempt = Attempt::new("/", 7).unwrap();
        let endpoint = Url::parse("https://login.test/authorize?tenant=a").unwrap();
        let url = attempt.url(endpoint, "portcullis", "https://store.test/cb", "openid email");
        let has = |key: &str, value: &str| {
            url.query_pairs().any(|(name, text)| name == key && text == value)
        };
        assert!(has("tenant", "a") && has("response_type", "code") && has("scope", "openid email"));
        assert!(has("state", &attempt.state) && has("nonce", &attempt.nonce));
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&attempt.verifier));
        assert!(has("code_challenge", &challenge) && has("code_challenge_method", "S256"));
        assert!(!url.as_str().contains(&attempt.verifier) && !url.as_str().contains("prompt"));
        let again = Attempt { confirms: Some("ada@example.com".to_owned()), ..attempt.clone() };
        let asked = again.url(
            Url::parse("https://login.test/authorize").unwrap(),
            "portcullis",
            "https://store.test/cb",
            "openid",
        );
        assert!(
            asked.as_str().contains("prompt=none&login_hint=ada%40example.com&"),
            "{asked}"
        );
        // RFC 7636, 4.1: 43 to 128 unreserved characters.
        assert_eq!(attempt.verifier.len(), 43);
    }

    #[test]
    fn nobody_is_led_to_another_host() {
        for good in ["/", "/runs/7?step=a&b=%2F", "/policies/a#x"] {
            assert_eq!(local_path(good), good);
        }
        for bad in [
            "",
            "runs",
            "//evil.test",
            "/\\evil.test",
            "\\\\evil.test",
            "https://evil.test",
            "javascript:alert(1)",
            "/\t/evil.test",
            "/a\nSet-Cookie: x",
            &format!("/{}", "a".repeat(2000)),
        ] {
            assert_eq!(local_path(bad), "/", "{bad:?}");
        }
    }
}
