//! A query, and the check of its answer, which finds ids without parsing JSON where it can.

use anyhow::Context;
use memchr::memmem;
use serde::Deserialize;

use crate::answer;
use crate::events;
use crate::verification::Acknowledged;

/// The limit of every query; it is the server's default.
pub const LENGTH: u64 = 100;

/// What a query client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The newest events.
    Latest,
    /// The newest events of a session.
    Session(u32),
    /// The newest events after an event, which has this timestamp.
    Since(u64, String),
    /// The page before an event.
    Older(u64),
    /// How many events there are.
    Stats,
    /// Events with a payload that none has.
    Nothing,
}

/// What is known when a query is sent, and must show in its answer.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The oldest event that is stored.
    pub first: u64,
    /// How many were stored before the run.
    pub stored: u64,
    /// The events that had been acknowledged in the run, as far as the query is about them.
    pub acknowledged: Acknowledged,
}

/// A page of events, as far as it is checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The sequence numbers, in their order.
    ids: Vec<u64>,
    /// How many events are of the session in the query.
    in_session: usize,
    /// The timestamp of the first event.
    first: String,
}

impl Query {
    /// The path with its query, behind the prefix of all paths.
    pub fn path(&self) -> String {
        match self {
            Self::Latest => format!("/events?limit={LENGTH}"),
            Self::Session(session) => format!("/events?session_id={}&limit={LENGTH}", events::session(*session)),
            Self::Since(_, timestamp) => format!("/events?since={timestamp}&limit={LENGTH}"),
            Self::Older(event) => format!("/events?before_id=evt_{event:012x}&limit={LENGTH}"),
            Self::Stats => "/stats".to_owned(),
            Self::Nothing => format!("/events?payload.x=nothing&limit={LENGTH}"),
        }
    }

    /// Checks an answer. The inner error says in words what is wrong with it.
    ///
    /// # Errors
    /// It is not an answer at all.
    pub fn check(&self, body: &[u8], expected: &Expected) -> anyhow::Result<Result<Page, String>> {
        if *self == Self::Stats {
            return Ok(check_stats(body, expected)?.map(|()| Page::default()));
        }
        let page = self.scan(body);
        if self.fault(&page, expected).is_none() {
            return Ok(Ok(page));
        }
        // The JSON may be spelled in another way, or hold payloads that look like events.
        let page = self.parse(body)?;
        Ok(match self.fault(&page, expected) {
            None => Ok(page),
            Some(fault) => Err(fault),
        })
    }

    /// What is wrong with a page.
    fn fault(&self, Page { ids, in_session, .. }: &Page, expected: &Expected) -> Option<String> {
        let Expected { first, stored, acknowledged } = expected;
        let count = ids.len() as u64;
        if count > LENGTH {
            return Some(format!("{count} events were given where {LENGTH} were asked for"));
        }
        let dense = !matches!(self, Self::Session(_));
        if let Some(pair) = ids.windows(2).find(|pair| if dense { pair[0] != pair[1] + 1 } else { pair[0] <= pair[1] })
        {
            return Some(format!("event {} is followed by {}", pair[0], pair[1]));
        }
        let (newest, oldest) = (ids.first().copied().unwrap_or(0), ids.last().copied().unwrap_or(0));
        let missing = || format!("event {} had been acknowledged, but the newest is {newest}", acknowledged.newest);
        let too_few = |least: u64| (count < least).then(|| format!("{count} events were given, and there are {least}"));
        match self {
            Self::Latest if newest < acknowledged.newest => Some(missing()),
            Self::Latest => too_few(LENGTH.min(stored + acknowledged.count)),
            Self::Session(_) if *in_session < ids.len() => {
                Some(format!("{} of {count} events are of another session", ids.len() - in_session))
            }
            Self::Session(_) if acknowledged.count > 0 && newest < acknowledged.newest => Some(missing()),
            Self::Session(_) => too_few(LENGTH.min(acknowledged.count)),
            Self::Since(event, _) if acknowledged.newest > *event && newest < acknowledged.newest => Some(missing()),
            Self::Since(event, _) if count > 0 && oldest <= *event => {
                Some(format!("event {oldest} was given, and later ones than {event} were asked for"))
            }
            Self::Since(event, _) if count > 0 && count < LENGTH && oldest != event + 1 => {
                Some(format!("the oldest event after {event} that was given is {oldest}"))
            }
            Self::Since(..) => None,
            Self::Older(event) if count > 0 && newest + 1 != *event => {
                Some(format!("the newest event before {event} that was given is {newest}"))
            }
            Self::Older(event) => too_few(LENGTH.min(event - first)),
            Self::Nothing => (count > 0).then(|| format!("{count} events were given that nobody published")),
            Self::Stats => None,
        }
    }

