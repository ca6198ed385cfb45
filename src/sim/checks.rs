//! The store's answers to queries, compared with the model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::event::{ModelEvent, TYPES};
use super::filter::ModelFilter;
use super::world::World;
use crate::event::{Field, Filter, Seq, Timestamp, TimestampText};
use crate::store::{Order, Query, TypeStats};

impl World {
    /// Checks everything that is stored, and the statistics, against the model.
    pub fn check_all(&mut self) {
        self.check(&Query::default(), &ModelFilter::default(), usize::MAX);
        let now = self.model.time(&mut self.random);
        let stats = self.server.store.reader().stats(now).expect("read");
        let count = |filter: &ModelFilter| self.model.stored(filter).count() as u64;
        let by_type = TYPES.into_iter().filter_map(|event_type| {
            let filter = ModelFilter::of_type(event_type);
            let last_seen = self.model.stored(&filter).next_back()?.1.time.to_string();
            Some(TypeStats { event_type: event_type.to_owned(), count: count(&filter), last_seen })
        });
        let mut by_type: Vec<_> = by_type.collect();
        by_type.sort_by(|a, b| b.count.cmp(&a.count).then(a.event_type.cmp(&b.event_type)));
        assert_eq!((stats.total_events, stats.by_type), (count(&ModelFilter::default()), by_type));
        let newest = self.model.stored(&ModelFilter::default()).next_back().map_or(now, |(_, event)| event.time);
        let is_recent = |(_, event): &(Seq, &ModelEvent)| event.time.0 > now.max(newest).0 - 3_600_000_000;
        assert_eq!(stats.events_last_hour, self.model.stored(&ModelFilter::default()).filter(is_recent).count() as u64);
        let (extent, last) = (self.server.store.reader().extent().expect("read"), self.model.last());
        let oldest = self.model.stored(&ModelFilter::default()).next().map_or(last.next(), |(seq, _)| seq);
        assert_eq!((extent.oldest, extent.newest), (oldest, last));
    }

    pub fn query(&mut self) {
        let end = self.model.last().0 + 3;
        let filter = ModelFilter::random(&mut self.random);
        let query = Query {
            filter: filter.real.clone(),
            after: Seq(if self.random.one_in(2) { self.random.below(end) } else { 0 }),
            before: self.random.one_in(3).then(|| Seq(self.random.below(end))),
            since: self.random.one_in(3).then(|| self.model.time(&mut self.random)),
            until: self.random.one_in(3).then(|| self.model.time(&mut self.random)),
            order: self.random.pick(&[Order::OldestFirst, Order::NewestFirst]),
        };
        let limit = if self.random.one_in(2) { usize::MAX } else { 1 + self.random.below(20) as usize };
        self.check(&query, &filter, limit);
        let through = Seq(self.random.below(end)).min(self.model.last());
        self.latest(&filter, through);

        let (seq, any) = (Seq(self.random.below(end)), ModelFilter::default());
        let expected = self.model.stored_between(&any, seq.prev(), seq).next();
        let found = self.server.store.reader().event(&seq.id().to_string(), &Filter::default()).expect("read");
        assert_eq!(found, expected.map(|(seq, event)| event.json(seq).into_bytes()));
    }

    /// The newest event of each value of some field, up to `through`.
    pub fn latest(&mut self, filter: &ModelFilter, through: Seq) -> Vec<Seq> {
        let field = self.random.pick(&Field::ALL);
        let mut newest = BTreeMap::new();
        for (seq, event) in self.model.stored_between(filter, Seq::ZERO, through) {
            newest.extend(event.field(field).map(|value| (value, seq)));
        }
        let mut expected: Vec<_> = newest.into_values().collect();
        expected.sort_unstable();
        let found = self.server.store.reader().latest_by(field, &filter.real, through, usize::MAX).expect("read");
        assert_eq!(found, expected, "{field:?} of {:?} up to {}", filter.real, through.id());
        let few = 1 + self.random.below(3) as usize;
        let some = self.server.store.reader().latest_by(field, &filter.real, through, few).expect("read");
        assert!(some.len() == few.min(found.len()) && some.iter().all(|seq| found.contains(seq)), "{some:?}");
        found
    }

    /// Checks what the store finds and counts against a scan of the model's list.
    fn check(&self, query: &Query, filter: &ModelFilter, limit: usize) {
        let passing = self.model.stored(filter).filter(|(seq, event)| {
            *seq > query.after
                && query.before.is_none_or(|before| *seq < before)
                && query.since.is_none_or(|since| event.time > since)
                && query.until.is_none_or(|until| event.time < until)
        });
        let mut expected: Vec<_> = passing.map(|(seq, event)| (seq, event.time, event.json(seq))).collect();
        assert_eq!(self.server.store.reader().count(query).expect("read"), expected.len() as u64, "{query:?}");
        if query.order == Order::NewestFirst {
            expected.reverse();
        }
        self.check_pages(query, &expected);
        expected.truncate(limit);
        let mut found = Vec::new();
        let reached = self.server.store.reader().scan(query, |event| {
            let mut json = Vec::new();
            event.write_json(&mut json, &mut TimestampText::default());
            found.push((event.seq, event.time, String::from_utf8(json).expect("UTF-8")));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(found, expected, "{query:?} limit {limit}");
        assert_eq!(
            reached.expect("read"),
            (found.len() == limit).then(|| found[limit - 1].0),
            "{query:?} limit {limit}"
        );
    }

    /// Checks the same in pages, each of which goes on where the one before it ended.
    fn check_pages(&self, query: &Query, expected: &[(Seq, Timestamp, String)]) {
        let (mut rest, mut found) = (query.clone(), Vec::new());
        loop {
            let before = found.len();
            let reached = self.server.store.reader().scan_some(&rest, |event| {
                found.push(event.seq);
                if found.len() < before + 7 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let Some(reached) = reached.expect("read") else { break };
            let is_further = match rest.order {
                Order::OldestFirst => reached > rest.after,
                Order::NewestFirst => rest.before.is_none_or(|before| reached < before),
            };
            assert!(is_further, "{query:?} makes no progress");
            rest.go_on_after(reached);
        }
        assert!(found.iter().eq(expected.iter().map(|(seq, ..)| seq)), "{query:?} in pages: {found:?}");
    }
}
