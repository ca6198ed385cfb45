//! What a process has cost, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

/// One tick of the CPU times in `/proc`: Linux reports 100 to the second on every common machine.
const TICK: Duration = Duration::from_millis(10);

/// A process at one moment.
pub struct Usage {
    cpu: Duration,
    /// CPU time of each living thread by its number, with its name.
    threads: BTreeMap<u32, (String, Duration)>,
    written_bytes: u64,
    peak_memory_bytes: u64,
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
            let peak_kib = number(&fs::read_to_string(format!("{process}/status"))?, "VmHWM:");
            Ok(Self { cpu, threads, written_bytes, peak_memory_bytes: peak_kib * 1024 })
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

/// CPU time of the whole machine, all processors added: what was used, and what there was.
#[derive(Clone, Copy)]
pub struct Machine {
    used: Duration,
    at: Instant,
}

impl Machine {
    pub fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read what the machine has used")?;
        // user, nice, system, idle, iowait, irq, softirq, steal: all but the idle ones.
        let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let used = fields.enumerate().filter(|(i, _)| !matches!(i, 3 | 4));
        let ticks = used.filter_map(|(_, field)| field.parse::<u32>().ok()).sum::<u32>();
        Ok(Self { used: TICK * ticks, at: Instant::now() })
    }

    /// How many processors were in use since an earlier moment.
    pub fn busy_since(&self, earlier: &Self) -> f64 {
        (self.used - earlier.used).as_secs_f64() / (self.at - earlier.at).as_secs_f64()
    }
}

/// What a process cost between two moments.
#[derive(Debug, Serialize)]
pub struct Cost {
    #[serde(skip)]
    pub cpu: Duration,
    /// CPU microseconds for each event.
    pub cpu_us_per_event: f64,
    /// CPU microseconds for each event, or, where there are subscribers, for each delivery.
    pub cpu_us_each: f64,
    /// The same by the names of threads.
    pub cpu_us_each_by_thread: BTreeMap<String, f64>,
    /// Bytes handed to the disk for each event.
    pub written_bytes_per_event: f64,
    pub peak_memory_bytes: u64,
    /// The thread that used most CPU.
    pub busiest_thread: String,
    /// Its share of one processor.
    pub busiest_thread_share: f64,
}

impl Cost {
    /// `units` are what the CPU time is divided by, `events` what the bytes are.
    pub fn between(before: &Usage, after: &Usage, elapsed: Duration, units: u64, events: u64) -> Self {
        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6;
        let each = |cpu: Duration| micros(cpu) / units.max(1) as f64;
        let mut by_name = BTreeMap::<_, Duration>::new();
        let mut busiest = (Duration::ZERO, "");
        for (number, (name, cpu)) in &after.threads {
            let cpu = *cpu - before.threads.get(number).map_or(Duration::ZERO, |(_, before)| *before);
            *by_name.entry(name.clone()).or_default() += cpu;
            busiest = busiest.max((cpu, name));
        }
        by_name.retain(|_, cpu| !cpu.is_zero());
        let cpu = after.cpu - before.cpu;
        Self {
            cpu,
            cpu_us_per_event: micros(cpu) / events.max(1) as f64,
            cpu_us_each: each(cpu),
            cpu_us_each_by_thread: by_name.into_iter().map(|(name, cpu)| (name, each(cpu))).collect(),
            written_bytes_per_event: (after.written_bytes - before.written_bytes) as f64 / events.max(1) as f64,
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
    fn proc_is_read_as_it_is_written() {
        let stat = "77 (odd) name) S 1 77 77 0 -1 4194560 100 0 0 0 250 150 9 9 20 0 1 0 1 1 1";
        assert_eq!(cpu(stat), ("odd) name".to_owned(), Duration::from_secs(4)));
        assert_eq!(number("VmPeak: 9 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"), 1234);
        assert_eq!(number("", "VmHWM:"), 0);
    }

    #[test]
    fn what_we_use_is_seen() {
        let (before, machine) = (Usage::of(std::process::id()).expect("ours"), Machine::now().expect("the machine's"));
        let start = Instant::now();
        while Usage::of(std::process::id()).expect("ours").cpu < before.cpu + 10 * TICK {}
        let after = Usage::of(std::process::id()).expect("ours");
        let cost = Cost::between(&before, &after, start.elapsed(), 1_000, 1_000);
        assert!(cost.cpu_us_each >= 100.0 && cost.busiest_thread_share > 0.0, "{cost:?}");
        assert!(after.peak_memory_bytes > 1 << 20 && !after.threads.is_empty());
        assert!(Machine::now().expect("the machine's").busy_since(&machine) > 0.0);
        assert!(Usage::of(u32::MAX).is_err());
    }
}