    /// Reads a page as our server spells it.
    fn scan(&self, body: &[u8]) -> Page {
        const EVENT: &[u8] = br#"{"id":""#;
        const TIMESTAMP: &[u8] = br#""timestamp":""#;
        let id = |at: usize| answer::sequence(body.get(at + EVENT.len()..)?.get(..answer::ID_BYTES)?);
        let ids = memmem::find_iter(body, EVENT).map_while(id).collect();
        let in_session = match self {
            Self::Session(session) => {
                let field = format!(r#""session_id":"{}""#, events::session(*session));
                memmem::find_iter(body, &field).count()
            }
            _ => 0,
        };
        let first = memmem::find(body, TIMESTAMP).map_or(&[][..], |at| &body[at + TIMESTAMP.len()..]);
        let first = first.split(|byte| *byte == b'"').next().unwrap_or_default();
        Page { ids, in_session, first: String::from_utf8_lossy(first).into_owned() }
    }

    /// Reads a page however it is spelled.
    fn parse(&self, body: &[u8]) -> anyhow::Result<Page> {
        #[derive(Deserialize)]
        struct Row {
            id: String,
            session_id: Option<String>,
            timestamp: String,
        }
        let said = || format!("a query was answered with {:?}", String::from_utf8_lossy(&body[..body.len().min(500)]));
        let rows: Vec<Row> = serde_json::from_slice(body).with_context(said)?;
        let ids =
            rows.iter().map(|row| answer::sequence(row.id.as_bytes())).collect::<Option<_>>().with_context(said)?;
        let in_session = match self {
            Self::Session(session) => {
                let session = Some(events::session(*session));
                rows.iter().filter(|row| row.session_id == session).count()
            }
            _ => 0,
        };
        let first = rows.into_iter().next().map(|row| row.timestamp).unwrap_or_default();
        Ok(Page { ids, in_session, first })
    }
}

impl Page {
    /// The newest event, and its timestamp.
    pub fn newest(&self) -> Option<(u64, &str)> {
        Some((*self.ids.first()?, &self.first))
    }

