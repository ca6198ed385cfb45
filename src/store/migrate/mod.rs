//! Bringing a file of an earlier format to the newest one, a step for each format.
//!
//! To add a format: raise `schema::VERSION`, change `schema::TABLES`, write a file `to_N.rs` whose `run` makes a file
//! of the format before into one of format N, and add it to [`STEPS`]. A step knows its two formats and nothing of
//! later ones, so it has the statements that define its tables written out. It may not rewrite `events`: a start waits
//! for it. A golden file of the format before, in `tests/it/golden`, proves the step.

mod payload;
pub mod python;
mod to_2;
mod to_3;
mod to_4;
mod to_5;
mod to_6;

use rusqlite::{Connection, TransactionBehavior};

use super::damage::is_damage;
use super::schema::{APPLICATION_ID, TABLES, VERSION, version};

/// Makes a file of one format a file of the next one, within a transaction.
type Step = fn(&Connection) -> rusqlite::Result<()>;

/// The first leads from format 1 to format 2, the last to [`VERSION`].
const STEPS: [Step; VERSION as usize - 1] = [to_2::run, to_3::run, to_4::run, to_5::run, to_6::run];

/// The step to format 5, and the one instead of it where a page of the oldest events is damaged.
const TO_5: usize = 3;
const TO_5_BESIDE_DAMAGE: Step = to_5::run_beside_damage;

/// Brings a file to the newest format, and creates the tables that are missing; in a new file these are all. It does so
/// in one transaction: after a crash the file is either as before or of the newest format.
pub fn to_newest(connection: &mut Connection) -> rusqlite::Result<()> {
    match upgrade(connection, &STEPS) {
        // SQLite goes on with no transaction that has met damage.
        Err(error) if is_damage(&error) => {
            let mut steps = STEPS;
            steps[TO_5] = TO_5_BESIDE_DAMAGE;
            upgrade(connection, &steps)
        }
        upgraded => upgraded,
    }
}

fn upgrade(connection: &mut Connection, steps: &[Step]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // A file without our tables says that it is of format 0.
    if let Ok(done) = usize::try_from(version(&transaction)? - 1) {
        steps.iter().skip(done).try_for_each(|step| step(&transaction))?;
    }
    transaction.execute_batch(TABLES)?;
    transaction
        .execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"))?;
    transaction.commit()
}
