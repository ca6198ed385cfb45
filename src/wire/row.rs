//! Where the parts of an event lie in the bytes of its batch.

use crate::event::{Columns, Field, ValueHash};

/// Where the parts of one event lie. Its frame begins where the frame before it ends.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub json: u32,
    pub end: u32,
    pub event_type: Span,
    pub source: Span,
    pub session_id: Span,
    pub user_id: Span,
    pub payload: Span,
    /// Of the values of its fields, by the number of the field. Only for the writer: those of an event that was read back
    /// mean nothing.
    pub hashes: [ValueHash; Field::ALL.len()],
}

/// A string within the batch's frames; within its decoded strings if the bit `DECODED` is set.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub start: u32,
    pub len: u32,
}

impl Span {
    pub const NULL: Span = Span { start: u32::MAX, len: 0 };
    pub const DECODED: u32 = 1 << 31;

    #[inline]
    fn text<'b>(self, frames: &'b [u8], decoded: &'b [u8]) -> Option<&'b [u8]> {
        if self.start == u32::MAX {
            return None;
        }
        let bytes = if self.start & Self::DECODED == 0 { frames } else { decoded };
        let start = (self.start & !Self::DECODED) as usize;
        Some(&bytes[start..start + self.len as usize])
    }
}

impl Row {
    /// The same row after its frame was moved to another offset.
    pub fn moved(&self, from: u32, to: u32) -> Self {
        let offset = |at: u32| at - from + to;
        let span = |span: Span| {
            let is_in_frame = span.start & Span::DECODED == 0;
            if is_in_frame { Span { start: offset(span.start), ..span } } else { span }
        };
        Self {
            json: offset(self.json),
            end: offset(self.end),
            event_type: span(self.event_type),
            source: span(self.source),
            session_id: span(self.session_id),
            user_id: span(self.user_id),
            payload: span(self.payload),
            hashes: self.hashes,
        }
    }

    /// The value of a field; `None` if the event has none.
    #[inline]
    pub fn field<'b>(&self, field: Field, frames: &'b [u8], decoded: &'b [u8]) -> Option<&'b [u8]> {
        let span = match field {
            Field::Type => self.event_type,
            Field::Session => self.session_id,
            Field::User => self.user_id,
            Field::Source => self.source,
        };
        span.text(frames, decoded)
    }

    // `always`, because otherwise an edit anywhere else may make the fan-out call it: 20 instructions (2 %) an event.
    #[inline(always)]
    pub fn columns<'b>(&self, frames: &'b [u8], decoded: &'b [u8]) -> Columns<'b> {
        let text = |span: Span| span.text(frames, decoded);
        Columns {
            event_type: text(self.event_type).expect("every event has a type"),
            source: text(self.source).expect("every event has a source"),
            session_id: text(self.session_id),
            user_id: text(self.user_id),
            payload: text(self.payload).expect("every event has a payload"),
        }
    }
}
