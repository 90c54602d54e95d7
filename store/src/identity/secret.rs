//! Secrets of callers: 256 random bits with a prefix that tells what it is, so that scanners of leaked secrets find it.

use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// What a secret is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretKind {
    /// A token of the API.
    Token,
    /// An enrolment of runner hosts.
    Enrolment,
    /// A runner host's credential.
    Host,
    /// The cookie of somebody who is signed in.
    Session,
}

impl SecretKind {
    /// What secrets of this kind begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Token => "pct_",
            Self::Enrolment => "pce_",
            Self::Host => "pch_",
            Self::Session => "pcs_",
        }
    }
}

/// The longest secret that is looked at.
pub const MAX_SECRET_BYTES: usize = 256;

/// Bytes of randomness.
const RANDOM_BYTES: usize = 32;

/// The system gave no random numbers.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gave no random numbers")]
pub struct NoRandomness;

/// A new secret.
///
/// # Errors
/// When the system gives no random numbers.
pub fn generate(kind: SecretKind) -> Result<String, NoRandomness> {
    let mut bytes = [0; RANDOM_BYTES];
    fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes)))
}

/// What is stored of a secret: its SHA-256 in hexadecimal. Looking a hash up tells nothing about the secret by its timing.
pub fn hash(secret: &str) -> String {
    // Each request is looked up by it: formatting byte by byte would take longer than the digest.
    let digits = Sha256::digest(secret).into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::{SecretKind, generate, hash};

    #[test]
    fn secrets_are_long_and_differ() {
        let (one, two) =
            (generate(SecretKind::Token).unwrap(), generate(SecretKind::Token).unwrap());
        assert_ne!(one, two);
        assert!(one.starts_with("pct_") && one.len() == 4 + 43, "{one}");
        assert_ne!(hash(&one), hash(&two));
        assert_eq!(hash("").get(..8), Some("e3b0c442"), "the well-known hash of nothing");
    }
}
