//! The audit (`AUDIT_FILE`): who has deleted what, who was refused, and how the keys have changed, a JSON object a line.
//!
//! It holds no payload and no secret. The values of a filter are names of people and classes, so it holds keyed hashes of
//! them. A request never waits for the file: lines go through a bounded channel to a thread of their own.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ring::hmac;
use serde_json::{Map, Value, json};

use super::audit_file::{AuditError, AuditFile, Lines};
use super::counted::Counted;
use super::principal::{Caller, Holder, Principal};
use super::repeats::Repeats;
use crate::config::Config;
use crate::event::{Field, Filter, Timestamp};

/// Writes down what happens, or nothing where no file is configured.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Writing>>);

struct Writing {
    lines: Lines,
    repeats: Arc<Repeats>,
    hashes: hmac::Key,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&self.is_on()).finish()
    }
}

/// An audited action that has not ended yet. Its line is written when its outcome is known; dropped before that, it says
/// that the outcome is not known.
pub struct Action {
    audit: Audit,
    line: Map<String, Value>,
}

impl Audit {
    pub(super) fn new(config: &Config) -> Result<Self, AuditError> {
        let Some((path, key_path)) = config.audit_file.as_ref().zip(config.audit_key_path()) else {
            return Ok(Self::default());
        };
        let repeats = Arc::new(Repeats::default());
        let (file, hashes) = AuditFile::open(path, &key_path, repeats.clone())?;
        Ok(Self(Some(Arc::new(Writing { lines: file.start()?, repeats, hashes }))))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Opens the file again under its name, after something has moved it away.
    pub fn reopen(&self) {
        if let Some(writing) = &self.0 {
            writing.lines.reopen();
        }
    }

    /// Writes what is left, in a limited time.
    pub fn close(&self) {
        if let Some(writing) = &self.0 {
            writing.lines.close();
        }
    }

    /// A deletion of events begins: `asked` is the filter as the client has written it.
    pub fn deletion(&self, caller: &Caller, asked: &Map<String, Value>, before: Option<Timestamp>) -> Action {
        let Some(writing) = &self.0 else { return Action::none() };
        let mut line = of_caller("delete_events", caller);
        line.insert("filter".into(), writing.hashed(asked.clone().into()));
        if let Some(pins) = caller.principal.pins() {
            line.insert("only_for".into(), writing.hashed(shown(pins)));
        }
        if let Some(before) = before {
            line.insert("before".into(), before.to_string().into());
        }
        Action { audit: self.clone(), line }
    }

    /// A deletion of a durable subscription begins. Its name is what a person called it, so it is not hashed.
    pub fn subscription_deletion(&self, caller: &Caller, space: &str, name: &str) -> Action {
        if self.0.is_none() {
            return Action::none();
        }
        let mut line = of_caller("delete_subscription", caller);
        line.extend([("name".into(), name.into()), ("space".into(), space.into())]);
        Action { audit: self.clone(), line }
    }

    /// A request that showed no key, or a wrong one. One line a minute for each address.
    pub(super) fn login_refused(&self, from: IpAddr, why: &str) {
        self.repeated("login", &Counted::address(from), || {
            let mut line = line("login");
            line.extend([("who".into(), "nobody".into()), ("from".into(), from.to_string().into())]);
            line.extend(refused(why));
            line
        });
    }

    /// A request whose key lacks a scope. One line a minute for each client.
    pub(super) fn scope_refused(&self, caller: &Caller, scope: &str, route: &str) {
        self.repeated("request", &caller.counted, || {
            let mut line = of_caller("request", caller);
            line.extend([("route".into(), route.into()), ("scope".into(), scope.into())]);
            line.extend(refused("the scope is missing"));
            line
        });
    }

    /// A token that an open WebSocket was not to go on with. One line a minute for each client.
    pub(super) fn renewal_refused(&self, caller: &Caller, why: &str) {
        self.repeated("renewal", &caller.counted, || {
            let mut line = of_caller("renewal", caller);
            line.extend(refused(why));
            line
        });
    }

    /// The keys as the server begins with them.
    pub(super) fn started<'k>(&self, is_authenticated: bool, keys: impl Iterator<Item = &'k str>) {
        if self.is_on() {
            let mut line = line("start");
            line.insert("authentication".into(), is_authenticated.into());
            line.insert("keys".into(), sorted(keys));
            self.write(line);
        }
    }

