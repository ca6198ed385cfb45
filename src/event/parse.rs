//! From a producer's text to checked events. simd-json does the reading; what it leaves open is
//! decided here on purpose: numbers beyond 64 bits are fine (they are never computed with), the last
//! of two equal keys wins, nesting is bounded, and the payload stays the producer's own bytes.

use std::sync::Arc;

use simd_json::{Buffers, ErrorType, Node, StaticNode, Tape};

use super::{
    Event, EventType, EventTypes, KEY_CHARS_MAX, Limits, PAYLOAD_DEPTH_MAX, REFERENCE_CHARS_MAX, SOURCE_CHARS_MAX,
};

/// Longest `ref` of a message, in bytes of JSON: it waits in memory until its answer leaves.
const REF_BYTES_MAX: usize = 256;

/// Most rejections of one text: 100 are enough to find the mistake, and a body can have a million bad lines.
pub const REJECTIONS_MAX: usize = 100;

/// A large array is read in runs of elements of about this size; a longer element is a run of its own. What simd-json notes
/// of a text takes up to seventy times its length, and a body may be an array of 16 MiB.
const RUN_BYTES: usize = 64 << 10;

/// Levels around a payload: the event's own object and the array that may hold it.
const ENVELOPE_DEPTH: usize = 2;

/// Reads events, one parser per connection or thread; its buffers are reused from message to message.
pub struct Parser {
    types: Arc<EventTypes>,
    limits: Limits,
    scratch: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
    compact: String,
}

/// Why a text is not an event, and where: `index` is the place in an array, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub index: Option<usize>,
    pub fault: Fault,
}

/// What can be wrong with an event. The text of each is for the client that sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("Not valid JSON: {0}")]
    NotJson(&'static str),
    #[error("An event is a JSON object")]
    NotAnObject,
    #[error("An empty array holds no event")]
    NoEvents,
    #[error("Field '{0}' is required")]
    Missing(&'static str),
    #[error("Field '{field}' must be {expected}")]
    WrongType { field: &'static str, expected: &'static str },
    #[error("Unknown event type '{name}'; known are {known}")]
    UnknownType { name: String, known: String },
    #[error("Field 'source' must be 1 to {SOURCE_CHARS_MAX} characters of A-Z, a-z, 0-9, '_', '.' and '-'")]
    BadSource,
    #[error("Field '{0}' is longer than {REFERENCE_CHARS_MAX} characters")]
    TooLong(&'static str),
    #[error("Field 'idempotency_key' must be a string of 1 to {KEY_CHARS_MAX} characters")]
    BadKey,
    #[error("Field 'ref' is longer than {REF_BYTES_MAX} bytes of JSON")]
    RefTooLong,
    #[error("Payload has {found} top-level keys, at most {max} are allowed")]
    PayloadKeys { found: usize, max: usize },
    #[error("Payload has {found} bytes, at most {max} are allowed")]
    PayloadBytes { found: usize, max: usize },
    #[error("Nested deeper than {PAYLOAD_DEPTH_MAX} levels")]
    TooDeep,
}

impl Fault {
    /// The field at fault, if it is one.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Missing(field) | Self::TooLong(field) | Self::WrongType { field, .. } => Some(field),
            Self::UnknownType { .. } => Some("event_type"),
            Self::BadSource => Some("source"),
            Self::BadKey => Some("idempotency_key"),
            Self::RefTooLong => Some("ref"),
            Self::PayloadKeys { .. } | Self::PayloadBytes { .. } => Some("payload"),
            Self::NotJson(_) | Self::NotAnObject | Self::NoEvents | Self::TooDeep => None,
        }
    }

    /// A stable word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "json_invalid",
            Self::NotAnObject => "object_type",
            Self::NoEvents => "too_short",
            Self::Missing(_) => "missing",
            Self::WrongType { .. } | Self::BadKey => "wrong_type",
            Self::UnknownType { .. } => "enum",
            Self::BadSource => "string_pattern_mismatch",
            Self::TooLong(_) | Self::RefTooLong => "string_too_long",
            Self::PayloadKeys { .. } | Self::PayloadBytes { .. } => "too_long",
            Self::TooDeep => "recursion_limit",
        }
    }
}

