//! Cut the power at any write or sync, to a disk that has put off, reordered and torn what was not synced: the file
//! opens clean, and what was acknowledged is there as far as its level promises.

use std::path::Path;
use std::thread;

use super::faulty_disk::*;
use super::producers::{Producer, Way};
use super::record::{Loss, Record};
use crate::support::*;

const WAYS: [Way; 4] = [Way::Messages, Way::Arrays, Way::Requests, Way::Lines];

/// A server whose power is cut again and again.
struct Cuts {
    disk: Disk,
    dice: Dice,
    server: Server,
    record: Record,
    round: u64,
}

impl Cuts {
    fn begin(test: &str, durability: &'static str) -> Option<Cuts> {
        let disk = Disk::with_a_switch(test)?;
        let server = disk.server(tempfile::tempdir().unwrap(), &[("DURABILITY", durability)]);
        let mut cuts = Cuts { disk, dice: Dice::thrown(), server, record: Record::new(durability), round: 0 };
        cuts.server.restart();
        cuts.record.check(&cuts.server, Loss::Nothing);
        Some(cuts)
    }

    /// A cut that falls among so many changes of the files from now on.
    fn cut_among(&mut self, changes: u64) {
        let (nth, seed) = (1 + self.dice.below(changes), self.dice.below(1 << 40));
        self.disk.order(Order::at(nth, CHANGE, Fault::PowerCut).seeded(seed));
    }

    fn producers(&mut self, acks: &[Option<&'static str>]) -> Vec<Producer> {
        let is_large = self.dice.below(8) == 0;
        let mut open = |way| {
            let name = if is_large { "large" } else { ["plain", "keyed"][self.dice.below(2) as usize] };
            let ack = acks[self.dice.below(acks.len() as u64) as usize];
            Producer::open(&self.server, way, &format!("{name}{}{way:?}", self.round), ack)
        };
        WAYS.map(&mut open).into()
    }

    /// Publishes, deletes and at times stops in order, until the power goes.
    fn work(&mut self, acks: &[Option<&'static str>]) {
        self.round += 1;
        self.disk.syncs_take([0, 0, 200, 2_000][self.dice.below(4) as usize]);
        let producers = self.producers(acks);
        let (deletes, stops) = (self.dice.below(4) == 0, self.dice.below(6) == 0);
        let (boundary, session) = (self.dice.below(1 + self.record.known() as u64 / 4), self.dice.below(14));
        let changes = [20, 100, 100, 400, 2_500][self.dice.below(5) as usize];
        self.cut_among(if stops { 40 } else { changes });
        thread::scope(|scope| {
            let (server, record) = (&self.server, &self.record);
            for producer in producers {
                // A cut that does not fall while publishing falls at the end.
                scope.spawn(move || producer.publish(record, if stops { 10 } else { 100_000 }));
            }
            if deletes {
                scope.spawn(move || record.delete(server, (session < 7).then_some(session), boundary as usize));
            }
        });
        if stops && self.disk.fired() == 0 {
            self.server.signal("TERM");
        }
        self.server.await_exit();
        self.disk.boot(self.round + 1);
        // At times it falls again while the file is put right.
        if self.dice.below(4) == 0 {
            self.cut_among(30);
            if self.server.try_restart().is_none() {
                self.disk.calm();
                return;
            }
            self.disk.boot(self.round + 1_000_000);
        }
        self.disk.calm();
        self.server.restart();
    }
}

#[test]
fn at_full_durability_loses_nothing_acknowledged() {
    let Some(mut cuts) = Cuts::begin("at_full_durability_loses_nothing_acknowledged", "full") else { return };
    for _ in 0..rounds(60) {
        cuts.work(&[None, None, Some("synced")]);
        cuts.record.check(&cuts.server, Loss::Nothing);
    }
    eprintln!("{} events were acknowledged, {} are stored", cuts.record.total, cuts.record.known());
}

#[test]
fn at_normal_durability_loses_no_more_than_the_last_unsynced_commits() {
    let test = "at_normal_durability_loses_no_more_than_the_last_unsynced_commits";
    let Some(mut cuts) = Cuts::begin(test, "normal") else { return };
    for _ in 0..rounds(60) {
        cuts.work(&[None, None, Some("synced"), Some("stored"), Some("queued")]);
        cuts.record.check(&cuts.server, Loss::Unsynced);
    }
    eprintln!("{} events were acknowledged, {} are stored", cuts.record.total, cuts.record.known());
}

#[test]
fn at_full_durability_loses_of_weaker_levels_no_more_than_the_last_commits() {
    let test = "at_full_durability_loses_of_weaker_levels_no_more_than_the_last_commits";
    let Some(mut cuts) = Cuts::begin(test, "full") else { return };
    for round in 0..rounds(40) {
        let weak = [Some("stored"), Some("queued")];
        cuts.work(if round % 2 == 0 { &weak } else { &[None, Some("stored"), Some("queued"), Some("synced")] });
        cuts.record.check(&cuts.server, Loss::Unsynced);
    }
    eprintln!("{} events were acknowledged, {} are stored", cuts.record.total, cuts.record.known());
}

/// Cuts the power at each change that a start makes to what `prepare` left, and once more after events were
/// acknowledged: a server must start on whatever there is then, with what was there before.
fn cut_while_starting(test: &str, prepare: impl Fn(&Path), check: impl Fn(&Server, &mut Record)) {
    let Some(disk) = Disk::with_a_switch(test) else { return };
    let mut dice = Dice::thrown();
    for durability in ["full", "normal"] {
        let mut starts = 0;
        for nth in 1.. {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let mut server = disk.server(folder, &[("DURABILITY", durability)]);
            disk.order(Order::at(nth, CHANGE, Fault::PowerCut).seeded(dice.below(1 << 40)));
            let has_started = server.try_restart().is_none();
            if !has_started {
                disk.boot(2 * nth);
                server.restart();
            }
            let mut record = Record::new(durability);
            check(&server, &mut record);
            Producer::open(&server, Way::Messages, "plain", Some("synced")).publish(&record, 10);
            // The cut that did not fall while starting falls now.
            disk.order(Order::at(1, CHANGE, Fault::PowerCut).seeded(dice.below(1 << 40)));
            Producer::open(&server, Way::Messages, "lost", None).publish(&record, 10);
            server.await_exit();
            disk.boot(2 * nth + 1);
            server.restart();
            record.check(&server, Loss::Unsynced);
            server.kill();
            starts += 1;
            if has_started {
                break;
            }
        }
        eprintln!("{test}: the power was cut {} times while starting at {durability}", starts - 1);
        assert!(starts > 10, "a start changes more than that");
    }
}

#[test]
fn while_the_file_is_made_leaves_one_that_starts() {
    let test = "while_the_file_is_made_leaves_one_that_starts";
    for _ in 0..rounds(2) {
        cut_while_starting(test, |_| (), |server, record| record.check(server, Loss::Nothing));
    }
}
