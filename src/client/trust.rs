//! Which servers a client believes to be the right one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Which certificates are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that this machine trusts: a school may have added its own authority there.
    #[default]
    System,
    /// Those that one of the certificates in this file vouches for, and these themselves.
    File(PathBuf),
    /// All of them: whoever is in between can read and change everything.
    Anything,
}

impl Trust {
    /// # Errors
    /// The file cannot be used, or this machine trusts nothing.
    pub(super) fn config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let verifier = match self {
            Self::Anything => Verifier { provider: provider.clone(), pinned: Vec::new(), by_authority: None },
            known => {
                let pinned = known.certificates()?;
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(pinned.iter().cloned());
                let by_authority =
                    WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
                Verifier { provider: provider.clone(), pinned, by_authority: Some(by_authority) }
            }
        };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let verified = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = verified.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let Self::File(path) = self else {
            let found = rustls_native_certs::load_native_certs();
            ensure!(!found.certs.is_empty(), "this machine has no certificates of authorities: name some with --ca");
            return Ok(found.certs);
        };
        let file = path.display();
        let text = std::fs::read(path).with_context(|| format!("read the certificates {file}"))?;
        let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let read = read.with_context(|| format!("{file} is not PEM"))?;
        ensure!(!read.is_empty(), "{file} has no certificate in PEM");
        Ok(read)
    }
}

/// Verifies a server by the authorities that vouch for it. A certificate that stands in the file itself needs nobody: one that
/// `openssl req -x509` makes says that it is an authority, and as such would be refused.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    pinned: Vec<CertificateDer<'static>>,
    /// `None`: every certificate is accepted.
    by_authority: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(by_authority) = &self.by_authority else { return Ok(ServerCertVerified::assertion()) };
        if self.pinned.contains(certificate) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        by_authority.verify_server_cert(certificate, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
