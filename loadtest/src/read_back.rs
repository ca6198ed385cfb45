//! Whether what is stored is what was sent: all events of a run, or a sample of a long one.

use std::ops::Range;

use anyhow::{Context, ensure};
use serde_json::value::RawValue;

use crate::answer;
use crate::run::Run;
use crate::verification::BLOCK;
use crate::workload::Site;

/// Compares what was acknowledged with how many events the server has stored since the run began, and with the events
/// themselves. Returns how many of these were read back.
pub async fn check(site: &Site, run: &Run) -> anyhow::Result<u64> {
    let stored = site.target.stored().await? + site.deleted - site.stored;
    run.verification.borrow_mut().check_stored(stored);
    if !run.verification.borrow().is_clean() || !site.target.has_pages {
        return Ok(0);
    }
    let (mut connection, mut compared) = (site.open().await?, 0);
    let (blocks, end) = {
        let verification = run.verification.borrow();
        (verification.sample.blocks(), verification.last() + 1)
    };
    // The oldest events of the run may have been deleted.
    let oldest = site.newest + 1 + site.deleted.saturating_sub(site.stored);
    for block in blocks {
        let mut left = block.max(oldest)..end.min(block + BLOCK);
        while !left.is_empty() {
            let (limit, before) = (left.end - left.start, left.end);
            let path = format!("/events?before_id=evt_{before:012x}&limit={limit}");
            let answered = connection.request(&site.target.heads.get(&path)).await;
            let (status, body) = answered.context("read back what was stored")?;
            let said = || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            ensure!(status == 200, "{path}: the server answered {status} {}", said());
            let events: Vec<&RawValue> = serde_json::from_slice(&body).with_context(said)?;
            left = compare(run, left, &events)?;
            compared += before - left.end;
            if left.end == before {
                run.violation(|| format!("event {} was acknowledged, and is not stored", before - 1));
                break;
            }
        }
    }
    Ok(compared)
}

/// Compares the newest of the expected events with these, newest first. Returns those that are left.
fn compare(run: &Run, expected: Range<u64>, events: &[&RawValue]) -> anyhow::Result<Range<u64>> {
    let mut verification = run.verification.borrow_mut();
    let mut end = expected.end;
    for event in events {
        let delivery = answer::of_delivery(event.get().as_bytes())?.context("an event has no id")?;
        if end == expected.start || delivery.sequence != end - 1 {
            break;
        }
        end -= 1;
        if !verification.sample.is_as_sent(end, delivery.content) {
            verification.violation(|| format!("event {end} is not stored as it was sent: {event}"));
        }
    }
    Ok(expected.start..end)
}
