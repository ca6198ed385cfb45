//! What a process has used, from `/proc` and from its disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;

/// One tick of the CPU times in `/proc`: Linux reports 100 to the second on every common machine.
const TICK: Duration = Duration::from_millis(10);

/// A process that is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    pub pid: u32,
    /// The disk that it stores to, if the flushes of that disk are known.
    pub disk: Option<Disk>,
}

impl Watched {
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let syncs = self.disk.as_ref().and_then(Disk::flushes);
        Ok(Usage { syncs, ..Usage::of(self.pid)? })
    }
}

/// The process on this machine that listens on a port; `None` where there is none, or we may not look into it.
pub fn listener(port: u16) -> Option<u32> {
    /// The state of a socket that listens.
    const LISTENS: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let socket = tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        let (_, of_line) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(of_line, 16) == Ok(port) && fields[3] == LISTENS;
        is_it.then(|| format!("socket:[{}]", fields[9]))
    })?;
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == &*socket)
    };
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(holds)
}

/// What a process has used up to one point in time.
pub struct Usage {
    pub cpu: Duration,
    /// CPU time of each living thread by its number, with its name.
    threads: BTreeMap<u32, (String, Duration)>,
    written_bytes: u64,
    pub memory_bytes: u64,
    peak_memory_bytes: u64,
    /// Of its disk.
    syncs: Option<u64>,
}

impl Usage {
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = || -> io::Result<_> {
            let process = format!("/proc/{pid}");
            let mut threads = BTreeMap::new();
            for thread in fs::read_dir(format!("{process}/task"))? {
                // A thread may end while we look.
                let name = thread?.file_name();
                let name = name.to_string_lossy();
                if let Ok(stat) = fs::read_to_string(format!("{process}/task/{name}/stat"))
                    && let Ok(number) = name.parse()
                {
                    threads.insert(number, cpu(&stat));
                }
            }
            let (_, cpu) = cpu(&fs::read_to_string(format!("{process}/stat"))?);
            let written_bytes = number(&fs::read_to_string(format!("{process}/io"))?, "write_bytes:");
            let status = fs::read_to_string(format!("{process}/status"))?;
            let [memory_bytes, peak_memory_bytes] = ["VmRSS:", "VmHWM:"].map(|name| number(&status, name) * 1024);
            Ok(Self { cpu, threads, written_bytes, memory_bytes, peak_memory_bytes, syncs: None })
        };
        read().with_context(|| format!("read what process {pid} has used"))
    }
}

/// The name and CPU time in a line of `stat`.
fn cpu(stat: &str) -> (String, Duration) {
    let (start, rest) = stat.rsplit_once(") ").unwrap_or_default();
    let name = start.split_once('(').unwrap_or_default().1;
    // The 14th and 15th field, of which two stand before the rest: user and system time.
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum::<u32>();
    (name.to_owned(), TICK * ticks)
}

/// The number behind a name in a list of them.
fn number(list: &str, name: &str) -> u64 {
    let value = list.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// The time that all processors together were idle, up to one point in time.
#[derive(Clone, Copy)]
pub struct Processors {
    count: usize,
    idle: Duration,
    at: Instant,
}

impl Processors {
    pub fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read what the machine has used")?;
        let count = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        // After user, nice and system time: idle, and idle while a disk works. These the kernel measures; the
        // others it samples at its ticks, and misses most of what is done between them.
        let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(4).take(2);
        let idle = fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        Ok(Self { count, idle: Duration::from_millis(TICK.as_millis() as u64 * idle), at: Instant::now() })
    }

    /// How many were in use since an earlier point in time, by all programs.
    pub fn busy_since(&self, earlier: &Self) -> f64 {
        let idle = self.idle.saturating_sub(earlier.idle).div_duration_f64(self.at - earlier.at);
        (self.count as f64 - idle).max(0.0)
    }
}