/// What one text held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'t> {
    /// The `ref` of a single event, as raw JSON; also there when the event was refused.
    pub reference: Option<&'t str>,
    /// `None` for a single object, the length of an array otherwise; every event of it went to the sink. Else all
    /// that is wrong, at least one thing and at most [`REJECTIONS_MAX`].
    pub outcome: Result<Option<usize>, Vec<Rejection>>,
}

impl<'t> Parsed<'t> {
    fn refused(reference: Option<&'t str>, fault: Fault) -> Self {
        Self { reference, outcome: Err(vec![Rejection { index: None, fault }]) }
    }
}

impl Parser {
    pub fn new(types: Arc<EventTypes>, limits: Limits) -> Self {
        Self {
            types,
            limits,
            scratch: Vec::new(),
            buffers: Buffers::with_max_depth(0, PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH),
            tape: Tape(Vec::new()),
            compact: String::new(),
        }
    }

    /// The registry this parser checks against.
    pub fn types(&self) -> &Arc<EventTypes> {
        &self.types
    }

    /// Reads one event object, or an array of them, and hands each event to `sink` in order. When an
    /// array has a bad event the sink has already seen those before it: undo them.
    #[inline]
    pub fn parse<'t>(&mut self, text: &'t str, sink: impl FnMut(Event<'_>)) -> Parsed<'t> {
        if text.len() > RUN_BYTES
            && let Some(elements) = text.trim_start_matches(BLANKS).strip_prefix('[')
        {
            return Parsed { reference: None, outcome: self.parse_in_runs(elements, RUN_BYTES, sink).map(Some) };
        }
        self.parse_whole(text, sink)
    }

    /// Reads an array, of which everything behind its '[' is given, in runs of elements.
    fn parse_in_runs(
        &mut self,
        mut rest: &str,
        run_bytes: usize,
        mut sink: impl FnMut(Event<'_>),
    ) -> Result<usize, Vec<Rejection>> {
        let (mut count, mut rejections, mut text) = (0, Vec::new(), String::new());
        loop {
            let Run { len, elements, is_last } = Run::of(rest, run_bytes);
            let (run, behind) = rest.split_at(len);
            text.clear();
            // The last run has its own end, and whatever follows that.
            text.extend(if is_last { ["[", run, ""] } else { ["[", run, "]"] });
            if text[1..].trim_start_matches(BLANKS).starts_with(']') && !(is_last && count == 0) {
                // Between two commas, or behind the last of them, there is nothing.
                "[,".clone_into(&mut text);
            }
            let is_well = rejections.is_empty();
            let parsed = self.parse_whole(&text, |event| {
                if is_well {
                    sink(event);
                }
            });
            match parsed.outcome {
                // What is no JSON is told alone, wherever that shows.
                Err(of_all) if of_all.iter().any(|rejection| rejection.index.is_none()) => return Err(of_all),
                Err(of_run) => rejections.extend(of_run.into_iter().map(|rejection| {
                    let index = rejection.index.map(|index| count + index);
                    Rejection { index, ..rejection }
                })),
                Ok(_) => {}
            }
            rejections.truncate(REJECTIONS_MAX);
            count += elements;
            if is_last {
                return if rejections.is_empty() { Ok(count) } else { Err(rejections) };
            }
            rest = &behind[1..];
        }
    }

    fn parse_whole<'t>(&mut self, text: &'t str, mut sink: impl FnMut(Event<'_>)) -> Parsed<'t> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        fill(&mut scratch, text);
        let (tape, read) = match simd_json::fill_tape_padded(&mut scratch, text.len(), &mut self.buffers, &mut tape) {
            Ok(()) => (tape, Ok(())),
            Err(error) if too_deep(&error) => (tape.reset(), Err(error)),
            Err(_) => {
                let mut tape = tape.reset();
                fill(&mut scratch, text);
                replace_numbers(&mut scratch[..text.len()]);
                let read = simd_json::fill_tape_padded(&mut scratch, text.len(), &mut self.buffers, &mut tape);
                (tape, read)
            }
        };
        let parsed = match (read, tape.0.first()) {
            (Err(error), _) => Parsed::refused(None, fault_of(&error)),
            (Ok(()), Some(&Node::Array { len, .. })) => {
                let mut cursor = Cursor::new(text, &tape, &self.buffers);
                let rules = Rules { types: &self.types, limits: self.limits };
                let outcome = array(&mut cursor, len, &rules, &mut self.compact, &mut sink);
                Parsed { reference: None, outcome: outcome.map(|()| Some(len)) }
            }
            (Ok(()), Some(Node::Object { .. })) => {
                let whole = || Cursor::new(text, &tape, &self.buffers);
                let rules = Rules { types: &self.types, limits: self.limits };
                let fields = whole().object();
                let reference = fields.reference;
                match rules.check(fields, &mut self.compact) {
                    None => Parsed {
                        reference: reference.filter(|raw| raw.len() <= REF_BYTES_MAX),
                        outcome: Err(rules.rejections(None, whole())),
                    },
                    Some(event) => {
                        sink(event);
                        Parsed { reference, outcome: Ok(None) }
                    }
                }
            }
            (Ok(()), _) => Parsed::refused(None, Fault::NotAnObject),
        };
        self.tape = tape.reset();
        self.scratch = scratch;
        self.let_go_of_what_a_large_message_needed();
        parsed
    }

    /// Ten thousand connections share the machine: a parser that once saw a large message does not keep its room.
    fn let_go_of_what_a_large_message_needed(&mut self) {
        const KEPT_BYTES: usize = 256 << 10;
        if self.scratch.capacity() > KEPT_BYTES {
            self.scratch = Vec::new();
            self.buffers = Buffers::with_max_depth(0, PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH);
            self.tape = Tape(Vec::new());
            self.compact = String::new();
        }
    }
}

/// What JSON has between its tokens.
const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// The first elements of an array.
struct Run {
    /// Without the comma behind them; if they are the last, everything there is.
    len: usize,
    elements: usize,
    is_last: bool,
}

impl Run {
    /// The elements up to the first comma between two that is not within so many bytes. Of a text that is no JSON, it
    /// ends where it would if it were: whatever makes it none stays within one of its runs.
    fn of(array: &str, bytes_min: usize) -> Self {
        let bytes = array.as_bytes();
        let (mut at, mut depth, mut elements) = (0, 0usize, 1);
        while at < bytes.len() {
            match bytes[at] {
                b'"' => at = string_end(bytes, at),
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth == 0 => break,
                b']' | b'}' => depth -= 1,
                b',' if depth == 0 && at >= bytes_min => return Self { len: at, elements, is_last: false },
                b',' if depth == 0 => elements += 1,
                _ => {}
            }
            at += 1;
        }
        Self { len: bytes.len(), elements, is_last: true }
    }
}

/// Where a string ends that begins here.
fn string_end(text: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while at < text.len() && text[at] != b'"' {
        at += 1 + usize::from(text[at] == b'\\');
    }
    at
}

fn array(
    cursor: &mut Cursor<'_, '_, '_>,
    len: usize,
    rules: &Rules<'_>,
    compact: &mut String,
    sink: &mut impl FnMut(Event<'_>),
) -> Result<(), Vec<Rejection>> {
    if len == 0 {
        return Err(vec![Rejection { index: None, fault: Fault::NoEvents }]);
    }
    let mut rejections = Vec::new();
    cursor.node += 1;
    for index in 0..len {
        cursor.structural += 1; // over the '[' or ',' before the element
        let Node::Object { .. } = cursor.nodes[cursor.node] else {
            cursor.value();
            rejections.push(Rejection { index: Some(index), fault: Fault::NotAnObject });
            continue;
        };
        let (node, structural) = (cursor.node, cursor.structural);
        match rules.check(cursor.object(), compact) {
            // Once one of them is refused none is stored.
            Some(event) if rejections.is_empty() => sink(event),
            Some(_) => {}
            None => rejections.extend(rules.rejections(Some(index), Cursor { node, structural, ..*cursor })),
        }
        if rejections.len() >= REJECTIONS_MAX {
            break;
        }
    }
    rejections.truncate(REJECTIONS_MAX);
    if rejections.is_empty() { Ok(()) } else { Err(rejections) }
}

/// The text with room behind it, for simd-json to read in whole vectors and to unescape strings in.
fn fill(scratch: &mut Vec<u8>, text: &str) {
    scratch.clear();
    scratch.reserve(text.len() + simd_json::INPUT_PADDING);
    scratch.extend_from_slice(text.as_bytes());
    scratch.extend_from_slice(&[b' '; simd_json::INPUT_PADDING]);
}

fn too_deep(error: &simd_json::Error) -> bool {
    matches!(error.error(), ErrorType::DepthLimitExceeded)
}

fn fault_of(error: &simd_json::Error) -> Fault {
    Fault::NotJson(match error.error() {
        ErrorType::DepthLimitExceeded => return Fault::TooDeep,
        ErrorType::InvalidNumber | ErrorType::InvalidExponent | ErrorType::Overflow => "a number is misspelled",
        ErrorType::InvalidEscape | ErrorType::InvalidUnicodeCodepoint | ErrorType::InvalidUnicodeEscape => {
            "a string has an escape that stands for no character"
        }
        ErrorType::UnterminatedString => "a string does not end or holds a control character",
        ErrorType::Eof | ErrorType::NoStructure => "it is empty or ends too early",
        ErrorType::ExpectedObjectColon => "a ':' is missing",
        ErrorType::ExpectedMapComma | ErrorType::ExpectedArrayComma | ErrorType::ExpectedMapEnd => {
            "a ',' or a closing bracket is missing"
        }
        ErrorType::ExpectedObjectKey | ErrorType::ExpectedObjectContent | ErrorType::BadKeyType => {
            "an object needs a key in double quotes"
        }
        ErrorType::TrailingData => "something follows its end",
        _ => "unexpected character",
    })
}

/// simd-json computes every number and refuses those it has no type for, such as `1e400` and integers
/// beyond 64 bits; JSON sets no such limit. So a text it refuses is read again with each well-formed
/// number replaced by a 0 in the same place. Only such rare texts, and bad ones, pay for it.
fn replace_numbers(text: &mut [u8]) {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at = string_end(text, at) + 1,
            b'-' | b'0'..=b'9' => {
                let end = at + number_len(&text[at..]);
                let begins = at == 0 || b" \t\n\r,[:".contains(&text[at - 1]);
                let ends = text.get(end).is_none_or(|b| b" \t\n\r,]}".contains(b));
                if begins && ends && end > at {
                    text[at..end].fill(b' ');
                    text[at] = b'0';
                }
                at = end.max(at + 1);
            }
            _ => at += 1,
        }
    }
}

/// Bytes of the JSON number (RFC 8259, section 6) that `text` begins with; 0 if it begins with none.
fn number_len(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = usize::from(text.first() == Some(&b'-'));
    match text.get(end) {
        Some(b'0') => end += 1,
        Some(b'1'..=b'9') => end += digits(end),
        _ => return 0,
    }
    if text.get(end) == Some(&b'.') {
        match digits(end + 1) {
            0 => return 0,
            fraction => end += 1 + fraction,
        }
    }
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        match digits(end + 1 + sign) {
            0 => return 0,
            exponent => end += 1 + sign + exponent,
        }
    }
    end
}

