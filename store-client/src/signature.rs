//! Verifies signed answers: JWS with detached payload (RFC 7515, appendix F), `EdDSA` over Ed25519 and nothing else.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_common::store_api::PublicKey;
use serde::Deserialize;

/// Why a signature is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// It has not the form of one.
    #[error("it is no signature of the kind that the store makes")]
    Malformed,
    /// The key is not one that this host trusts.
    #[error(
        "it was made with a key that this host does not trust; was the store set up anew? Then enrol again"
    )]
    UnknownKey,
    /// It does not fit what it is said to sign.
    #[error("it does not fit the answer")]
    Wrong,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
}

/// Verifies that one of `keys` made `signature` (`HEADER..SIGNATURE`) over `payload`.
///
/// # Errors
/// When it did not.
pub fn verify(signature: &str, payload: &[u8], keys: &[PublicKey]) -> Result<(), SignatureError> {
    let (header_text, signature) = signature.split_once("..").ok_or(SignatureError::Malformed)?;
    let header = URL_SAFE_NO_PAD.decode(header_text).map_err(|_| SignatureError::Malformed)?;
    // Unknown members are refused: `crit` and `b64` would change what is signed.
    let header: Header = serde_json::from_slice(&header).map_err(|_| SignatureError::Malformed)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| SignatureError::Malformed)?;
    if header.alg != "EdDSA" {
        return Err(SignatureError::Malformed);
    }
    let key = keys
        .iter()
        .find(|key| key.kid == header.kid && key.kty == "OKP" && key.crv == "Ed25519")
        .ok_or(SignatureError::UnknownKey)?;
    let key = URL_SAFE_NO_PAD.decode(&key.x).map_err(|_| SignatureError::UnknownKey)?;
    let signed = format!("{header_text}.{}", URL_SAFE_NO_PAD.encode(payload));
    UnparsedPublicKey::new(&ED25519, key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| SignatureError::Wrong)
}