    /// The keys file was read again, and differs.
    pub(super) fn keys_changed(&self, added: &[&str], changed: &[&str], revoked: &[&str]) {
        if self.is_on() {
            let mut line = line("keys");
            line.insert("result".into(), "changed".into());
            for (name, ids) in [("added", added), ("changed", changed), ("revoked", revoked)] {
                line.insert(name.into(), sorted(ids.iter().copied()));
            }
            self.write(line);
        }
    }

    /// The keys file could not be used, and changes nothing.
    pub(super) fn keys_failed(&self, why: &str) {
        if self.is_on() {
            let mut line = line("keys");
            line.extend([("result".into(), "failed".into()), ("why".into(), why.into())]);
            self.write(line);
        }
    }

    fn repeated(&self, what: &'static str, whose: &Counted, line: impl FnOnce() -> Map<String, Value>) {
        if let Some(writing) = &self.0
            && let Some(line) = writing.repeats.note(what, whose, line)
        {
            writing.lines.write(line);
        }
    }

    fn write(&self, line: Map<String, Value>) {
        if let Some(writing) = &self.0 {
            writing.lines.write(line);
        }
    }
}

impl Writing {
    /// The same value with a hash in place of each text, number and other scalar.
    fn hashed(&self, value: Value) -> Value {
        match value {
            Value::Object(members) => members.into_iter().map(|(key, value)| (key, self.hashed(value))).collect(),
            Value::Array(list) => list.into_iter().map(|value| self.hashed(value)).collect(),
            Value::String(text) => self.hash(&text).into(),
            scalar => self.hash(&scalar.to_string()).into(),
        }
    }

    fn hash(&self, text: &str) -> String {
        hmac::sign(&self.hashes, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Action {
    /// Of an audit that is off.
    fn none() -> Self {
        Self { audit: Audit::default(), line: Map::new() }
    }

    /// Writes the line of an action that has deleted so many.
    pub fn done(mut self, deleted: u64) {
        self.line.extend([("result".into(), "done".into()), ("deleted".into(), deleted.into())]);
    }

    /// Writes the line of an action that failed.
    pub fn failed(mut self, why: impl fmt::Display) {
        self.line.extend([("result".into(), "failed".into()), ("why".into(), why.to_string().into())]);
    }
}

impl Drop for Action {
    fn drop(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            line.entry("result").or_insert("unknown".into());
            self.audit.write(line);
        }
    }
}

/// Begins a line. All have these members.
fn line(what: &str) -> Map<String, Value> {
    Map::from_iter([("time".into(), Timestamp::now().to_string().into()), ("what".into(), what.into())])
}

fn of_caller(what: &str, caller: &Caller) -> Map<String, Value> {
    let mut line = line(what);
    line.extend([("who".into(), who(caller).into()), ("from".into(), caller.from.to_string().into())]);
    line
}

fn who(caller: &Caller) -> String {
    match &caller.principal {
        Principal::Granted(grant) => match &grant.holder {
            Holder::Key { id, .. } => format!("key:{id}"),
            Holder::Subject { subject, issuer: Some(issuer) } => format!("sub:{issuer}/{subject}"),
            Holder::Subject { subject, issuer: None } => format!("sub:{subject}"),
        },
        _ if caller.counted == Counted::ApiKey => "API_KEY".to_owned(),
        _ => "nobody".to_owned(),
    }
}

fn refused(why: &str) -> [(String, Value); 2] {
    [("result".into(), "refused".into()), ("why".into(), why.into())]
}

fn sorted<'k>(ids: impl Iterator<Item = &'k str>) -> Value {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    json!(ids)
}

/// The values of the fields that a key is for.
fn shown(pins: &Filter) -> Value {
    let wanted = Field::ALL.into_iter().filter_map(|field| Some((field.name(), pins.wanted(field)?)));
    wanted.map(|(name, values)| (name.to_owned(), json!(values))).collect()
}
