//! Crashes, power cuts and orderly restarts, after which another server opens the files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::model::Unacknowledged;
use super::readers::GROUPS;
use super::server::Server;
use super::subscriber::{Over, Request, Subscriber};
use super::world::World;
use crate::config::Durability;
use crate::event::Seq;
use crate::store::{Sidecar, beside};

/// The header of a write-ahead log, and a page of it with its own.
const WAL_HEADER_BYTES: usize = 32;
const WAL_PAGE_BYTES: usize = 24 + 4_096;
/// A stream ends within this many steps of its task.
const STEPS_MAX: usize = 10_000;

impl World {
    /// Crashes: what is left is what the files hold at this moment.
    pub fn crash(self) -> Self {
        self.end_at_once(None, None, false)
    }

    /// Cuts the power: of what is not synced, any sectors may be lost.
    pub fn cut_power(self) -> Self {
        match self.config.durability {
            // A power cut may damage the file then.
            Durability::Off => self,
            Durability::Full | Durability::Normal => self.end_at_once(None, None, true),
        }
    }

    /// Crashes after a commit that was never acknowledged, or in the middle of its last write.
    pub fn crash_in_commit(mut self) -> Self {
        let log = beside(&self.config.database_path, "-wal");
        let wal_bytes = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let before = wal_bytes();
        self.server.parts.write_unanswered();
        let (after, is_torn) = (wal_bytes(), self.random.one_in(2));
        let cut = (is_torn && after > before).then(|| before + self.random.below(after - before));
        let unacknowledged = self.model.unacknowledged(cut.is_some());
        self.end_at_once(Some(unacknowledged), cut, false)
    }

    /// Restarts in order: nothing more is taken in, everything in the queue is stored, and every subscriber gets
    /// everything.
    pub fn restart(mut self) -> Self {
        while self.fan_out() {}
        self.server.store.close();
        let Server { store, parts, hub, .. } = self.server;
        let commits = parts.finish();
        self.model.is_ending = true;
        self.model.settle(&store, commits.len(), Seq::MAX);
        assert!(self.model.unanswered.is_empty(), "a producer was left without an answer");
        if !self.model.disk_was_full {
            self.durables.must_be_stored(&store);
        }
        hub.run(&commits);
        for subscriber in &mut self.subscribers {
            assert!(subscriber.is_awake(), "the task was not woken for the end of the stream");
            let over = (0..STEPS_MAX).find_map(|_| subscriber.step(&store, &self.model));
            match over.expect("its stream ends") {
                Over::Served => subscriber.must_have_everything(&self.model),
                Over::Complete | Over::TooSlow => {}
            }
        }
        let clients: Vec<Request> = self.subscribers.drain(..).map(Subscriber::disconnect).collect();
        self.groups.clear();
        drop((store, hub, self.blocked.take()));
        let server = Server::open(&self.config);
        Self { server, ..self }.reconnect(clients, None)
    }

    fn end_at_once(
        mut self,
        unacknowledged: Option<Unacknowledged>,
        wal_bytes: Option<u64>,
        is_power_cut: bool,
    ) -> Self {
        self.crashes += 1;
        let after = self.folder.path().join(format!("events-{}.db", self.crashes));
        copy_files(&self.config.database_path, &after);
        if let Some(bytes) = wal_bytes {
            let log = OpenOptions::new().write(true).open(beside(&after, "-wal")).expect("a log");
            log.set_len(bytes).expect("a shorter log");
        }
        if is_power_cut {
            Sidecar::copy_to_another_boot(&beside(&self.config.database_path, ".lock"), &beside(&after, ".lock"));
            self.tear(&beside(&after, "-wal"));
        }
        self.config.database_path = after;
        let clients: Vec<Request> = self.subscribers.drain(..).map(Subscriber::disconnect).collect();
        self.groups.clear();
        drop((self.server, self.blocked.take()));
        let server = Server::open(&self.config);
        if is_power_cut {
            self.model.lost_its_end(&server.store, self.config.durability == Durability::Full);
            self.durables.lost_their_end(self.config.durability == Durability::Full);
        }
        Self { server, ..self }.reconnect(clients, unacknowledged)
    }

    /// Overwrites some unsynced sectors of a write-ahead log with zeros.
    fn tear(&mut self, log: &Path) {
        const SECTOR: usize = 512;
        let (from, to) = (self.synced_pages, self.server.parts.log().0);
        let [from, to] = [from, to].map(|pages| WAL_HEADER_BYTES + pages * WAL_PAGE_BYTES);
        let Ok(log) = OpenOptions::new().write(true).open(log) else { return };
        for at in (from..to).step_by(SECTOR) {
            if self.random.one_in(12) {
                log.write_all_at(&[0; SECTOR][..SECTOR.min(to - at)], at as u64).expect("written");
            }
        }
    }

    /// Checks a server that has just opened the files, and reconnects all clients.
    fn reconnect(mut self, clients: Vec<Request>, unacknowledged: Option<Unacknowledged>) -> Self {
        let store = &self.server.store;
        self.filtered_deletion = None;
        self.model.reopened(store, unacknowledged);
        self.durables.reopened(store);
        self.check_all();
        // A start syncs the write-ahead log that it finds; the store does not count these pages yet.
        let wal_bytes = std::fs::metadata(beside(&self.config.database_path, "-wal")).map_or(0, |log| log.len());
        self.synced_pages = (wal_bytes as usize).saturating_sub(WAL_HEADER_BYTES) / WAL_PAGE_BYTES;
        let last = self.model.last();
        for request in clients {
            self.connect(Request {
                start: request.start.min(last),
                end: request.end.map(|end| end.min(last)),
                ..request
            });
        }
        for name in GROUPS {
            if self.random.one_in(2) {
                self.join_group(name);
            }
        }
        self
    }
}

/// Copies a database and its write-ahead log, as they are at this moment.
pub fn copy_files(from: &Path, to: &Path) {
    for end in ["", "-wal"] {
        let copied = std::fs::copy(beside(from, end), beside(to, end));
        assert!(copied.is_ok() || end == "-wal", "{copied:?}");
    }
}
