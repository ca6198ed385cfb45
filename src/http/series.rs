//! `GET /stats/series`: counts over time.

use std::time::Duration;

use hyper::Response;
use serde_json::json;

use super::parameters::Parameters;
use super::reading::reading;
use super::request::Request;
use super::response::{self, Body};
use crate::event::Timestamp;
use crate::store::{Intervals, Series};
use crate::wire::Refusal;

/// The values of `interval`.
const INTERVALS: [(&str, Duration); 4] = [
    ("10s", Duration::from_secs(10)),
    ("1m", Duration::from_secs(60)),
    ("1h", Duration::from_secs(3_600)),
    ("1d", Duration::from_secs(86_400)),
];

/// What is shown without `since`.
const USUAL_SPAN_US: i64 = 3_600_000_000;

/// As many as there are pixels on a wide screen, several times over; a week by the minute fits.
const INTERVALS_MAX: usize = 11_000;

/// Intervals of less than a minute are counted when they are asked for: an hour at a time, which has a part of one more.
const SHORT_INTERVALS_MAX: usize = 361;

/// What a client asks for.
struct Asked {
    intervals: Intervals,
    types: Option<Vec<String>>,
    is_grouped: bool,
}

impl Asked {
    fn of(parameters: &Parameters<'_>, now: Timestamp) -> Result<Self, Refusal> {
        let until = parameters.time("until", Timestamp::parse_ceil)?.unwrap_or(Timestamp(now.0 + 1));
        let since = parameters.time("since", Timestamp::parse_floor)?.unwrap_or(Timestamp(until.0 - USUAL_SPAN_US));
        let fits = |intervals: &Intervals| intervals.number <= INTERVALS_MAX;
        let [_, whole_minutes @ ..] = INTERVALS.map(|(_, length)| Intervals::between(since, until, length));
        let intervals = match parameters.get("interval") {
            None => whole_minutes.into_iter().find(fits).unwrap_or(whole_minutes[2]),
            Some(asked) => {
                let names = INTERVALS.map(|(name, _)| name);
                let known = INTERVALS.iter().find(|(name, _)| *name == asked);
                let what = || format!("'interval' must be one of {}", names.join(", "));
                let (_, length) = known.ok_or_else(|| Refusal::parameter("interval", what(), "enum"))?;
                Intervals::between(since, until, *length)
            }
        };
        let max = if intervals.length < INTERVALS[1].1 { SHORT_INTERVALS_MAX } else { INTERVALS_MAX };
        if intervals.number > max {
            let what = format!(
                "from 'since' to 'until' are {} intervals, and at most {max} of this length are counted at a time: ask for a \
                 longer 'interval', or a shorter time",
                intervals.number
            );
            return Err(Refusal::parameter("interval", what, "out_of_range"));
        }
        let is_grouped = match parameters.get("group_by") {
            None => false,
            Some("event_type") => true,
            Some(_) => {
                return Err(Refusal::parameter("group_by", "'group_by' must be event_type".to_owned(), "enum"));
            }
        };
        let types = parameters.get("event_type").filter(|types| !types.is_empty());
        let types = types.map(|types| types.split(',').map(|name| name.trim().to_owned()).collect());
        Ok(Self { intervals, types, is_grouped })
    }

    /// A row for each interval, in the order of time, with zeros: a chart would draw a line across what is missing.
    fn rows(&self, series: &Series) -> Response<Body> {
        let mut rows = Vec::new();
        for index in 0..self.intervals.number {
            let time = self.intervals.start_of(index).to_string();
            match self.is_grouped {
                false => {
                    let count: u64 = series.values().map(|counts| counts[index]).sum();
                    rows.push(json!({ "time": time, "count": count }));
                }
                true => rows.extend(series.iter().map(
                    |(event_type, counts)| json!({ "time": time, "event_type": event_type, "count": counts[index] }),
                )),
            }
        }
        response::json(serde_json::to_string(&rows).expect("texts and numbers"))
    }
}

pub(super) async fn series(request: &Request<'_>) -> response::Result {
    request.caller.principal.sees_all()?;
    let asked = Asked::of(&request.parameters(), Timestamp::now())?;
    let (intervals, types) = (asked.intervals, asked.types.clone());
    let read = reading(&request.pipeline.store, move |reader| reader.series(&intervals, types.as_deref())).await?;
    Ok(asked.rows(&read.ok_or(Refusal::NotRolledUp)?))
}
