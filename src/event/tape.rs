//! The walk over what simd-json notes of a text.

use simd_json::{Buffers, Node, Tape};

/// The fields of one event: the nodes of those that are decoded, the raw text of the others. Of a key that comes twice
/// the last value counts.
#[derive(Default)]
pub struct Fields<'n, 't> {
    pub event_type: Option<Node<'n>>,
    pub source: Option<Node<'n>>,
    pub session_id: Option<Node<'n>>,
    pub user_id: Option<Node<'n>>,
    pub payload: Option<(Node<'n>, &'t str)>,
    pub idempotency_key: Option<Node<'n>>,
    pub reference: Option<&'t str>,
    /// The deepest nesting of any value, ignored fields included.
    pub depth: usize,
}

/// Where a walk stands on the tape, which has the decoded values, and among the offsets of the structural characters,
/// which give their raw text. The walk goes over both in step: so an event's strings come decoded and its payload comes
/// as it was sent, and the text is not scanned a second time.
pub struct Cursor<'a, 'n, 't> {
    pub text: &'t str,
    pub nodes: &'a [Node<'n>],
    pub structurals: &'a [u32],
    pub node: usize,
    pub structural: usize,
}

impl<'a, 'n, 't> Cursor<'a, 'n, 't> {
    #[inline]
    pub fn new(text: &'t str, tape: &'a Tape<'n>, buffers: &'a Buffers) -> Self {
        Self { text, nodes: &tape.0, structurals: buffers.structural_indexes(), node: 0, structural: 0 }
    }

    /// Reads the object that the cursor stands on, and moves on to what follows it.
    pub fn object(&mut self) -> Fields<'n, 't> {
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

    /// Moves past one value, and returns its text and how deep it nests.
    #[inline]
    pub fn value(&mut self) -> (&'t str, usize) {
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
