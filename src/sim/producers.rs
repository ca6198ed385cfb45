//! What producers ask of the store, and what the writer and the checkpointer do.

use std::task::{Context, Waker};

use super::event::ModelEvent;
use super::filter::ModelFilter;
use super::unanswered::Unanswered;
use super::world::{FilteredDeletion, World};
use crate::event::Seq;
use crate::record::{AckLevel, Failure};
use crate::store::Receipt;
use crate::wire::Batch;

impl World {
    /// Appends a batch, or tries again to append the blocked one. Returns whether one was taken into the queue.
    pub fn append(&mut self) -> bool {
        if let Some((mut appending, batch)) = self.blocked.take() {
            let has_space = appending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            match has_space {
                true => self.model.unanswered.push_back(batch),
                false => self.blocked = Some((appending, batch)),
            }
            return has_space;
        }
        let events: Vec<_> = (0..self.random.below(6)).map(|_| self.model.new_event(&mut self.random)).collect();
        let mut batch = Batch::default();
        events.iter().for_each(|event| event.push_to(&mut batch, &self.config.event_types));
        self.append_batch(events, batch, None)
    }

    /// Sends a stored event with a key again. Returns whether it was taken into the queue.
    pub fn repeat(&mut self) -> bool {
        let keyed = self.model.keyed(&mut self.random);
        let Some((seq, event)) = keyed.filter(|_| self.blocked.is_none()) else { return false };
        let mut batch = Batch::default();
        event.push_to(&mut batch, &self.config.event_types);
        self.append_batch(vec![event], batch, Some(seq))
    }

    pub fn append_batch(&mut self, events: Vec<ModelEvent>, batch: Batch, repeats: Option<Seq>) -> bool {
        let (receipt, answer) = Receipt::at(self.random.pick(&[AckLevel::Synced, AckLevel::Synced, AckLevel::Stored]));
        let cost = (events.len().clamp(1, self.config.max_queue_size), batch.bytes().div_ceil(1024).max(1));
        let unanswered = Unanswered::new(events, repeats, cost, answer, &self.server);
        if self.random.one_in(4) {
            let store = self.server.store.clone();
            self.blocked = Some((Box::pin(async move { store.append(batch, receipt).await }), unanswered));
            return self.append();
        }
        let sum = self.model.unanswered.iter().fold(cost, |sum, of| (sum.0 + of.cost.0, sum.1 + of.cost.1));
        let fits = sum.0 <= self.config.max_queue_size && sum.1 <= self.config.max_queue_bytes / 1024;
        let expected = if fits { Ok(()) } else { Err(Failure::QueueFull) };
        assert_eq!(self.server.store.try_append(batch, receipt), expected);
        match fits {
            true => self.model.unanswered.push_back(unanswered),
            false => unanswered.must_be_unavailable(),
        }
        fits
    }

    pub fn write(&mut self) -> bool {
        let (last, waiting) = (self.model.last(), self.server.parts.commits.len());
        let log_before = self.server.parts.log();
        let wrote = self.server.parts.write();
        self.observe_syncs(log_before);
        self.model.settle(&self.server.store, waiting, last);
        let disk_was_full = self.model.disk_was_full;
        self.durables.settle(&self.server.store, |failure| failure == Failure::StorageFull && disk_was_full);
        let is_due = self.model.last() > last && self.server.store.audience().is_present();
        let handed_on = self.server.parts.commits.len() - waiting;
        assert_eq!(handed_on, usize::from(is_due), "a commit goes to the fan-out if and only if there is an audience");
        wrote
    }

    /// Notes how much of the write-ahead log is synced after a step of the writer.
    pub fn observe_syncs(&mut self, (pages_before, moved_before, _): (usize, usize, bool)) {
        let (pages, moved, is_synced) = self.server.parts.log();
        self.synced_pages = match () {
            // Nothing was committed. After a start the store does not count the pages that it found, which it has
            // synced.
            () if pages == 0 && pages_before == 0 => self.synced_pages,
            () if is_synced => pages,
            // The write-ahead log has started over.
            () if pages < pages_before || moved < moved_before => 0,
            // A checkpoint came before the commit, and synced the pages that it moved.
            () if moved > moved_before => pages_before,
            () => self.synced_pages,
        };
    }

    pub fn checkpoint(&mut self) -> bool {
        let did = self.server.parts.checkpoint();
        if did {
            self.synced_pages = self.synced_pages.max(self.server.parts.log().0);
        }
        did
    }

    pub fn delete(&mut self) {
        let before = (!self.random.one_in(4)).then(|| self.model.time(&mut self.random));
        let store = self.server.store.clone();
        let deleting = async move { store.delete(before, ModelFilter::default().real).await };
        self.model.delete_oldest(before, Box::pin(deleting));
    }

    /// Begins a deletion by filter, or continues one whose last slice is deleted. Returns whether it did.
    pub fn delete_by_filter(&mut self) -> bool {
        if self.filtered_deletion.is_none() && self.random.one_in(6) {
            let before = self.random.one_in(3).then(|| self.model.time(&mut self.random));
            let (filter, last) = (ModelFilter::random(&mut self.random), self.server.store.committed());
            self.filtered_deletion = Some(FilteredDeletion { filter, before, after: Seq::ZERO, last });
        }
        self.continue_filtered_deletion()
    }

    pub fn continue_filtered_deletion(&mut self) -> bool {
        if self.model.is_deleting_slice() {
            return false;
        }
        let Some(FilteredDeletion { filter, before, after, last }) = self.filtered_deletion.take() else {
            return false;
        };
        let store = self.server.store.clone();
        let (chosen, reached) = store.reader().choose(filter.real.clone(), after, last, before).expect("read");
        let is_before = |event: &ModelEvent| before.is_none_or(|before| event.time < before);
        let passing = self.model.stored_between(&filter, after, reached.unwrap_or(last));
        let expected: Vec<_> = passing.filter(|(_, event)| is_before(event)).map(|(seq, _)| seq).collect();
        assert_eq!(chosen, expected, "{:?} up to {reached:?}", filter.real);
        assert!(reached.is_none_or(|reached| reached > after), "no progress");
        if !chosen.is_empty() {
            let these = chosen.clone();
            self.model.delete_chosen(chosen, Box::pin(async move { store.delete_chosen(these).await }));
        }
        self.filtered_deletion = reached.map(|after| FilteredDeletion { filter, before, after, last });
        true
    }

    pub fn limit_disk(&mut self) {
        self.model.disk_was_full = true;
        self.server.parts.limit_disk((!self.random.one_in(3)).then(|| self.random.below(3)));
    }

    /// Makes the free space fall below `FREE_SPACE_MIN_BYTES`, or rise above it again.
    pub fn keep_free(&mut self) {
        self.model.disk_was_full = true;
        let bytes = self.random.pick(&[0, 1 << 60]);
        self.server.parts.keep_free(bytes);
    }

    pub fn fan_out(&mut self) -> bool {
        let commits_max = 1 + self.random.below(3) as usize;
        self.server.fan_out(commits_max)
    }
}
