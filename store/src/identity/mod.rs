//! Who somebody is: secrets, signatures, GitHub's tokens of jobs, and people whom a provider vouches for.

pub mod issuer;
pub mod oidc;
pub mod secret;
pub mod sign_in;
pub mod signer;
