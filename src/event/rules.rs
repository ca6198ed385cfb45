//! The rules that make the fields of a JSON object an event.

use simd_json::{Node, StaticNode};

use super::fields::{
    Event, KEY_CHARS_MAX, Limits, PAYLOAD_DEPTH_MAX, REF_BYTES_MAX, REFERENCE_CHARS_MAX, SOURCE_CHARS_MAX,
};
use super::json::remove_whitespace;
use super::rejection::{Fault, Rejection};
use super::tape::{Cursor, Fields};
use super::types::{EventType, EventTypes};

/// The rules of the contract for one event, with the registered types and the operator's limits.
pub struct Rules<'r> {
    pub types: &'r EventTypes,
    pub limits: Limits,
}

impl Rules<'_> {
    /// The event that the fields are; `None` if they break a rule. `compact` is the memory for a payload whose whitespace
    /// has to go.
    #[inline]
    pub fn check<'e>(&self, fields: Fields<'e, 'e>, compact: &'e mut String) -> Option<Event<'e>> {
        let fields = &fields;
        check_depth(fields).ok()?;
        let event_type = self.event_type(fields).ok()?;
        let source = source(fields).ok()?;
        let session_id = optional("session_id", fields.session_id).ok()?;
        let user_id = optional("user_id", fields.user_id).ok()?;
        let payload = match fields.payload {
            None => "{}",
            Some((node, raw)) => {
                self.check_keys(node).ok()?;
                self.check_bytes(raw).ok()?;
                on_one_line(raw, compact)
            }
        };
        check_reference(fields).ok()?;
        let idempotency_key = idempotency_key(fields).ok()?;
        Some(Event { event_type, source, session_id, user_id, payload, idempotency_key })
    }

    /// Every rule that an object breaks, after [`check`](Self::check) found that it breaks one. It reads the fields once
    /// more: keeping them for this would cost every valid event.
    #[cold]
    pub fn rejections(&self, index: Option<usize>, mut object: Cursor<'_, '_, '_>) -> Vec<Rejection> {
        let fields = &object.object();
        let payload = fields.payload;
        let faults = [
            check_depth(fields).err(),
            self.event_type(fields).err(),
            source(fields).err(),
            optional("session_id", fields.session_id).err(),
            optional("user_id", fields.user_id).err(),
            payload.and_then(|(node, _)| self.check_keys(node).err()),
            payload.and_then(|(_, raw)| self.check_bytes(raw).err()),
            check_reference(fields).err(),
            idempotency_key(fields).err(),
        ];
        faults.into_iter().flatten().map(|fault| Rejection { index, fault }).collect()
    }

    #[inline]
    fn event_type(&self, fields: &Fields<'_, '_>) -> Result<EventType, Fault> {
        let name = required("event_type", fields.event_type)?;
        let unknown = || Fault::UnknownType { name: excerpt(name), known: self.types.listed() };
        self.types.get(name).ok_or_else(unknown)
    }

    #[inline]
    fn check_keys(&self, payload: Node<'_>) -> Result<(), Fault> {
        let max = self.limits.payload_keys_max;
        match payload {
            Node::Object { len, .. } if len <= max => Ok(()),
            Node::Object { len: found, .. } => Err(Fault::PayloadKeys { found, max }),
            _ => Err(Fault::WrongType { field: "payload", expected: "an object" }),
        }
    }

    #[inline]
    fn check_bytes(&self, payload: &str) -> Result<(), Fault> {
        let (found, max) = (payload.len(), self.limits.payload_bytes_max);
        if found <= max { Ok(()) } else { Err(Fault::PayloadBytes { found, max }) }
    }
}

#[inline]
fn check_depth(fields: &Fields<'_, '_>) -> Result<(), Fault> {
    if fields.depth <= PAYLOAD_DEPTH_MAX { Ok(()) } else { Err(Fault::TooDeep) }
}

#[inline]
fn source<'n>(fields: &Fields<'n, '_>) -> Result<&'n str, Fault> {
    let source = required("source", fields.source)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let is_valid = (1..=SOURCE_CHARS_MAX).contains(&source.len()) && source.bytes().all(allowed);
    if is_valid { Ok(source) } else { Err(Fault::BadSource) }
}

#[inline]
fn check_reference(fields: &Fields<'_, '_>) -> Result<(), Fault> {
    if fields.reference.is_some_and(|raw| raw.len() > REF_BYTES_MAX) { Err(Fault::RefTooLong) } else { Ok(()) }
}

#[inline]
fn idempotency_key<'n>(fields: &Fields<'n, '_>) -> Result<Option<&'n str>, Fault> {
    match fields.idempotency_key {
        None | Some(Node::Static(StaticNode::Null)) => Ok(None),
        Some(Node::String(key)) if is_key(key) => Ok(Some(key)),
        Some(_) => Err(Fault::BadKey),
    }
}

/// A payload without line breaks, because one would end a line of NDJSON or of an event stream. JSON has none within
/// strings, so they can only be layout for human readers.
#[inline]
fn on_one_line<'e>(payload: &'e str, compact: &'e mut String) -> &'e str {
    // A sum over all bytes instead of a search that ends early: the compiler makes it a loop over vectors.
    let breaks = payload.bytes().fold(0, |breaks, b| breaks | u8::from(b == b'\n') | u8::from(b == b'\r'));
    if breaks == 0 {
        return payload;
    }
    remove_whitespace(payload, compact);
    compact
}

fn required<'n>(field: &'static str, node: Option<Node<'n>>) -> Result<&'n str, Fault> {
    match node {
        Some(Node::String(text)) => Ok(text),
        Some(_) => Err(Fault::WrongType { field, expected: "a string" }),
        None => Err(Fault::Missing(field)),
    }
}

fn optional<'n>(field: &'static str, node: Option<Node<'n>>) -> Result<Option<&'n str>, Fault> {
    match node {
        None | Some(Node::Static(StaticNode::Null)) => Ok(None),
        Some(Node::String(text))
            if text.len() <= REFERENCE_CHARS_MAX || text.chars().count() <= REFERENCE_CHARS_MAX =>
        {
            Ok(Some(text))
        }
        Some(Node::String(_)) => Err(Fault::TooLong(field)),
        Some(_) => Err(Fault::WrongType { field, expected: "a string or null" }),
    }
}

/// Whether a text can be an idempotency key.
pub fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().take(KEY_CHARS_MAX + 1).count() <= KEY_CHARS_MAX
}

/// The part of a client's text that an error message repeats.
fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
