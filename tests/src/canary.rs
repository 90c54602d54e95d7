//! Secrets that a hostile step tries to send away, and how they are recognised in transit.

use std::fmt::{self, Write as _};
use std::io::Read as _;

/// A secret of one test, found again in traffic however it is written: plain, in capitals, hexadecimal, Base32, Base64.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Canary(String);

impl Canary {
    /// A new secret: `canary` and 24 random hexadecimal digits, a valid DNS label.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> std::io::Result<Self> {
        let mut random = [0_u8; 12];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self(format!("canary{}", hexadecimal(&random))))
    }

    /// The secret itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `haystack` holds the secret in one of the encodings.
    pub fn is_in(&self, haystack: &[u8]) -> bool {
        let folded = haystack.to_ascii_lowercase();
        let text = self.0.as_bytes();
        let insensitive = [text.to_vec(), hexadecimal(text).into_bytes(), base32_core(text)];
        insensitive.iter().any(|needle| contains(&folded, needle))
            || (0..3).any(|offset| contains(haystack, &base64_core(text, offset)))
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The characters of the Base64 text that depend on `bytes` alone when `offset` (0-2) other bytes stand before them.
fn base64_core(bytes: &[u8], offset: usize) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let shifted: Vec<u8> = std::iter::repeat_n(0, offset).chain(bytes.iter().copied()).collect();
    let first = (offset * 8).div_ceil(6);
    let last = shifted.len() * 8 / 6;
    digits(&shifted, 6, ALPHABET)[first..last].to_vec()
}

/// The Base32 text, in small letters, less the last characters that depend on what follows.
fn base32_core(bytes: &[u8]) -> Vec<u8> {
    digits(bytes, 5, b"abcdefghijklmnopqrstuvwxyz234567")
}

/// The whole digits of `width` bits.
fn digits(bytes: &[u8], width: usize, alphabet: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| (byte >> bit) & 1)).collect();
    bits.chunks_exact(width)
        .map(|chunk| alphabet[chunk.iter().fold(0, |value, bit| value * 2 + usize::from(*bit))])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: bool) {
        let canary = Canary("canary0123456789abcdef012345".to_owned());
        assert_eq!(canary.is_in(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn is_found_in_every_encoding_and_nowhere_else() {
        check("GET /canary0123456789abcdef012345 HTTP/1.1", true);
        check("CANARY0123456789ABCDEF012345", true);
        check("63616e6172793031323334353637383961626364656630313233343522", true);
        // printf 'TOKEN=canary0123456789abcdef012345;' | base64, with 0, 1 and 2 bytes before
        check("VE9LRU49Y2FuYXJ5MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTs=", true);
        check("eFRPS0VOPWNhbmFyeTAxMjM0NTY3ODlhYmNkZWYwMTIzNDU7", true);
        check("eHhUT0tFTj1jYW5hcnkwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Ow==", true);
        // printf canary0123456789abcdef012345 | base32
        check("MNQW4YLSPEYDCMRTGQ2TMNZYHFQWEY3EMVTDAMJSGM2DK===", true);
        check("canary0123456789abcdef012344", false);
        check("", false);
    }

    #[test]
    fn two_are_never_the_same() {
        assert_ne!(Canary::generate().unwrap(), Canary::generate().unwrap());
    }
}
