//! The keys that the server knows: `API_KEY`, and the named ones of the keys file.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use super::audit::Audit;
use super::key::{Digest, Shown};
use super::keys_file::{KeyRecord, KeysFile, KeysFileError};
use super::principal::{Caller, Grant, Holder, MISSING, Principal};
use super::tokens::Tokens;
use crate::config::Config;
use crate::event::Timestamp;
use crate::watch::Watch;
use crate::wire::Refusal;

/// A shorter `API_KEY` is warned about: it can be found by trying, even a random one, and people choose words.
pub const API_KEY_BYTES_MIN: usize = 16;

const MISTYPED: &str = "The API key is mistyped or not complete: its checksum does not fit";
const EXPIRED: &str = "The API key has expired";
const NO_TOKEN: &str = "Only what was opened with a token can go on with another";

/// Decides who a client is.
#[derive(Debug)]
pub struct Keys {
    is_required: bool,
    /// Of `API_KEY`, if it is set.
    api_key: Option<Digest>,
    path: PathBuf,
    /// A request only loads a pointer: the table of all keys is replaced as a whole.
    named: ArcSwap<Named>,
    tokens: Tokens,
    watch: Watch,
    audit: Audit,
}

/// The token that a connection has shown last, so that each is verified once a connection.
#[derive(Debug, Default)]
pub struct Verified(Option<(Digest, Arc<Grant>)>);

/// The named keys, by their ids.
type Named = HashMap<Box<str>, Arc<Known>>;

#[derive(Debug)]
struct Known {
    digest: Digest,
    grant: Arc<Grant>,
    /// As the file has it, to find out whether it has changed.
    record: String,
}

impl Known {
    fn of(key: &KeyRecord) -> Self {
        let holder = Holder::Key { id: key.id.as_str().into(), name: key.name.as_str().into() };
        let grant = Grant::new(holder, key.scopes.clone(), key.pins(), key.space(), key.expires);
        Self {
            digest: key.sha256,
            grant: Arc::new(grant),
            record: toml::to_string(key).expect("a key has a TOML form"),
        }
    }
}

