//! TLS: the certificate that the server shows, and its key. Both are read again together. A new pair is for the
//! connections to come; those that are open keep what they have agreed on.

mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::config::Config;
use crate::event::Timestamp;
use crate::watch::Watch;
use files::server_config;

pub use files::TlsError;

/// The names that the certificate of `TLS_SELF_SIGNED` is for.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

const DAY_MICROS: i64 = 86_400_000_000;

/// How long before its end a certificate is warned about: at the start, and each day from then on.
const WARNING_MICROS: i64 = 14 * DAY_MICROS;

/// How the server agrees on TLS with its clients.
#[derive(Debug)]
pub struct Tls {
    /// Replaced as a whole.
    config: ArcSwap<ServerConfig>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Files {
        certificate: PathBuf,
        key: PathBuf,
        watch: Watch,
        /// When the certificate ends, in microseconds, and when that was last warned about.
        ends: AtomicI64,
        warned: AtomicI64,
    },
    /// Made at the start, and kept nowhere.
    SelfSigned { fingerprint: String },
}

impl Tls {
    /// `None`: the server speaks plain HTTP.
    ///
    /// # Errors
    /// The certificate or its key cannot be used, or only one of the two is named.
    pub fn new(config: &Config) -> Result<Option<Self>, TlsError> {
        match (&config.tls_cert, &config.tls_key, config.tls_self_signed) {
            (None, None, false) => Ok(None),
            (None, None, true) => Self::self_signed().map(Some),
            (Some(certificate), Some(key), false) => Self::of_files(certificate.clone(), key.clone()).map(Some),
            (Some(_), None, false) => Err(TlsError::Half("TLS_CERT", "TLS_KEY")),
            (None, Some(_), false) => Err(TlsError::Half("TLS_KEY", "TLS_CERT")),
            (_, _, true) => Err(TlsError::Twice),
        }
    }

    fn of_files(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let watch = Watch::new([certificate.clone(), key.clone()]);
        let (config, ends) = files::load(&certificate, &key)?;
        let (ends, warned) = (AtomicI64::new(ends.0), AtomicI64::new(0));
        let source = Source::Files { certificate, key, watch, ends, warned };
        let tls = Self { config: ArcSwap::from_pointee(config), source };
        tls.warn_of_end();
        Ok(tls)
    }

    fn self_signed() -> Result<Self, TlsError> {
        let made = rcgen::generate_simple_self_signed(LOCAL_NAMES.map(str::to_owned));
        let made = made.map_err(|error| TlsError::SelfSigned(error.to_string()))?;
        let certificate = made.cert.der().clone();
        let fingerprint = fingerprint(&certificate);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = server_config(vec![certificate], key).map_err(|error| TlsError::SelfSigned(error.to_string()))?;
        Ok(Self { config: ArcSwap::from_pointee(config), source: Source::SelfSigned { fingerprint } })
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// The SHA-256 of a certificate that nobody but the server itself vouches for.
    pub fn fingerprint(&self) -> Option<&str> {
        match &self.source {
            Source::SelfSigned { fingerprint } => Some(fingerprint),
            Source::Files { .. } => None,
        }
    }

    /// Reads certificate and key again if one of them has changed, and warns of a certificate that ends soon.
    pub fn look(&self) {
        if let Source::Files { watch, .. } = &self.source
            && watch.has_changed()
        {
            self.read_again();
        }
        self.warn_of_end();
    }

    /// Reads certificate and key again. Those that cannot be used change nothing.
    pub fn read_again(&self) {
        let Source::Files { certificate, key, ends, warned, .. } = &self.source else { return };
        match files::load(certificate, key) {
            Ok((config, new_end)) => {
                self.config.store(Arc::new(config));
                ends.store(new_end.0, Relaxed);
                warned.store(0, Relaxed);
                tracing::info!(ends = %new_end, "read the certificate again");
            }
            Err(error) => tracing::error!(%error, "the certificate is as before"),
        }
    }

    fn warn_of_end(&self) {
        let Source::Files { ends, warned, .. } = &self.source else { return };
        let (now, ends) = (Timestamp::now().0, ends.load(Relaxed));
        if ends - now < WARNING_MICROS && now - warned.load(Relaxed) >= DAY_MICROS {
            warned.store(now, Relaxed);
            tracing::warn!(ends = %Timestamp(ends), "the certificate ends soon: renew TLS_CERT");
        }
    }
}

/// As `openssl x509 -fingerprint` writes it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
