//! Secrets, signatures and GitHub's tokens.

pub mod oidc;
pub mod secret;
pub mod signer;
