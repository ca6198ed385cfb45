//! JSON as text: what can be said of it, and changed in it, without parsing it.

/// What JSON allows between its tokens.
pub const WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The index of the quote that ends a string; `begin` is that of the quote that begins it.
pub fn string_end(text: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while at < text.len() && text[at] != b'"' {
        at += 1 + usize::from(text[at] == b'\\');
    }
    at
}

/// Replaces each well-formed number by a 0 in the same position.
///
/// simd-json computes every number and refuses those that it has no type for, such as `1e400` and integers beyond 64
/// bits; JSON sets no such limit. So a text that it refuses is parsed again without its numbers. Only these rare texts,
/// and bad ones, pay for it.
pub fn replace_numbers(text: &mut [u8]) {
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

/// Copies JSON without the whitespace between its tokens.
pub fn remove_whitespace(json: &str, compact: &mut String) {
    compact.clear();
    let (mut in_string, mut escaped) = (false, false);
    compact.extend(json.chars().filter(|&c| {
        let keep = in_string || !WHITESPACE.contains(&c);
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
        keep
    }));
}
