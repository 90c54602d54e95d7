//! HTTPS by files: read when the server starts, and again when they have changed, so that a renewed certificate needs no
//! restart.

use crate::configuration::TlsConfiguration;
use anyhow::Context as _;
use axum_server::tls_rustls::RustlsConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// A certificate with its key, and when their files were last written.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsConfiguration,
    config: RustlsConfig,
    written: Option<[SystemTime; 2]>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they can't be read, or don't belong together.
    pub(crate) fn open(files: &TlsConfiguration) -> anyhow::Result<Self> {
        let written = written(files);
        let config = RustlsConfig::from_config(Arc::new(read(files)?));
        Ok(Self { files: files.clone(), config, written })
    }

    /// What serves by it; follows [`Self::look`].
    pub(crate) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Looks whether the files have changed, and serves new connections by what they say then. What can't be used is told, and
    /// the old one goes on: the two files are not written at the same moment.
    pub(crate) fn look(&mut self) {
        let written = written(&self.files);
        if written.is_none() || written == self.written {
            return;
        }
        match read(&self.files) {
            Ok(config) => {
                self.config.reload_from_config(Arc::new(config));
                self.written = written;
                let path = self.files.certificate_file.display();
                tracing::info!(path = %path, "the certificate was read again");
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the new certificate or its key can't be used; the old one goes on");
            }
        }
    }
}

fn written(files: &TlsConfiguration) -> Option<[SystemTime; 2]> {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    Some([time(&files.certificate_file)?, time(&files.key_file)?])
}

/// TLS 1.2 and 1.3 with the one provider of this program.
fn read(files: &TlsConfiguration) -> anyhow::Result<rustls::ServerConfig> {
    let (certificate, key) = (&files.certificate_file, &files.key_file);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .with_context(|| format!("{} can't be read", certificate.display()))?
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is no PEM", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("{} can't be read", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::Tls;
    use crate::configuration::TlsConfiguration;
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    /// Writes a new certificate and its key, each if asked for, at a time of its own.
    fn write(files: &TlsConfiguration, certificate: bool, key: bool, age: u64) {
        let made = rcgen::generate_simple_self_signed(vec!["store.test".to_owned()]).unwrap();
        let put = |path: &Path, text: String| {
            fs::write(path, text).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        if certificate {
            put(&files.certificate_file, made.cert.pem());
        }
        if key {
            put(&files.key_file, made.signing_key.serialize_pem());
        }
    }

    #[test]
    fn a_renewed_certificate_is_served_and_half_of_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = TlsConfiguration {
            certificate_file: directory.path().join("certificate.pem"),
            key_file: directory.path().join("key.pem"),
        };
        assert!(Tls::open(&files).is_err());
        write(&files, true, true, 300);
        let mut tls = Tls::open(&files).unwrap();
        let (serving, first) = (tls.config(), tls.config().get_inner());
        tls.look();
        assert!(Arc::ptr_eq(&serving.get_inner(), &first), "nothing has changed");
        // The certificate is there before its key: what serves stays.
        write(&files, true, false, 200);
        tls.look();
        assert!(Arc::ptr_eq(&serving.get_inner(), &first));
        write(&files, true, true, 100);
        tls.look();
        let second = serving.get_inner();
        assert!(!Arc::ptr_eq(&second, &first), "new connections get the new one");
        for broken in ["", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"] {
            fs::write(&files.certificate_file, broken).unwrap();
            tls.look();
            assert!(Arc::ptr_eq(&serving.get_inner(), &second));
        }
        fs::remove_file(&files.key_file).unwrap();
        tls.look();
        assert!(Arc::ptr_eq(&serving.get_inner(), &second));
    }
}