    pub fn oldest(&self) -> Option<u64> {
        self.ids.last().copied()
    }
}

fn check_stats(body: &[u8], expected: &Expected) -> anyhow::Result<Result<(), String>> {
    #[derive(Deserialize)]
    struct Stats {
        total_events: u64,
        by_type: Vec<OfType>,
    }
    #[derive(Deserialize)]
    struct OfType {
        count: u64,
    }
    let Stats { total_events, by_type } = serde_json::from_slice(body).context("the statistics")?;
    let least = expected.stored + expected.acknowledged.count;
    if total_events < least {
        return Ok(Err(format!("the statistics count {total_events} events, and there are {least}")));
    }
    let of_types = by_type.iter().map(|of_type| of_type.count).sum::<u64>();
    if of_types != total_events {
        return Ok(Err(format!("the statistics count {total_events} events, and {of_types} of all types")));
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events 1 to 3 were there before, and 4 to 8 came, of which session 7 has 5 and 8.
    const EXPECTED: Expected = Expected { first: 1, stored: 3, acknowledged: Acknowledged { count: 5, newest: 8 } };
    const SESSION: Expected = Expected { acknowledged: Acknowledged { count: 2, newest: 8 }, ..EXPECTED };

    fn page(ids: &[u64], gap: &str) -> String {
        let rows = ids.iter().map(|id| {
            let session = if matches!(id, 5 | 8) { 7 } else { 6 };
            let timestamp = format!(r#""timestamp":{gap}"2026-11-24T10:00:{id:02}.000000Z""#);
            format!(
                r#"{{"id":{gap}"evt_{id:012x}","session_id":{gap}"session-{session:06}","payload":{{"id":7}},{timestamp}}}"#
            )
        });
        format!("[{}]", rows.collect::<Vec<_>>().join(","))
    }

    /// Expects this fault, or none, in either spelling.
    fn check(query: &Query, expected: &Expected, ids: &[u64], fault: &str) {
        for gap in ["", " "] {
            let checked = query.check(page(ids, gap).as_bytes(), expected).expect("an answer");
            let told = checked.as_ref().map_or_else(String::as_str, |_| "");
            assert_eq!(told, fault, "{query:?}: {ids:?}");
            if let (Ok(page), [newest, ..]) = (checked, ids) {
                let timestamp = format!("2026-11-24T10:00:{newest:02}.000000Z");
                assert_eq!((page.newest(), page.oldest()), (Some((*newest, &*timestamp)), ids.last().copied()));
            }
        }
    }

    #[test]
    fn a_query_of_the_newest_events_is_checked() {
        let all = (1..=8).rev().collect::<Vec<_>>();
        check(&Query::Latest, &EXPECTED, &all, "");
        check(&Query::Latest, &EXPECTED, &[9, 8, 7, 6, 5, 4, 3, 2, 1], "");
        check(&Query::Latest, &EXPECTED, &all[1..], "event 8 had been acknowledged, but the newest is 7");
        check(&Query::Latest, &EXPECTED, &all[..7], "7 events were given, and there are 8");
        check(&Query::Latest, &EXPECTED, &[8, 7, 5, 4, 3, 2, 1], "event 7 is followed by 5");
        check(&Query::Latest, &EXPECTED, &[8, 8, 7], "event 8 is followed by 8");
        check(&Query::Latest, &EXPECTED, &[], "event 8 had been acknowledged, but the newest is 0");
        let many = (1..=101).rev().collect::<Vec<_>>();
        check(&Query::Latest, &EXPECTED, &many, "101 events were given where 100 were asked for");
    }

    #[test]
    fn a_query_of_a_session_is_checked() {
        let session = Query::Session(7);
        check(&session, &SESSION, &[8, 5], "");
        check(&session, &SESSION, &[8, 6, 5], "1 of 3 events are of another session");
        check(&session, &SESSION, &[5, 8], "event 5 is followed by 8");
        check(&session, &SESSION, &[5], "event 8 had been acknowledged, but the newest is 5");
        check(&session, &SESSION, &[8], "1 events were given, and there are 2");
    }

    #[test]
    fn a_query_after_a_time_is_checked() {
        let since = |event| Query::Since(event, "2026-11-24T10:00:06.000000Z".to_owned());
        check(&since(6), &EXPECTED, &[8, 7], "");
        check(&since(6), &EXPECTED, &[9, 8, 7], "");
        check(&since(8), &EXPECTED, &[], "");
        check(&since(6), &EXPECTED, &[8, 7, 6], "event 6 was given, and later ones than 6 were asked for");
        check(&since(5), &EXPECTED, &[8, 7], "the oldest event after 5 that was given is 7");
        check(&since(5), &EXPECTED, &[7, 6], "event 8 had been acknowledged, but the newest is 7");
        check(&since(5), &EXPECTED, &[], "event 8 had been acknowledged, but the newest is 0");
    }

    #[test]
    fn a_query_before_an_id_is_checked() {
        check(&Query::Older(5), &EXPECTED, &[4, 3, 2, 1], "");
        check(&Query::Older(1), &EXPECTED, &[], "");
        check(&Query::Older(5), &EXPECTED, &[3, 2, 1], "the newest event before 5 that was given is 3");
        check(&Query::Older(5), &EXPECTED, &[4, 3, 2], "3 events were given, and there are 4");
    }

    #[test]
    fn statistics_are_checked() {
        let check = |body: &str, fault: &str| {
            let checked = Query::Stats.check(body.as_bytes(), &EXPECTED).expect("an answer");
            assert_eq!(checked.err().unwrap_or_default(), fault);
        };
        check(r#"{"total_events":9,"by_type":[{"event_type":"a","count":4},{"count":5}]}"#, "");
        check(r#"{"total_events":7,"by_type":[{"count":7}]}"#, "the statistics count 7 events, and there are 8");
        check(r#"{"total_events":9,"by_type":[{"count":7}]}"#, "the statistics count 9 events, and 7 of all types");
    }

    #[test]
    fn a_body_that_is_no_answer_is_an_error() {
        for body in ["", "{}", "[1]", r#"[{"id":"7","session_id":null,"timestamp":""}]"#] {
            assert!(Query::Latest.check(body.as_bytes(), &EXPECTED).is_err(), "{body}");
        }
    }
}
