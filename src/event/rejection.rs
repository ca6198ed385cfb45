//! Why a text is not an event.

use simd_json::ErrorType;

use super::fields::{KEY_CHARS_MAX, PAYLOAD_DEPTH_MAX, REF_BYTES_MAX, REFERENCE_CHARS_MAX, SOURCE_CHARS_MAX};

/// Most rejections of one text: 100 are enough to find the mistake, and a body can have a million bad lines.
pub const REJECTIONS_MAX: usize = 100;

/// Why a text is not an event; `index` is that of the event in an array.
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
    /// What simd-json's error means for a client.
    #[cold]
    pub(super) fn of_json(error: &simd_json::Error) -> Self {
        Self::NotJson(match error.error() {
            ErrorType::DepthLimitExceeded => return Self::TooDeep,
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

    /// The field at fault; `None` if the fault is not that of one field.
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

    /// A word for programs; it does not change.
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
