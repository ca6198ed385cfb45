//! Runs stages under callgrind, each in a process of its own, and reads the counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::stages::{MAIN, Stage};

/// The argument by which this program knows that callgrind watches it.
pub const WATCHED: &str = "--watched";

/// The instructions of each of these stages, for one event. As many run at one time as there are cores, because a count
/// does not depend on other processes.
pub fn count(stages: &[&Stage]) -> Result<Vec<f64>, String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut counted = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(stage) = stages.get(at) else { return counted };
            counted.push((at, watch(stage).map_err(|error| format!("{}: {error}", stage.name))));
        }
    };
    let mut counted = std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect::<Vec<_>>()
    });
    counted.sort_by_key(|(at, _)| *at);
    counted.into_iter().map(|(_, count)| count).collect()
}

fn watch(stage: &Stage) -> Result<f64, String> {
    let folder: PathBuf = [env!("CARGO_TARGET_TMPDIR"), "instructions"].iter().collect();
    std::fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
    let out = folder.join(format!("{}.out", stage.name));
    // A watched process does not delete its files.
    let room = tempfile::tempdir().map_err(|error| format!("create a temporary folder: {error}"))?;
    let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;

    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", out.display()));
    // Of the thread that runs the stage only the stage is counted. Of a thread of the record everything is, because it does
    // nothing else.
    command.arg(if stage.thread == MAIN { "--toggle-collect=*stages::counted*" } else { "--separate-threads=yes" });
    // The environment lies on the stack and would shift it.
    command.arg(program).args([WATCHED, stage.name]).env_clear().env("TMPDIR", room.path());
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let output = command.output().map_err(|error| format!("run valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let counted = match stage.thread {
        MAIN => out,
        _ => {
            let thread = String::from_utf8_lossy(&output.stdout);
            let thread: usize = thread.trim().parse().map_err(|_| format!("which thread is {thread:?}?"))?;
            folder.join(format!("{}.out-{thread:02}", stage.name))
        }
    };
    match total(&counted)? {
        0 => Err("callgrind counted nothing".to_owned()),
        instructions => Ok(instructions as f64 / stage.events as f64),
    }
}

/// The sum that callgrind writes at the end of its file.
fn total(path: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.parse().ok());
    total.ok_or_else(|| format!("{} holds no total", path.display()))
}

/// Runs a stage in this process, which callgrind watches, and prints the thread that counts. Then it exits at once, so that
/// closing down is not counted.
pub fn watched(stage: &Stage) {
    stage.run(&|| {
        if stage.thread != MAIN {
            println!("{}", number_of(stage.thread).expect("the record's threads have names"));
        }
        std::process::exit(0);
    });
}

/// The number that callgrind gives a thread of this process: it numbers them as they begin, which is the order of their
/// ids.
fn number_of(thread: &str) -> Option<usize> {
    let mut threads: Vec<(u32, String)> = std::fs::read_dir("/proc/self/task")
        .ok()?
        .filter_map(|task| {
            let task = task.ok()?.path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            Some((task.file_name()?.to_str()?.parse().ok()?, name.trim_end().to_owned()))
        })
        .collect();
    threads.sort_unstable();
    threads.iter().position(|(_, name)| name == thread).map(|at| at + 1)
}
