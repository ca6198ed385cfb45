//! Cut the power at any write or sync, to a disk that has put off, reordered and torn what was not synced: the file
//! opens clean, and what was acknowledged is there as far as its level promises.

use std::path::Path;

use super::faulty_disk::*;
use super::lives::{CUTS, Lives};
use super::producers::{Producer, Way};
use super::record::{Loss, Record};
use crate::support::*;

fn cut(test: &'static str, durability: &str, count: u64, acks: &[Option<&'static str>], loss: Loss) {
    let Some(mut lives) = Lives::begin(test, CUTS, durability, tempfile::tempdir().unwrap()) else { return };
    for _ in 0..rounds(count) {
        lives.live(acks, loss);
    }
}

#[test]
fn at_full_durability_loses_nothing_acknowledged() {
    let acks = [None, None, Some("synced")];
    cut("at_full_durability_loses_nothing_acknowledged", "full", 50, &acks, Loss::Nothing);
}

#[test]
fn at_full_durability_loses_of_weaker_levels_no_more_than_the_last_commits() {
    let test = "at_full_durability_loses_of_weaker_levels_no_more_than_the_last_commits";
    cut(test, "full", 20, &[Some("stored"), Some("queued")], Loss::Unsynced);
    cut(test, "full", 20, &[None, Some("stored"), Some("queued"), Some("synced")], Loss::Unsynced);
}

#[test]
fn at_normal_durability_loses_no_more_than_the_last_commits_without_a_sync() {
    let test = "at_normal_durability_loses_no_more_than_the_last_commits_without_a_sync";
    cut(test, "normal", 20, &[None], Loss::Unsynced);
    cut(test, "normal", 30, &[None, Some("synced"), Some("stored"), Some("queued")], Loss::Unsynced);
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
            disk.calm();
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
