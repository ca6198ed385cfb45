//! Times and ids as text, compared with jiff's.

use event_pipeline::event::{EventId, Timestamp, TimestampText};

/// A text that may be a time or an id; its bytes as a number are a time, too.
pub fn time(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        read(text);
        id(text);
    }
    write(data);
}

fn read(text: &str) {
    let (floor, ceil) = (Timestamp::parse_floor(text), Timestamp::parse_ceil(text));
    // A date alone is its beginning, and a time without an offset is in UTC.
    let spelled = match text.split_at_checked(10) {
        Some((date, "")) => format!("{date}T00:00:00Z"),
        Some((_, rest)) if rest.starts_with(['T', 't', ' ']) && !rest.contains(['Z', 'z', '+', '-']) => {
            format!("{text}Z")
        }
        _ => text.to_owned(),
    };
    let known: Option<jiff::Timestamp> = spelled.parse().ok();
    let text = &*spelled;
    match (floor, known) {
        (Ok(floor), Some(known)) => {
            assert!(is_rfc_3339(text), "{text}");
            let micros = known.as_nanosecond().div_euclid(1_000) as i64;
            let between = i64::from(known.as_nanosecond().rem_euclid(1_000) > 0);
            assert_eq!((floor, ceil), (Timestamp(micros), Ok(Timestamp(micros + between))), "{text}");
        }
        // Beyond the end of jiff's `Timestamp`, which is some hours before ours.
        (Ok(floor), None) => {
            assert!(is_rfc_3339(text) && floor.0 >= jiff::Timestamp::MAX.as_microsecond(), "{text}");
            assert!(ceil.is_ok_and(|ceil| (0..=1).contains(&(ceil.0 - floor.0))));
        }
        (Err(_), known) => assert!(ceil.is_err() && !(known.is_some() && is_rfc_3339(text)), "{text}"),
    }
}

/// Whether a text has the full form, with at most nine digits of a fraction.
fn is_rfc_3339(text: &str) -> bool {
    let Some((date, rest)) = text.split_at_checked(10) else { return false };
    let has_shape = |text: &str, shape: &str| {
        let fits = |(c, of): (char, char)| if of == '0' { c.is_ascii_digit() } else { c == of };
        text.len() == shape.len() && text.chars().zip(shape.chars()).all(fits)
    };
    let Some((clock, zone)) = rest.split_at_checked(9) else { return false };
    let fraction = zone.strip_prefix('.').map(|rest| rest.chars().take_while(char::is_ascii_digit).count());
    let zone = &zone[fraction.map_or(0, |digits| digits + 1)..];
    has_shape(date, "0000-00-00")
        && clock.starts_with(['T', 't', ' '])
        && has_shape(&clock[1..], "00:00:00")
        && fraction.is_none_or(|digits| (1..10).contains(&digits))
        && (matches!(zone, "Z" | "z") || is_offset(zone))
}

/// Whether a text is an offset; one with seconds is too, as Python writes them.
fn is_offset(zone: &str) -> bool {
    let Some(offset) = zone.strip_prefix(['+', '-']) else { return false };
    let parts: Vec<_> = offset.split(':').collect();
    let is_below =
        |part: &&str, end: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()) && **part < *end;
    matches!(parts.len(), 2 | 3) && is_below(&parts[0], "24") && parts[1..].iter().all(|part| is_below(part, "60"))
}

fn write(data: &[u8]) {
    const YEAR_0: i64 = -62_167_219_200_000_000;
    const MICROS: i64 = 315_569_520_000_000_000;
    let Some((bytes, more)) = data.split_first_chunk() else { return };
    let any = i64::from_le_bytes(*bytes);
    assert_eq!(Timestamp(any).to_string().len(), Timestamp::LEN);
    let (time, mut text) = (Timestamp(YEAR_0 + any.rem_euclid(MICROS)), TimestampText::default());
    let next = Timestamp(time.0 + i64::from(more.first().copied().unwrap_or(1)) * 9_973);
    text.render(next);
    let spelled = time.to_string();
    assert_eq!(str::from_utf8(&text.render(time)), Ok(&*spelled), "whatever was rendered before");
    assert_eq!(Timestamp::parse_floor(&spelled), Ok(time));
    if let Ok(known) = jiff::Timestamp::from_microsecond(time.0) {
        assert_eq!(spelled, format!("{known:.6}"));
    }
}

fn id(text: &str) {
    let digits = text.strip_prefix("evt_").filter(|digits| digits.len() == 12);
    let is_hex = |digits: &&str| digits.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase());
    let number = digits.filter(is_hex).map(|digits| u64::from_str_radix(digits, 16).unwrap());
    assert_eq!(text.parse::<EventId>().ok().map(|id| id.0.0), number, "{text}");
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(id.digits(), text.as_bytes()[4..]);
    }
}
