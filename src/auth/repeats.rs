//! What happens again and again, such as refused logins of one address, is one line of the audit a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::counted::Counted;
use crate::event::Timestamp;

/// How long one line stands for all that follow it.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Clients with a period of their own at one time. A flood from more addresses shares one period, so that it fills
/// neither the memory (some 2 MiB) nor the file.
const CLIENTS_MAX: usize = 4096;

/// Who has been written down within the last period.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<Repeated, Period>>);

/// What happened, and whose it is; `None` for all clients beyond [`CLIENTS_MAX`].
type Repeated = (&'static str, Option<Counted>);

struct Period {
    began: Instant,
    left_out: u64,
    /// The line with which it began.
    line: Map<String, Value>,
}

impl Repeats {
    /// The line to write, or `None` if it is left out and counted.
    pub fn note(
        &self,
        what: &'static str,
        whose: &Counted,
        line: impl FnOnce() -> Map<String, Value>,
    ) -> Option<Map<String, Value>> {
        let mut periods = self.0.lock();
        let mut repeated = (what, Some(whose.clone()));
        if periods.len() >= CLIENTS_MAX && !periods.contains_key(&repeated) {
            repeated.1 = None;
        }
        if let Some(period) = periods.get_mut(&repeated) {
            period.left_out += 1;
            return None;
        }
        let line = line();
        periods.insert(repeated, Period { began: Instant::now(), left_out: 0, line: line.clone() });
        Some(line)
    }

    /// Ends the periods that are at least this old. Each in which something was left out gives a line that says how much.
    pub fn end(&self, age: Duration) -> Vec<Map<String, Value>> {
        let mut lines = Vec::new();
        self.0.lock().retain(|(_, whose), period| {
            let is_open = period.began.elapsed() < age;
            if !is_open && period.left_out > 0 {
                let mut line = std::mem::take(&mut period.line);
                line.insert("time".into(), Timestamp::now().to_string().into());
                if whose.is_none() {
                    line.insert("who".into(), "several".into());
                    line.insert("from".into(), "several".into());
                }
                line.insert("left_out".into(), period.left_out.into());
                lines.push(line);
            }
            is_open
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repeats_are_counted_and_a_flood_of_clients_shares_one_period() {
        let repeats = Repeats::default();
        let line = || Map::from_iter([("from".to_owned(), json!("somewhere"))]);
        let note = |n: u32| repeats.note("login", &Counted::Address(std::net::Ipv4Addr::from(n).into()), line);
        assert!(note(0).is_some() && note(0).is_none() && note(0).is_none() && note(1).is_some());
        assert!(repeats.end(PERIOD).is_empty(), "the minute is not over");
        let ended = repeats.end(Duration::ZERO);
        assert_eq!(ended.len(), 1);
        assert_eq!((&ended[0]["from"], &ended[0]["left_out"]), (&json!("somewhere"), &json!(2)));
        assert!(note(0).is_some(), "another minute");
        let written = (1..100_000).filter(|n| note(*n).is_some()).count();
        assert_eq!(written, CLIENTS_MAX, "one of them for all that are too many");
        let ended = repeats.end(Duration::ZERO);
        assert_eq!((ended.len(), &ended[0]["from"]), (1, &json!("several")));
        assert_eq!(ended[0]["left_out"], json!(99_999 - CLIENTS_MAX));
        assert!(repeats.0.lock().is_empty());
    }
}
