//! A server that is ended by a fault and restarted again and again, and checked against one record after each restart.

use std::path::Path;
use std::thread;

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::consumer::Consumer;
use super::faulty_disk::*;
use super::producers::{Producer, Way};
use super::record::{Loss, Record};
use crate::support::*;

pub const WAYS: [Way; 4] = [Way::Messages, Way::Arrays, Way::Requests, Way::Lines];

/// A server and its *lives*: a life lasts from a start to the fault that ends it.
pub struct Lives {
    pub disk: Disk,
    pub dice: Random,
    pub server: Server,
    pub record: Record,
    /// One of these faults ends each life.
    faults: &'static [Fault],
    pub round: u64,
    /// Whether the disk has less free space than `FREE_SPACE_MIN_BYTES`, so that events are refused.
    is_full: bool,
    test: &'static str,
}

/// Lives before a test begins with an empty file: each check reads the whole file, so it takes longer as the file
/// grows.
pub const LIVES_OF_A_FILE: u64 = 50;

pub const KILLS: &[Fault] = &[Fault::KillBefore, Fault::KillAfter];
pub const CUTS: &[Fault] = &[Fault::PowerCut];

impl Lives {
    /// Starts a server on the database in a folder. `None` where the shim cannot be compiled.
    pub fn begin(test: &'static str, faults: &'static [Fault], durability: &str, folder: TempDir) -> Option<Lives> {
        let disk = if faults == CUTS { Disk::with_power_cuts(test)? } else { Disk::new(test)? };
        let server = disk.server(folder, &[("DURABILITY", durability)]);
        let record = Record::new(durability);
        let mut lives = Lives { disk, dice: Random::seeded(), server, record, faults, round: 0, is_full: false, test };
        lives.server.restart();
        lives.record.adopt(&lives.server);
        Some(lives)
    }

    /// Ends the life at the n-th of these operations from now on.
    pub fn end_at(&mut self, nth: u64, operations: u32, file: &'static str) {
        let fault = self.faults[self.dice.below(self.faults.len() as u64) as usize];
        self.disk.inject(Injection { fault, operations, nth, file, seed: self.dice.below(1 << 40) });
    }

    /// Connects a producer for each way.
    pub fn producers(&mut self, ways: &[Way], name: &str, acks: &[Option<&'static str>]) -> Vec<Producer> {
        self.round += 1;
        let open = |way: &Way| {
            let ack = acks[self.dice.below(acks.len() as u64) as usize];
            Producer::open(&self.server, *way, &format!("{name}{}{way:?}", self.round), ack)
        };
        ways.iter().map(open).collect()
    }

    /// Publishes with all producers until each has published `most` events or the server is gone. The server may refuse
    /// events only while the disk is full.
    pub fn publish(&self, producers: Vec<Producer>, most: usize, beside: impl FnOnce(&Record) + Send) {
        thread::scope(|scope| {
            let record = &self.record;
            for producer in producers {
                scope.spawn(move || {
                    let mut refused = producer.publish(record, most);
                    if self.is_full {
                        refused.retain(|why| !why.contains("disk is full"));
                    }
                    assert_eq!(refused, Vec::<String>::new());
                });
            }
            scope.spawn(move || beside(record));
        });
    }

    /// Makes the disk full, or no longer full, and restarts the server. On a full disk events are refused, while
    /// deletions and confirmations work.
    fn fill_disk(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.is_full = is_full;
            self.server.set("FREE_SPACE_MIN_BYTES", is_full.then_some("1024GiB"));
            self.server.stop();
            // The server warns of a full disk.
            if is_full {
                self.server.allow_noise()
            } else {
                self.server.forbid_noise()
            }
            self.server.restart();
        }
    }

    /// Waits for the end of this life, restarts the server and checks what is stored.
    pub fn next(&mut self, loss: Loss) {
        self.server.await_exit();
        self.disk.clear();
        self.disk.boot(self.round + 1);
        self.server.restart();
        self.record.check(&self.server, loss);
    }

