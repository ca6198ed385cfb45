//! The machine that everything runs on.

use std::fmt::{self, Display};
use std::fs;
use std::thread::available_parallelism;

use anyhow::ensure;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// Open files of a process that are no connections: its database, its log, what the runtime needs.
const OTHER_FILES: usize = 100;

/// What figures depend on. A field that the kernel does not know is empty or 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// How many there are for this program.
    pub processors: usize,
    pub cpu: String,
    pub memory_bytes: u64,
    pub kernel: String,
}

impl Machine {
    /// The one we are on.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let value = |list: &str, name| list.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let memory = value(&read("/proc/meminfo"), "MemTotal:").unwrap_or_default();
        let kib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        let cpu = value(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
        Self {
            processors: processors(),
            cpu: cpu.trim_start_matches([':', ' ']).to_owned(),
            memory_bytes: kib.unwrap_or_default() * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processors, cpu, memory_bytes, kernel } = self;
        write!(f, "{processors} processor{}", if *processors == 1 { "" } else { "s" })?;
        if !cpu.is_empty() {
            write!(f, ", {cpu}")?;
        }
        if *memory_bytes > 0 {
            write!(f, ", {:.1} GB of memory", *memory_bytes as f64 / 1e9)?;
        }
        if !kernel.is_empty() {
            write!(f, ", Linux {kernel}")?;
        }
        Ok(())
    }
}

/// How many processors this program may use.
pub fn processors() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Each connection is an open file, here and in a server started from here.
///
/// # Errors
/// The system does not allow that many.
pub fn ensure_open_files(connections: usize) -> anyhow::Result<()> {
    let (needed, allowed) = ((connections + OTHER_FILES) as u64, getrlimit(Resource::Nofile).current);
    ensure!(
        allowed.is_none_or(|allowed| allowed >= needed),
        "{connections} connections need {needed} open files, but only {} are allowed: raise the limit (ulimit -n {needed})",
        allowed.unwrap_or_default()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::this();
        assert!(machine.processors > 0 && machine.memory_bytes > 1 << 24, "{machine:?}");
        assert!(ensure_open_files(1).is_ok());
        let error = ensure_open_files(usize::MAX >> 1).err().map(|error| error.to_string());
        assert!(error.is_none_or(|error| error.contains(" need ")));
        assert!(machine.kernel.contains('.') && !machine.cpu.starts_with(':'), "{machine:?}");
        let told = machine.to_string();
        assert!(told.contains(" processor") && told.ends_with(&format!(", Linux {}", machine.kernel)), "{told}");
        let unknown = Machine { processors: 1, cpu: String::new(), memory_bytes: 0, kernel: String::new() };
        assert_eq!(unknown.to_string(), "1 processor");
    }
}