/// The nodes and the raw text of one event's fields. A key that comes twice counts with its last value.
#[derive(Default)]
struct Fields<'n, 't> {
    event_type: Option<Node<'n>>,
    source: Option<Node<'n>>,
    session_id: Option<Node<'n>>,
    user_id: Option<Node<'n>>,
    payload: Option<(Node<'n>, &'t str)>,
    idempotency_key: Option<Node<'n>>,
    reference: Option<&'t str>,
    /// The deepest nesting of any value, also of a field that is ignored.
    depth: usize,
}

/// A walk over the tape (decoded values) and, in step, over the places of the structural characters
/// in the text (raw values): together they give an event's strings decoded and its payload untouched
/// without scanning the text a second time.
struct Cursor<'a, 'n, 't> {
    text: &'t str,
    nodes: &'a [Node<'n>],
    structurals: &'a [u32],
    node: usize,
    structural: usize,
}

impl<'a, 'n, 't> Cursor<'a, 'n, 't> {
    fn new(text: &'t str, tape: &'a Tape<'n>, buffers: &'a Buffers) -> Self {
        Self { text, nodes: &tape.0, structurals: buffers.structural_indexes(), node: 0, structural: 0 }
    }

    /// Reads the object the cursor stands on and leaves the cursor behind it.
    fn object(&mut self) -> Fields<'n, 't> {
        let mut fields = Fields::default();
        let Node::Object { len, .. } = self.nodes[self.node] else { return fields };
        self.node += 1;
        self.structural += 1; // over '{'
        for _ in 0..len {
            let Node::String(key) = self.nodes[self.node] else { return fields };
            self.node += 1;
            self.structural += 2; // over the key and ':'
            let value = self.nodes[self.node];
            let (raw, depth) = self.value();
            fields.depth = fields.depth.max(depth);
            match key {
                "event_type" => fields.event_type = Some(value),
                "source" => fields.source = Some(value),
                "session_id" => fields.session_id = Some(value),
                "user_id" => fields.user_id = Some(value),
                "payload" => fields.payload = Some((value, raw)),
                "idempotency_key" => fields.idempotency_key = Some(value),
                "ref" => fields.reference = Some(raw),
                _ => {}
            }
            self.structural += 1; // over ',' or '}'
        }
        self.structural += usize::from(len == 0); // over the '}' of an empty object
        fields
    }

