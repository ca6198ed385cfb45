//! Compares the instructions that an event costs, stage by stage, with the numbers in `benches/instructions.txt`.
//!
//! A busy, slow or throttled machine executes the same instructions as a quiet one. So this finds a regression of a few
//! percent where a stopwatch finds noise. It says nothing about caches, branches and system calls: the other bench does.
//!
//! ```sh
//! cargo bench --workspace --bench instructions                    # every stage, side by side on all cores
//! cargo bench --workspace --bench instructions -- store seal      # only these
//! cargo bench --workspace --bench instructions -- --bless         # record the counts as the new numbers
//! callgrind_annotate target/tmp/instructions/parse.out            # where a stage spends them
//! ```
//!
//! It needs valgrind. Without `--workspace` some dependencies have other features, and what the compiler inlines
//! differs: by 3 % in one stage.
//!
//! A count beyond the tolerance fails, also if it is lower: a gain that is not recorded would hide the next loss of the same
//! size. The counts depend on the compilers and the C library, too. With others than those of the recorded numbers they are
//! shown and not judged; where `CI` is set, that fails.
//!
//! The test command runs each stage once, without callgrind.

mod callgrind;
mod numbers;
mod stages;
#[path = "../workload/mod.rs"]
mod workload;

use std::process::ExitCode;

use numbers::{Change, Numbers};
use stages::{STAGES, Stage};

/// The allocator of the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let outcome = if has(callgrind::WATCHED) {
        STAGES.iter().filter(|stage| has(stage.name)).for_each(callgrind::watched);
        Ok(())
    } else if has("--bench") {
        // Cargo's other arguments are for the other bench.
        let words: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.starts_with('-')).collect();
        guard(&words, has("--bless"))
    } else {
        STAGES.iter().for_each(Stage::run_once);
        Ok(())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("instructions: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Counts the named stages, or all of them, and judges or records the counts.
fn guard(words: &[&str], bless: bool) -> Result<(), String> {
    let stages: Vec<&Stage> = STAGES.iter().filter(|stage| words.is_empty() || words.contains(&stage.name)).collect();
    if stages.is_empty() {
        println!("None of the stages is meant: {}", names(STAGES.iter()));
        return Ok(());
    }
    let toolchain = numbers::toolchain()?;
    let mut numbers = Numbers::read()?;
    let same_toolchain = numbers.toolchain == toolchain;
    if bless && !same_toolchain && stages.len() < STAGES.len() {
        return Err(format!("the other numbers on record are of another toolchain; record all of them: {BLESS}"));
    }
    let counts = callgrind::count(&stages)?;

    println!("{:16} {:>12} {:>12} {:>8}   instructions an event", "stage", "on record", "now", "change");
    let mut changed = Vec::new();
    for (stage, count) in stages.iter().zip(&counts) {
        let (shown, change) = (numbers.shown(stage.name), numbers.change(stage.name, *count));
        println!("{:16} {shown:>12} {count:>12.1} {change:>8}", stage.name);
        changed.push((*stage, change));
    }
    if bless {
        if stages.len() == STAGES.len() {
            numbers = Numbers::default();
        }
        stages.iter().zip(&counts).for_each(|(stage, count)| numbers.set(stage.name, *count));
        numbers.toolchain = toolchain;
        return numbers.write();
    }
    if !same_toolchain {
        println!("\nNOT JUDGED: the numbers on record are of");
        println!("  {}\nand this is\n  {toolchain}\nOnce this is what the gate has: {BLESS}", numbers.toolchain);
        return match std::env::var_os("CI") {
            Some(_) => Err("no stage was compared; where CI is set that is a failure".to_owned()),
            None => Ok(()),
        };
    }
    type Applies = fn(&Change) -> bool;
    let verdicts: [(Applies, &str); 3] = [
        (Change::is_loss, "more instructions than before. If they are worth it:"),
        (Change::is_gain, "fewer instructions than before. Keep the gain:"),
        (Change::is_new, "not on record. Record it:"),
    ];
    let sentences = verdicts.iter().filter_map(|(applies, verdict)| {
        let names = names(changed.iter().filter(|(_, change)| applies(change)).map(|(stage, _)| *stage));
        (!names.is_empty()).then(|| format!("{names}: {verdict} {BLESS}"))
    });
    match sentences.collect::<Vec<_>>().join("\n") {
        none if none.is_empty() => Ok(()),
        sentences => Err(sentences),
    }
}

const BLESS: &str = "cargo bench --workspace --bench instructions -- --bless";

fn names<'s>(stages: impl Iterator<Item = &'s Stage>) -> String {
    stages.map(|stage| stage.name).collect::<Vec<_>>().join(", ")
}