/// What a process cost between two moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    #[serde(skip)]
    pub cpu: Duration,
    /// CPU microseconds for each event.
    pub cpu_us_per_event: f64,
    /// CPU microseconds for each of what the run counts, such as deliveries.
    pub cpu_us_each: f64,
    /// The same by the names of threads.
    pub cpu_us_each_by_thread: BTreeMap<String, f64>,
    /// Bytes handed to the disk for each event.
    pub written_bytes_per_event: f64,
    /// Flushes of its disk for each event, by all programs; absent where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syncs_per_event: Option<f64>,
    pub peak_memory_bytes: u64,
    /// The thread that used most CPU.
    pub busiest_thread: String,
    /// Its share of one processor.
    pub busiest_thread_share: f64,
}

impl Cost {
    /// The CPU time is divided by `units`, the bytes and the syncs by `events`. Divided by 0 it is 0.
    pub fn between(before: &Usage, after: &Usage, elapsed: Duration, units: u64, events: u64) -> Self {
        let of_each = |value: f64, count: u64| if count > 0 { value / count as f64 } else { 0.0 };
        let micros = |cpu: Duration, count| of_each(cpu.as_secs_f64() * 1e6, count);
        let mut by_name = BTreeMap::<_, Duration>::new();
        let mut busiest = (Duration::ZERO, "");
        for (number, (name, cpu)) in &after.threads {
            let cpu = *cpu - before.threads.get(number).map_or(Duration::ZERO, |(_, before)| *before);
            *by_name.entry(name.clone()).or_default() += cpu;
            busiest = busiest.max((cpu, name));
        }
        by_name.retain(|_, cpu| !cpu.is_zero());
        let cpu = after.cpu - before.cpu;
        let syncs = after.syncs.zip(before.syncs).map(|(after, before)| after.saturating_sub(before));
        Self {
            cpu,
            cpu_us_per_event: micros(cpu, events),
            cpu_us_each: micros(cpu, units),
            cpu_us_each_by_thread: by_name.into_iter().map(|(name, cpu)| (name, micros(cpu, units))).collect(),
            written_bytes_per_event: of_each((after.written_bytes - before.written_bytes) as f64, events),
            syncs_per_event: syncs.filter(|_| events > 0).map(|syncs| of_each(syncs as f64, events)),
            peak_memory_bytes: after.peak_memory_bytes,
            busiest_thread: busiest.1.to_owned(),
            busiest_thread_share: busiest.0.as_secs_f64() / elapsed.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_parsed() {
        let stat = "77 (odd) name) S 1 77 77 0 -1 4194560 100 0 0 0 250 150 9 9 20 0 1 0 1 1 1";
        assert_eq!(cpu(stat), ("odd) name".to_owned(), Duration::from_secs(4)));
        assert_eq!(number("VmPeak: 9 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"), 1234);
        assert_eq!(number("", "VmHWM:"), 0);
    }

    #[test]
    fn the_usage_of_this_process_is_measured() {
        let (before, processors) =
            (Usage::of(std::process::id()).expect("ours"), Processors::now().expect("the machine's"));
        let start = Instant::now();
        while Usage::of(std::process::id()).expect("ours").cpu < before.cpu + 10 * TICK {}
        let after = Usage::of(std::process::id()).expect("ours");
        let cost = Cost::between(&before, &after, start.elapsed(), 1_000, 1_000);
        assert!(cost.cpu_us_each >= 100.0 && cost.busiest_thread_share > 0.0, "{cost:?}");
        assert!(after.peak_memory_bytes >= after.memory_bytes && after.memory_bytes > 1 << 20);
        assert!(!after.threads.is_empty() && cost.syncs_per_event.is_none());
        assert!(Processors::now().expect("the machine's").busy_since(&processors) > 0.0);
        assert!(Usage::of(u32::MAX).is_err());
    }

    #[test]
    fn the_process_behind_a_port_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("an address").port();
        assert_eq!(listener(port), Some(std::process::id()));
        drop(socket);
        assert_eq!(listener(port), None);
    }
}
