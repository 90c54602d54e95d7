//! The world's own certificate authority, and a certificate for every name that a client asks for.

use crate::sync::lock;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// A certificate authority that lives in memory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// One key for all server certificates: making a key is the slow part.
    key: KeyPair,
    issued: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a key of its own.
    pub(crate) fn new() -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "Portcullis test world");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)
            .context("can't make the world's certificate authority")?;
        Ok(Self { issuer, key: KeyPair::generate()?, issued: Mutex::default() })
    }

    /// The authority's certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A TLS server that has a certificate for whatever name it is asked for; without a name, for `fallback`.
    pub(crate) fn server_config(self: &Arc<Self>, fallback: IpAddr) -> Result<Arc<ServerConfig>> {
        let resolver = Resolver { authority: Arc::clone(self), fallback };
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn certificate(&self, name: &str) -> Result<Arc<CertifiedKey>> {
        let mut issued = lock(&self.issued);
        if let Some(found) = issued.get(name) {
            return Ok(Arc::clone(found));
        }
        let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.use_authority_key_identifier_extension = true;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.signed_by(&self.key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let certified = Arc::new(CertifiedKey::new(
            vec![certificate.der().clone()],
            aws_lc_rs::sign::any_supported_type(&key)?,
        ));
        issued.insert(name.to_owned(), Arc::clone(&certified));
        Ok(certified)
    }
}

#[derive(Debug)]
struct Resolver {
    authority: Arc<Authority>,
    fallback: IpAddr,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map_or_else(|| self.fallback.to_string(), str::to_owned);
        self.authority.certificate(&name).ok()
    }
}