impl Keys {
    /// # Errors
    /// The keys file is named or there, and cannot be used.
    pub(super) fn new(config: &Config, tokens: Tokens, audit: Audit) -> Result<Self, KeysFileError> {
        let (path, is_named) = (config.keys_path(), config.keys_file.is_some());
        let watch = Watch::new([path.clone()]);
        let file = match KeysFile::read(&path) {
            Ok(file) => Some(file),
            Err(KeysFileError::Unreadable(_, error)) if !is_named && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_required = config.require_auth.unwrap_or(file.is_some() || tokens.are_accepted());
        let keys = file.unwrap_or_default().keys;
        if is_required && !config.api_key.is_empty() && config.api_key.len() < API_KEY_BYTES_MIN {
            let bytes = config.api_key.len();
            tracing::warn!(bytes, "API_KEY is short, so it can be guessed: take 32 random characters, or a named key");
        }
        audit.started(is_required, keys.iter().map(|key| &*key.id));
        let named = keys.iter().map(|key| (key.id.as_str().into(), Arc::new(Known::of(key)))).collect();
        Ok(Self {
            is_required,
            api_key: (!config.api_key.is_empty()).then(|| Digest::of(config.api_key.as_bytes())),
            path,
            tokens,
            named: ArcSwap::from_pointee(named),
            watch,
            audit,
        })
    }

    /// Whether clients have to show a key.
    pub fn are_required(&self) -> bool {
        self.is_required
    }

    /// How many named keys there are, and whether there is an `API_KEY`.
    pub fn counts(&self) -> (usize, bool) {
        (self.named.load().len(), self.api_key.is_some())
    }

    /// Decides what the client of a request may do. It shows its key or token in `X-API-Key`, in `Authorization: Bearer`, as the
    /// subprotocol `key.<key>` of a WebSocket, or, where a client cannot do any of that, in its URL. `verified` is for the requests of one
    /// connection.
    ///
    /// # Errors
    /// `Unauthorized`.
    pub fn authorize(
        &self,
        headers: &HeaderMap,
        in_url: Option<&str>,
        verified: &mut Verified,
    ) -> Result<Principal, Refusal> {
        if !self.is_required {
            return Ok(Principal::Everything);
        }
        let shown = [
            headers.get("x-api-key").map(HeaderValue::as_bytes),
            headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())),
            in_url.map(str::as_bytes),
        ];
        let protocols =
            headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().flat_map(|list| list.as_bytes().split(|b| *b == b','));
        let mut in_protocols = protocols.filter_map(|protocol| protocol.trim_ascii().strip_prefix(b"key."));
        let mut why = MISSING;
        for text in shown.into_iter().flatten().chain(in_protocols.next()) {
            match self.principal_of(text, verified) {
                Ok(principal) => return Ok(principal),
                // A sentence that says more stays.
                Err(of_this) if of_this != MISSING => why = of_this,
                Err(_) => {}
            }
        }
        Err(Refusal::Unauthorized(why))
    }

    /// Whom a key or a token stands for, or why for nobody. A key takes two hashes at most.
    fn principal_of(&self, text: &[u8], verified: &mut Verified) -> Result<Principal, &'static str> {
        let digest = Digest::of(text);
        if self.api_key.is_some_and(|api_key| api_key.is(&digest)) {
            return Ok(Principal::Everything);
        }
        let shown = match Shown::read(text) {
            Shown::Named(shown) => shown,
            Shown::Mistyped => return Err(MISTYPED),
            Shown::Other if self.tokens.are_accepted() && text.iter().filter(|byte| **byte == b'.').count() == 2 => {
                if let Verified(Some((of, grant))) = verified
                    && of.is(&digest)
                    && !grant.has_expired()
                {
                    return Ok(Principal::Granted(grant.clone()));
                }
                let grant = Arc::new(self.tokens.verify(text)?);
                *verified = Verified(Some((digest, grant.clone())));
                return Ok(Principal::Granted(grant));
            }
            Shown::Other => return Err(MISSING),
        };
        let named = self.named.load();
        let known = named.get(shown.id).filter(|known| known.digest.is(&shown.digest())).ok_or(MISSING)?;
        match known.grant.has_expired() {
            true => Err(EXPIRED),
            false => Ok(Principal::Granted(known.grant.clone())),
        }
    }

    /// Lets the client of an open socket go on with another token, which says the same as the first but for its end.
    /// Returns when it ends now.
    ///
    /// # Errors
    /// A sentence for the client. Then the former end stands.
    pub fn renew(&self, caller: &Caller, token: &str) -> Result<Timestamp, &'static str> {
        self.renew_principal(&caller.principal, token).inspect_err(|why| self.audit.renewal_refused(caller, why))
    }

    fn renew_principal(&self, principal: &Principal, token: &str) -> Result<Timestamp, &'static str> {
        let Principal::Granted(grant) = principal else { return Err(NO_TOKEN) };
        if matches!(grant.holder, Holder::Key { .. }) {
            return Err(NO_TOKEN);
        }
        grant.renew(&self.tokens.verify(token.as_bytes())?)?;
        Ok(grant.expires().expect("a token ends"))
    }

    /// Reads the files of keys and of the keys of tokens again, if they have changed.
    pub fn look(&self) {
        if self.watch.has_changed() {
            self.read_keys();
        }
        self.tokens.look();
    }

    /// Reads both files again. A bad file changes nothing.
    pub fn read_again(&self) {
        self.read_keys();
        self.tokens.read_again();
    }

    /// A key that is no longer there, or whose block has changed, is revoked: the connections
    /// that showed it end.
    fn read_keys(&self) {
        match KeysFile::read(&self.path) {
            Ok(_) if !self.is_required => {
                tracing::warn!("there is a keys file, and the server asks for no key until it is started again");
            }
            Ok(file) => self.replace(&file),
            // A SIGHUP may be for something else.
            Err(KeysFileError::Unreadable(_, error))
                if error.kind() == io::ErrorKind::NotFound && self.named.load().is_empty() => {}
            Err(error) => {
                tracing::error!(%error, "the keys are as before");
                self.audit.keys_failed(&error.to_string());
            }
        }
    }

    fn replace(&self, file: &KeysFile) {
        let former = self.named.load_full();
        let named = file.keys.iter().map(|key| {
            let new = Arc::new(Known::of(key));
            let same = former.get(&*key.id).filter(|former| former.record == new.record);
            (key.id.as_str().into(), same.cloned().unwrap_or(new))
        });
        let named = named.collect();
        self.named.store(Arc::new(named));
        let named = self.named.load();
        let (mut changed, mut revoked) = (Vec::new(), Vec::new());
        for (id, key) in former.iter() {
            match named.get(id) {
                Some(now) if Arc::ptr_eq(now, key) => continue,
                Some(_) => changed.push(&**id),
                None => revoked.push(&**id),
            }
            key.grant.revoke();
        }
        let added: Vec<_> = named.keys().filter(|id| !former.contains_key(*id)).map(|id| &**id).collect();
        let changed_or_revoked = [&*changed, &*revoked].concat().join(" ");
        tracing::info!(keys = named.len(), changed_or_revoked, "read the keys file again");
        if !(added.is_empty() && changed.is_empty() && revoked.is_empty()) {
            self.audit.keys_changed(&added, &changed, &revoked);
        }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