    /// One life with every kind of load: publishes, deletes and confirms until a fault ends it. One life in eight runs
    /// on a full disk, one in six stops on SIGTERM, and in one of four the next start is ended as well.
    pub fn live(&mut self, acks: &[Option<&'static str>], loss: Loss) {
        let is_full = self.dice.below(8) == 0;
        self.fill_disk(is_full);
        self.disk.syncs_take([0, 0, 200, 2_000][self.dice.below(4) as usize]);
        let name = ["plain", "plain", "plain", "keyed", "keyed", "keyed", "large"][self.dice.below(7) as usize];
        let producers = self.producers(&WAYS, name, acks);
        let (deletes, stops) = (is_full || self.dice.below(4) == 0, self.dice.below(6) == 0);
        let (boundary, session) = (self.dice.below(1 + self.record.known() as u64 / 4), self.dice.below(14));
        let changes = if stops { 40 } else { [20, 100, 100, 400, 2_500][self.dice.below(5) as usize] };
        let wire = Wire::connect(self.server.addr);
        let name = ["board", "mail", "marks"][self.dice.below(3) as usize];
        let consumer = (self.dice.below(2) == 0).then(|| Consumer::open(&self.server, name, &self.record));
        let (nth, each) = (1 + self.dice.below(changes), 1 + self.dice.below(9));
        self.end_at(nth, CHANGE, "");
        thread::scope(|scope| {
            let record = &self.record;
            scope.spawn(move || consumer.map(|consumer| consumer.confirm(record, each)));
            self.publish(producers, if stops || is_full { 10 } else { 100_000 }, |record| {
                if deletes {
                    record.delete(wire, (session < 7).then_some(session), boundary as usize);
                }
            });
            if (stops || is_full) && self.disk.fired() == 0 {
                self.server.signal("TERM");
            }
        });
        if self.dice.below(4) == 0 {
            self.server.await_exit();
            self.disk.boot(self.round + 1_000_000);
            let nth = 1 + self.dice.below(40);
            self.end_at(nth, CHANGE, "");
            if !self.disk.survives_start(&mut self.server) {
                self.disk.boot(self.round + 1);
                self.server.restart();
            }
            self.record.check(&self.server, loss);
        } else {
            self.next(loss);
        }
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        let (record, lives) = (&self.record, self.round);
        if lives > 2 {
            eprintln!("{}: {lives} lives, {} events acknowledged, {} left", self.test, record.total, record.known());
        }
    }
}

/// Ends a start at the first, second, third … change that it makes to the files that `prepare` wrote, until a start
/// completes before its fault. After each, the server must start and hold what was there before. Then it publishes, and
/// a second fault ends it at the first change: it must start again with every acknowledged event.
pub fn kill_during_starts(
    test: &'static str,
    faults: &'static [Fault],
    prepare: impl Fn(&Path),
    check: impl Fn(&Server, &mut Record),
) {
    let Some(disk) = (if faults == CUTS { Disk::with_power_cuts(test) } else { Disk::new(test) }) else { return };
    let mut dice = Random::seeded();
    for durability in ["full", "normal"] {
        let (mut ended, mut changes) = (0, 0);
        for nth in (1..).step_by(stride()) {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let mut server = disk.server(folder, &[("DURABILITY", durability)]);
            let fault = |nth, seed| Injection::at(nth, CHANGE, faults[seed as usize % faults.len()]).seeded(seed);
            disk.inject(fault(nth, dice.below(1 << 40)));
            let has_started = disk.survives_start(&mut server);
            if !has_started {
                disk.boot(2 * nth);
                server.restart();
            }
            let mut record = Record::new(durability);
            check(&server, &mut record);
            Producer::open(&server, Way::Messages, "plain", Some("synced")).publish(&record, 10);
            let last = Producer::open(&server, Way::Messages, "lost", None);
            disk.inject(fault(1, dice.below(1 << 40)));
            last.publish(&record, 10);
            server.await_exit();
            disk.boot(2 * nth + 1);
            server.restart();
            record.check(&server, if faults == CUTS { Loss::Unsynced } else { Loss::Nothing });
            server.kill();
            changes = nth;
            if has_started {
                break;
            }
            ended += 1;
        }
        eprintln!("{test}: {ended} ends while starting at durability {durability}");
        assert!(changes > 10, "a start changes more than that");
    }
}

/// A stopped server whose file is some events short of a full segment. The events are spread over this many sessions,
/// so that sealing their posting lists takes many commits.
pub fn nearly_full_segment(sessions: usize) -> Server {
    let mut full = Server::start();
    for part in (0..65_500).map(|n| tick(&session_of(sessions, n), n)).collect::<Vec<_>>().chunks(16_375) {
        full.publish_lines(part);
    }
    full.stop();
    full
}

/// The session of the n-th event in the file of [`nearly_full_segment`].
pub fn session_of(sessions: usize, n: usize) -> String {
    format!("own{}", n % sessions)
}

/// A new folder with a copy of the file of [`nearly_full_segment`].
pub fn copy_of(full: &Server) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::copy(full.db_path(), database(folder.path())).unwrap();
    folder
}

const PYTHON_EVENTS: usize = 400;

/// A database as the Python service left it.
pub fn python_database(folder: &Path) {
    let path = database(folder);
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let mut database = Connection::open(path).unwrap();
    let tables = "CREATE TABLE events (id TEXT PRIMARY KEY, event_type TEXT NOT NULL, source TEXT NOT NULL, \
                  session_id TEXT, user_id TEXT, payload TEXT NOT NULL, timestamp TEXT NOT NULL); \
                  CREATE TABLE event_stats (event_type TEXT PRIMARY KEY, count INTEGER DEFAULT 0, last_seen TEXT);";
    database.execute_batch(tables).unwrap();
    let transaction = database.transaction().unwrap();
    for n in 0..PYTHON_EVENTS {
        let values = (
            format!("evt_{:012x}", n + 1),
            format!("{{\"n\":{n}}}"),
            format!("2025-01-01T00:{:02}:{:02}", n / 60, n % 60),
        );
        let insert = "INSERT INTO events VALUES (?, 'timer_tick', 'python', 'session1', NULL, ?, ?)";
        transaction.execute(insert, values).unwrap();
    }
    transaction.commit().unwrap();
}

/// Checks that a server serves the events of [`python_database`] under their ids.
pub fn must_hold_the_python_events(server: &Server) {
    let stored = server.stored("source=python");
    assert_eq!(stored.len(), PYTHON_EVENTS);
    for (n, event) in stored.iter().enumerate() {
        assert_eq!((&event["id"], &event["payload"]), (&json!(format!("evt_{:012x}", n + 1)), &json!({"n": n})));
    }
}