    /// Passes over one value: its text and how deep it nests.
    #[inline]
    fn value(&mut self) -> (&'t str, usize) {
        let bytes = self.text.as_bytes();
        let start = self.structurals[self.structural] as usize;
        let (skipped, end, depth_max) = match self.nodes[self.node] {
            Node::Object { count, .. } | Node::Array { count, .. } => {
                let (mut depth, mut depth_max) = (0usize, 0);
                let end = loop {
                    let at = self.structurals[self.structural] as usize;
                    self.structural += 1;
                    match bytes[at] {
                        b'{' | b'[' => {
                            depth += 1;
                            depth_max = depth_max.max(depth);
                        }
                        b'}' | b']' => {
                            depth -= 1;
                            if depth == 0 {
                                break at + 1;
                            }
                        }
                        _ => {}
                    }
                };
                (count + 1, end, depth_max)
            }
            _ => {
                self.structural += 1;
                let next = self.structurals[self.structural] as usize;
                (1, start + bytes[start..next].trim_ascii_end().len(), 0)
            }
        };
        self.node += skipped;
        (&self.text[start..end], depth_max)
    }
}

struct Rules<'r> {
    types: &'r EventTypes,
    limits: Limits,
}

impl Rules<'_> {
    #[inline]
    fn check<'e>(&self, fields: Fields<'e, 'e>, compact: &'e mut String) -> Option<Event<'e>> {
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
                in_one_line(raw, compact)
            }
        };
        check_reference(fields).ok()?;
        let idempotency_key = idempotency_key(fields).ok()?;
        Some(Event { event_type, source, session_id, user_id, payload, idempotency_key })
    }

    /// All that keeps an object from being an event, which [`check`](Self::check) has found that it is not. Reads its
    /// fields once more: kept for this they would cost every event that is well.
    #[cold]
    fn rejections(&self, index: Option<usize>, mut object: Cursor<'_, '_, '_>) -> Vec<Rejection> {
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
    let is_well = (1..=SOURCE_CHARS_MAX).contains(&source.len()) && source.bytes().all(allowed);
    if is_well { Ok(source) } else { Err(Fault::BadSource) }
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

/// A line break would end a line of NDJSON or of an event stream too early. Inside strings JSON allows none, so a
/// payload with one was laid out for human eyes.
#[inline]
fn in_one_line<'e>(payload: &'e str, compact: &'e mut String) -> &'e str {
    // Looks at every byte, as a number: so the compiler takes many at once, which an early end would forbid.
    let breaks = payload.bytes().fold(0, |breaks, b| breaks | u8::from(b == b'\n') | u8::from(b == b'\r'));
    if breaks == 0 {
        return payload;
    }
    remove_layout(payload, compact);
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

/// What an error message repeats of a client's text.
fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Copies JSON without the whitespace between its tokens.
fn remove_layout(json: &str, compact: &mut String) {
    compact.clear();
    let (mut in_string, mut escaped) = (false, false);
    compact.extend(json.chars().filter(|&c| {
        let keep = in_string || !matches!(c, ' ' | '\t' | '\n' | '\r');
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
        keep
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { payload_keys_max: 50, payload_bytes_max: 65_536 };

    type Owned = (String, String, Option<String>, Option<String>, String);

    fn parse(text: &str) -> (Result<Vec<Owned>, Vec<Rejection>>, Option<String>) {
        let types = Arc::new(EventTypes::builtin());
        let mut parser = Parser::new(types.clone(), LIMITS);
        let mut events = Vec::new();
        let parsed = parser.parse(text, |e| {
            events.push((
                types.name(e.event_type).to_string(),
                e.source.to_owned(),
                e.session_id.map(str::to_owned),
                e.user_id.map(str::to_owned),
                e.payload.to_owned(),
            ));
        });
        (parsed.outcome.map(|_| events), parsed.reference.map(str::to_owned))
    }

    fn payload(json: &str) -> Result<String, Fault> {
        let text = format!(r#"{{"event_type":"timer_tick","payload":{json},"source":"s"}}"#);
        parse(&text).0.map(|events| events[0].4.clone()).map_err(|refused| refused[0].fault.clone())
    }

    #[test]
    fn fields_come_in_any_order_and_shape() {
        let (events, reference) = parse(
            r#" { "user_id" : "ü\u00e9" , "x":[1,{"payload":2}], "payload" : {"a" : [ {} , [] ] } , "ref":7 , "source":"a.b-C_1","session_id":null, "event_type" : "timer_tick" } "#,
        );
        let want = ("timer_tick".into(), "a.b-C_1".into(), None, Some("üé".into()), r#"{"a" : [ {} , [] ] }"#.into());
        assert_eq!((events, reference.as_deref()), (Ok(vec![want]), Some("7")));
    }

    #[test]
    fn an_array_is_read_item_by_item() {
        let item = r#"{"event_type":"timer_tick","source":"s","payload":{"n":1}}"#;
        let (events, _) = parse(&format!("[{item}, {item} ,{item}]"));
        assert_eq!(events.map(|e| e.len()), Ok(3));
        let check = |text: &str, refused: &[(usize, Fault)]| {
            let refused = refused.iter().cloned().map(|(index, fault)| Rejection { index: Some(index), fault });
            assert_eq!(parse(text).0, Err(refused.collect()), "{text}");
        };
        assert_eq!(parse("[]").0, Err(vec![Rejection { index: None, fault: Fault::NoEvents }]));
        let missing = |index| [(index, Fault::Missing("event_type")), (index, Fault::Missing("source"))];
        check(&format!("[{item},{{}}]"), &missing(1));
        check(&format!("[{{}},{item},{{}},{item}]"), &[missing(0), missing(2)].concat());
        check(&format!("[{item},7]"), &[(1, Fault::NotAnObject)]);
        check(
            &format!("[[{item}],{item},\"[,]\",{{}}]"),
            &[&[(0, Fault::NotAnObject), (2, Fault::NotAnObject)][..], &missing(3)].concat(),
        );
    }

    #[test]
    fn every_fault_of_an_event_is_told_and_of_very_many_the_first() {
        let event = format!(
            r#"{{"event_type":"nope","source":"","session_id":1,"user_id":"{}","payload":[],"ref":"{}","idempotency_key":7}}"#,
            "u".repeat(201),
            "r".repeat(REF_BYTES_MAX),
        );
        let fields = |text: &str| {
            let refused = parse(text).0.expect_err("many faults");
            refused.iter().map(|refused| (refused.index, refused.fault.field().expect("a field"))).collect::<Vec<_>>()
        };
        let all = ["event_type", "source", "session_id", "user_id", "payload", "ref", "idempotency_key"];
        assert_eq!(fields(&event), all.map(|field| (None, field)));
        let many = fields(&format!("[{}]", vec![&*event; 200].join(",")));
        let first = (0..200).flat_map(|index| all.map(|field| (Some(index), field))).take(REJECTIONS_MAX);
        assert_eq!(many, first.collect::<Vec<_>>());
    }

    #[test]
    fn a_payload_stays_as_it_was_sent() {
        for json in [
            "{}",
            r#"{"b":1,"a":2,"b":3}"#,
            r#"{"n":1e400,"m":-1E-400,"i":123456789012345678901234567890,"f":0.10,"z":-0}"#,
            r#"{"s":"\u0000\ud83d\ude00\/","ü":"😀 \\\" x"}"#,
            r#"{ "spaced" : [ 1 , 2 ] }"#,
        ] {
            assert_eq!(payload(json).as_deref(), Ok(json));
        }
        assert_eq!(
            payload("{\n  \"a b\": \"c \\\" d\",\r\n\t\"e\": [1, 1e999]\n}").as_deref(),
            Ok(r#"{"a b":"c \" d","e":[1,1e999]}"#)
        );
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for json in [
            "--1",
            "-+1",
            "[1e400,--1]",
            "NaN",
            "Infinity",
            "-Infinity",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "0x10",
            "1_000",
            "'a'",
            "tru",
            "nulll",
            "truefalse",
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800\u0041""#,
            r#""\u12""#,
            r#""\x41""#,
            "\"\u{1}\"",
            "[1,]",
            "[1 2]",
            "[,1]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "[1e400 1]",
            "[1e400,01]",
            "[99999999999999999999,-]",
            "99999999999999999999x",
            "1e400.5",
            "",
            "[",
            "]",
            "\"",
        ] {
            let fault = payload(&format!(r#"{{"v":{json}}}"#));
            assert!(matches!(fault, Err(Fault::NotJson(_))), "{json}: {fault:?}");
        }
        for text in ["", " ", "{", "}", "{}}", "{} {}", "\u{feff}{}"] {
            let refused = parse(text).0.expect_err(text);
            assert!(matches!(refused[..], [Rejection { fault: Fault::NotJson(_), .. }]), "{text}");
        }
        for text in ["1", "null", "\"x\"", "1e400"] {
            assert_eq!(parse(text).0, Err(vec![Rejection { index: None, fault: Fault::NotAnObject }]), "{text}");
        }
    }

    #[test]
    fn every_limit_holds_at_its_edge() {
        let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        assert!(payload(&nested(PAYLOAD_DEPTH_MAX)).is_ok());
        assert_eq!(payload(&nested(PAYLOAD_DEPTH_MAX + 1)), Err(Fault::TooDeep));
        assert_eq!(payload(&nested(100_000)), Err(Fault::TooDeep));
        assert_eq!(payload(&format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000))), Err(Fault::TooDeep));
        let keys = |n: usize| format!("{{{}}}", (0..n).map(|i| format!(r#""k{i}":{i}"#)).collect::<Vec<_>>().join(","));
        assert!(payload(&keys(50)).is_ok());
        assert_eq!(payload(&keys(51)), Err(Fault::PayloadKeys { found: 51, max: 50 }));
        let bytes = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(n - 8));
        assert!(payload(&bytes(65_536)).is_ok());
        assert_eq!(payload(&bytes(65_537)), Err(Fault::PayloadBytes { found: 65_537, max: 65_536 }));
        let event = |field: &str, value: &str| {
            parse(&format!(r#"{{"event_type":"timer_tick","source":"s","{field}":"{value}"}}"#))
                .0
                .map(|_| ())
                .map_err(|refused| refused[0].fault.clone())
        };
        assert_eq!(event("source", &"a".repeat(100)), Ok(()));
        for bad in ["", "a b", "ä", &"a".repeat(101)] {
            assert_eq!(event("source", bad), Err(Fault::BadSource), "{bad}");
        }
        for field in ["session_id", "user_id"] {
            assert_eq!(event(field, &"😀".repeat(200)), Ok(()));
            assert_eq!(event(field, &"é".repeat(201)), Err(Fault::TooLong(field)));
            assert_eq!(event(field, ""), Ok(()));
        }
    }

    #[test]
    fn types_are_strict() {
        let check =
            |text: &str, fault: Fault| assert_eq!(parse(text).0, Err(vec![Rejection { index: None, fault }]), "{text}");
        check(r#"{"source":"s"}"#, Fault::Missing("event_type"));
        check(r#"{"event_type":"timer_tick"}"#, Fault::Missing("source"));
        check(r#"{"event_type":1,"source":"s"}"#, Fault::WrongType { field: "event_type", expected: "a string" });
        check(
            r#"{"event_type":"timer_tick","source":null}"#,
            Fault::WrongType { field: "source", expected: "a string" },
        );
        check(
            r#"{"event_type":"timer_tick","source":"s","session_id":7}"#,
            Fault::WrongType { field: "session_id", expected: "a string or null" },
        );
        let known = EventTypes::builtin().iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        let unknown = Fault::UnknownType { name: "nope".into(), known };
        check(r#"{"event_type":"nope","source":"s"}"#, unknown);
        for key in ["7", "\"\"", "[]", &format!("\"{}\"", "k".repeat(KEY_CHARS_MAX + 1))] {
            let event = format!(r#"{{"event_type":"timer_tick","source":"s","idempotency_key":{key}}}"#);
            check(&event, Fault::BadKey);
        }
        for value in ["null", "[]", "1", "\"{}\""] {
            assert_eq!(payload(value), Err(Fault::WrongType { field: "payload", expected: "an object" }));
        }
        let (outcome, reference) = parse(r#"{"event_type":"nope","ref":"r1"}"#);
        assert_eq!((outcome.is_err(), reference.as_deref()), (true, Some(r#""r1""#)));
    }

    /// JSON as serde_json spells it, which simd-json must agree with.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |f| f.is_finite()).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_payload_survives(values in prop::collection::vec(("[a-z]{1,4}", json()), 0..6), pretty: bool) {
            let object = serde_json::Value::Object(values.into_iter().collect());
            let compact = object.to_string();
            let sent = if pretty { serde_json::to_string_pretty(&object).expect("JSON") } else { compact.clone() };
            prop_assert_eq!(payload(&sent), Ok(if sent.contains('\n') { compact } else { sent }));
        }

        #[test]
        fn nothing_makes_it_panic(text in r#"[\[\]{}:,"\\a0-9.eE+ -]{0,40}"#) {
            let _ = payload(&text);
            let _ = parse(&text);
        }

        #[test]
        fn verdicts_on_scalars_are_serde_jsons(text in r#"[0-9.eE+\-ntrufalse"]{1,8}"#) {
            let reference = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(payload(&format!(r#"{{"v":{text}}}"#)).is_ok(), reference);
        }
    }

    /// An array in one piece or in runs, the words for what is no JSON left out: of two mistakes another one may show first.
    fn read(text: &str, run_bytes: Option<usize>) -> (Result<Option<usize>, Vec<Rejection>>, Vec<String>) {
        let types = Arc::new(EventTypes::builtin());
        let (mut parser, mut events) = (Parser::new(types, LIMITS), Vec::new());
        let sink = |event: Event<'_>| events.push(format!("{event:?}"));
        let outcome = match run_bytes {
            None => parser.parse_whole(text, sink).outcome,
            Some(bytes) => parser.parse_in_runs(text.strip_prefix('[').expect("an array"), bytes, sink).map(Some),
        };
        let outcome = outcome.map_err(|mut rejections| {
            for rejection in &mut rejections {
                if let Fault::NotJson(why) = &mut rejection.fault {
                    *why = "";
                }
            }
            rejections
        });
        let events = if outcome.is_ok() { events } else { Vec::new() };
        (outcome, events)
    }

    #[test]
    fn an_array_that_is_read_in_runs_is_the_same_array() {
        let event = r#"{"event_type":"timer_tick","source":"s","payload":{"a":[",]",{"b":1e999}]}}"#;
        let deep = "[".repeat(PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH) + &"]".repeat(PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH);
        for text in [
            "[]",
            "[ \n]",
            "[",
            "[,]",
            "[ ,0]",
            "[0,]",
            "[0, ]",
            "[0,,0]",
            "[0 , ,0]",
            "[0,0",
            "[0,0,",
            "[0,0]]",
            "[0,0],0",
            "[0,0}",
            "[0,\"]",
            "[0,\"\\\"]",
            r#"[\",0,"]"#,
            "[0,01,0]",
            &format!("[{}]", vec!["0"; 300].join(",")),
            &format!("[{}{{]", "0,".repeat(300)),
            &format!("[{event},0,{event} , {event},{{}},[{event}]]"),
            &format!("[{event}, {event},{event}\n] "),
            &format!("[{event},0,{deep},1]"),
        ] {
            for run_bytes in [0, 1, 3, 100, 1_000] {
                assert_eq!(read(text, Some(run_bytes)), read(text, None), "{text} in runs of {run_bytes}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_array_of_anything_is_the_same_in_runs(
            elements in prop::collection::vec(
                prop_oneof![
                    3 => Just(r#"{"event_type":"timer_tick","source":"s","payload":{"t":"\\\"],"}}"#.to_owned()),
                    1 => Just(r#"{"event_type":"timer_tick","payload":[{}]}"#.to_owned()),
                    1 => "[ \n]{0,2}[0-9]{0,2}|\\{\\}|\\[(0,0)?\\]|\"[,\\]a]\"",
                ],
                0..12,
            ),
            changed in prop::option::of((0usize..400, "[]\\[{},:\" \\\\0a]?")),
            run_bytes in 0usize..200,
        ) {
            let mut text = format!("[{}]", elements.join(","));
            if let Some((at, by)) = changed
                && at > 0
                && at < text.len()
            {
                text.replace_range(at..=at, &by);
            }
            prop_assert_eq!(read(&text, Some(run_bytes)), read(&text, None), "{}", text);
        }
    }
}
