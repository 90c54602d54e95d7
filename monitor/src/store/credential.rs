//! This host's credential: where it is kept, and renewing it without a moment in which the host has none.
//!
//! The operator's file (`[store] credential-file`) says which host this is and whom it trusts; it is never written by the
//! monitor, which can't write below `/etc`. A renewed secret lies in the monitor's own directory and counts for the same
//! host only, so that enrolling anew always wins.
//!
//! The order is what makes it safe to be killed at any time: ask, keep, use. The store lets the old secret go on until the
//! new one is used; it is used only after it is on disk.

use crate::config::refuse_what_others_can_change;
use crate::job::last_known_good::write_atomically;
use jiff::Timestamp;
use portcullis_common::hook::with_causes;
use portcullis_common::store_api::Credential;
use portcullis_store_client::{HostClient, StoreError};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest time between two looks at the clock, which may be set.
const LOOK_PAUSE: Duration = Duration::from_hours(1);

/// How soon after a failure it is tried again, and the longest that pause grows to.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const MAX_RETRY_PAUSE: Duration = Duration::from_mins(30);

/// The part of a credential's life after which it is renewed, in thirds.
const RENEW_AFTER_THIRDS: i32 = 2;

/// The credential that counts: a renewed one in `renewed` if it is that of the host in `enrolled`.
///
/// # Errors
/// In words for a person, when the file of the enrolment can't be used.
pub(super) fn load(enrolled: &Path, renewed: &Path) -> Result<Credential, String> {
    let credential = read(enrolled)?;
    if !renewed.exists() {
        return Ok(credential);
    }
    match read(renewed) {
        Ok(newer) if newer.host_id == credential.host_id => {
            // The keys of the enrolment are the ones that the operator vouched for.
            Ok(Credential { signing_keys: credential.signing_keys, ..newer })
        }
        Ok(_) => Ok(credential),
        Err(problem) => {
            tracing::error!(
                problem,
                "the renewed credential can't be used; the one of the enrolment is"
            );
            Ok(credential)
        }
    }
}

/// A credential, from a file that root alone may read.
fn read(path: &Path) -> Result<Credential, String> {
    refuse_what_others_can_change(path).map_err(|error| with_causes(&error))?;
    let mode = fs::metadata(path).map_or(0o777, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        return Err(format!("{} can be read by others than root; chmod 600 it", path.display()));
    }
    serde_json::from_slice(&super::read(path)?).map_err(|error| {
        format!(
            "{} holds no credential ({error}); enrol this host with `portcullis enrol host`",
            path.display()
        )
    })
}

/// When a credential is to be renewed. One that does not say when it ends was given by an older store, and is renewed at
/// once, so that it has an end.
fn due(credential: &Credential) -> Timestamp {
    match (credential.issued_at, credential.expires_at) {
        (Some(issued), Some(expires)) if expires > issued => {
            issued + (expires.duration_since(issued) / 3) * RENEW_AFTER_THIRDS
        }
        _ => Timestamp::MIN,
    }
}

/// Renews the credential for as long as the monitor runs.
pub(super) async fn keep_renewed(
    client: Arc<HostClient>,
    mut credential: Credential,
    renewed: PathBuf,
) {
    let mut pause = RETRY_PAUSE;
    loop {
        let wait = due(&credential).duration_since(Timestamp::now());
        if let Ok(wait) = Duration::try_from(wait)
            && !wait.is_zero()
        {
            tokio::time::sleep(wait.min(LOOK_PAUSE)).await;
            continue;
        }
        match renew(&client, &renewed).await {
            Ok(newer) => {
                tracing::info!(path = %renewed.display(), "this host's credential was renewed");
                credential = newer;
                pause = RETRY_PAUSE;
            }
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "this host's credential could not be renewed; the old one goes on");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY_PAUSE);
            }
        }
    }
}

/// Why a credential was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the new credential can't be kept, so it is not used")]
    Keep(#[from] io::Error),
    #[error("the store does not say when the new credential ends")]
    Endless,
}

async fn renew(client: &HostClient, path: &Path) -> Result<Credential, RenewError> {
    let credential = client.renew().await?;
    if due(&credential) <= Timestamp::now() {
        // Else it would be renewed again and again, without end.
        return Err(RenewError::Endless);
    }
    let bytes = serde_json::to_vec_pretty(&credential).map_err(io::Error::other)?;
    write_atomically(path, &bytes)?;
    // A name is on disk when its directory is: after a loss of power there must be no way back to the old secret.
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    client.use_credential(&credential);
    // The first use ends the old one; when it fails, the next request of any kind is it.
    if let Err(error) = client.confirm().await {
        tracing::info!(error = %with_causes(&error), "the new credential was not used yet");
    }
    Ok(credential)
}

#[cfg(test)]
mod tests {
    use super::{due, load};
    use jiff::Timestamp;
    use portcullis_common::store_api::{Credential, PublicKey};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::Duration;

    fn credential(host: &str, secret: &str) -> Credential {
        let key = PublicKey {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            kid: secret.to_owned(),
            x: String::new(),
        };
        Credential {
            host_id: host.to_owned(),
            credential: secret.to_owned(),
            issued_at: None,
            expires_at: None,
            signing_keys: vec![key],
            audience: "https://store.test".to_owned(),
        }
    }

    fn write(path: &Path, text: &[u8]) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_renewed_secret_counts_for_the_same_host_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (enrolled, renewed) =
            (directory.path().join("enrolled"), directory.path().join("renewed"));
        let secret = || load(&enrolled, &renewed).map(|credential| credential.credential);
        write(&enrolled, &serde_json::to_vec(&credential("h", "one")).unwrap());
        assert_eq!(secret().unwrap(), "one");
        write(&renewed, &serde_json::to_vec(&credential("h", "two")).unwrap());
        assert_eq!(secret().unwrap(), "two");
        // Whom the host trusts was said when it enrolled.
        assert_eq!(load(&enrolled, &renewed).unwrap().signing_keys[0].kid, "one");
        write(&enrolled, &serde_json::to_vec(&credential("other", "three")).unwrap());
        assert_eq!(secret().unwrap(), "three", "enrolling anew wins");
        write(&enrolled, &serde_json::to_vec(&credential("h", "one")).unwrap());
        for broken in [&b""[..], b"{}", b"{\"host_id\":\"h\""] {
            write(&renewed, broken);
            assert_eq!(secret().unwrap(), "one", "what can't be read does not stop the host");
        }
        write(&renewed, &serde_json::to_vec(&credential("h", "two")).unwrap());
        fs::set_permissions(&renewed, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(secret().unwrap(), "one", "what others could read is no secret");
        fs::set_permissions(&enrolled, Permissions::from_mode(0o644)).unwrap();
        assert!(secret().unwrap_err().contains("chmod 600"));
    }

    #[test]
    fn it_is_renewed_when_a_third_is_left() {
        let now = Timestamp::now();
        let day = Duration::from_hours(24);
        let with = |issued, expires| Credential {
            issued_at: issued,
            expires_at: expires,
            ..credential("h", "s")
        };
        assert_eq!(due(&with(Some(now), Some(now + 90 * day))), now + 60 * day);
        for at_once in [
            with(None, None),
            with(None, Some(now)),
            with(Some(now), None),
            with(Some(now), Some(now)),
        ] {
            assert!(due(&at_once) < now - 365 * day);
        }
    }
}
