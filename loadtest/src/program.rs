//! What a program that measures does: everything on one thread, one run after the other, and then an exit code.

use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::task::LocalSet;

use crate::options::Common;
use crate::output::{Output, WrongUsage};
use crate::report::Report;

/// Does the work of a program, which returns its exit code.
pub fn run(work: impl Future<Output = anyhow::Result<u8>>) -> ExitCode {
    raise_open_files_limit();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start");
    exit(runtime.and_then(|runtime| runtime.block_on(work)))
}

/// The exit code of a program that has done its work, or says here why it could not.
pub fn exit(done: anyhow::Result<u8>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(if error.is::<WrongUsage>() { 2 } else { 1 })
        }
    }
}

/// Measures these one after the other, and tells each run as soon as it is over. Ctrl-C ends the run that is under way
/// early, and no other begins. What tasks a run leaves behind end with it.
///
/// # Errors
/// A run failed.
pub async fn in_turns<T>(
    all: impl IntoIterator<Item = T>,
    common: &Common,
    output: &Output,
    is_told: bool,
    measure: impl AsyncFn(T) -> anyhow::Result<Vec<Report>>,
) -> anyhow::Result<Vec<Report>> {
    let mut reports = Vec::new();
    for one in all {
        let run = common.interrupt.guard(measure(one));
        for report in LocalSet::new().run_until(run).await? {
            reports.push(output.take(report, is_told)?);
        }
        if common.interrupt.was_requested() {
            break;
        }
    }
    Ok(reports)
}

/// Each connection is an open file, here and in a server started from here. Where the limit cannot be raised,
/// connecting fails with the reason.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
