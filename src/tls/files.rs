//! A certificate and its key, as files in PEM, and what is agreed on with them.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::event::Timestamp;

/// What clients and the server can agree on (ALPN), the better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why certificate and key cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0} is set and {1} is not: TLS needs both")]
    Half(&'static str, &'static str),
    #[error("TLS_SELF_SIGNED is set beside TLS_CERT or TLS_KEY: it makes a certificate of its own")]
    Twice,
    #[error("{setting} {file} cannot be read: {error}")]
    Unreadable { setting: &'static str, file: String, error: io::Error },
    #[error("{setting} {file}, line {line}: {what}")]
    Syntax { setting: &'static str, file: String, line: usize, what: String },
    #[error("{setting} {file}: {what}")]
    Unusable { setting: &'static str, file: String, what: String },
    #[error("the key TLS_KEY {key} does not belong to the certificate TLS_CERT {certificate}")]
    Mismatch { certificate: String, key: String },
    #[error("make a certificate: {0}")]
    SelfSigned(String),
}

/// One of the two files, as far as errors name it.
struct File<'p> {
    setting: &'static str,
    path: &'p Path,
}

impl File<'_> {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What is in the file. Of anything but a regular file, such as a pipe, reading could wait for ever.
    fn read(&self) -> Result<Vec<u8>, TlsError> {
        let read = || {
            let no_wait = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            let mut file = OpenOptions::new().read(true).custom_flags(no_wait).open(self.path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text).map(|_| text)
        };
        read().map_err(|error| TlsError::Unreadable { setting: self.setting, file: self.name(), error })
    }

    fn unusable(&self, what: impl Into<String>) -> TlsError {
        TlsError::Unusable { setting: self.setting, file: self.name(), what: what.into() }
    }

    fn syntax(&self, line: usize, what: impl Into<String>) -> TlsError {
        TlsError::Syntax { setting: self.setting, file: self.name(), line, what: what.into() }
    }

    /// `index` is that of the section in the file at which the fault was found.
    fn fault(&self, text: &[u8], index: usize, error: &pem::Error) -> TlsError {
        self.syntax(line_of_section(text, index), format!("this is no PEM: {error}"))
    }
}

/// Reads a chain of certificates and the key of the first, and returns when that certificate ends.
///
/// # Errors
/// Also if it has ended, or if the key does not belong to it.
pub fn load(certificate: &Path, key: &Path) -> Result<(ServerConfig, Timestamp), TlsError> {
    let certificate = File { setting: "TLS_CERT", path: certificate };
    let key = File { setting: "TLS_KEY", path: key };
    let (chain_text, key_text) = (certificate.read()?, key.read()?);
    let mut chain = Vec::new();
    for read in CertificateDer::pem_slice_iter(&chain_text) {
        chain.push(read.map_err(|error| certificate.fault(&chain_text, chain.len(), &error))?);
    }
    let own = chain.first().ok_or_else(|| certificate.unusable("there is no certificate in it, in PEM"))?;
    let line = line_of_section(&chain_text, 0);
    let read = Certificate::from_der(own)
        .map_err(|error| certificate.syntax(line, format!("this is no certificate: {error}")))?;
    let ends = read.tbs_certificate.validity.not_after.to_unix_duration();
    let ends = Timestamp(i64::try_from(ends.as_micros()).unwrap_or(i64::MAX));
    // The others are not looked at: a client may know newer ones in their place.
    if ends < Timestamp::now() {
        return Err(certificate.syntax(line, format!("the certificate has ended at {ends}")));
    }
    let key_der = PrivateKeyDer::from_pem_slice(&key_text).map_err(|error| match error {
        pem::Error::NoItemsFound => key.unusable("there is no private key in it, in PEM and without a password"),
        error => key.fault(&key_text, 0, &error),
    })?;
    let config = server_config(chain, key_der).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { certificate: certificate.name(), key: key.name() }
        }
        rustls::Error::InvalidCertificate(_) => certificate.unusable(error.to_string()),
        _ => key.unusable(error.to_string()),
    })?;
    Ok((config, ends))
}

/// # Errors
/// The key is of no known kind, or does not belong to the certificate.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// The line at which a section of a PEM text begins, from 1.
fn line_of_section(text: &[u8], index: usize) -> usize {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let mut begins = lines.filter(|(_, line)| line.trim_ascii_start().starts_with(b"-----BEGIN"));
    begins.nth(index).map_or(1, |(line, _)| line + 1)
}
