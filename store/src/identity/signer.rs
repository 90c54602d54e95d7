//! Signs answers: a JWS with detached payload (RFC 7515, appendix F), `EdDSA` over Ed25519 (RFC 8037).

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_common::store_api::PublicKey;
use sha2::{Digest as _, Sha256};

/// A key that signs.
#[derive(Debug)]
pub struct Signer {
    key: Ed25519KeyPair,
    public: PublicKey,
    /// The header of every signature, encoded.
    header: String,
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the signing key can't be used; it must be an Ed25519 key as PKCS#8, base64")]
pub struct KeyError;

impl Signer {
    /// Makes a new key, as text that [`Self::from_text`] reads.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<String, KeyError> {
        let key = Ed25519KeyPair::generate().map_err(|_| KeyError)?;
        let document = key.to_pkcs8().map_err(|_| KeyError)?;
        Ok(URL_SAFE_NO_PAD.encode(document.as_ref()))
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| KeyError)?;
        let key = Ed25519KeyPair::from_pkcs8(&bytes).map_err(|_| KeyError)?;
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        // RFC 7638: the required members in alphabetical order, without white space.
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical));
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#));
        let public = PublicKey { kty: "OKP".to_owned(), crv: "Ed25519".to_owned(), kid, x };
        Ok(Self { key, public, header })
    }

    /// The key that verifies.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature over `payload`: `HEADER..SIGNATURE`.
    pub fn sign(&self, payload: &[u8]) -> String {
        // Base64 is a third longer than what it encodes.
        let mut signed = String::with_capacity(self.header.len() + payload.len() * 4 / 3 + 8);
        signed.push_str(&self.header);
        signed.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut signed);
        let signature = self.key.sign(signed.as_bytes());
        format!("{}..{}", self.header, URL_SAFE_NO_PAD.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    use super::Signer;
    use portcullis_store_client::signature::{SignatureError, verify};

    #[test]
    fn what_is_signed_is_verified_and_nothing_else() {
        let signer = Signer::from_text(&Signer::generate().unwrap()).unwrap();
        let other = Signer::from_text(&Signer::generate().unwrap()).unwrap();
        let signature = signer.sign(b"payload");
        let keys = [signer.public().clone()];
        assert_eq!(verify(&signature, b"payload", &keys), Ok(()));
        assert_eq!(verify(&signature, b"payloae", &keys), Err(SignatureError::Wrong));
        assert_eq!(
            verify(&other.sign(b"payload"), b"payload", &keys),
            Err(SignatureError::UnknownKey)
        );
        assert!(Signer::from_text("bm90IGEga2V5").is_err());
    }
}
