//! What the process uses, under the names that Prometheus gives it for every program.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::exposition::Exposition;
use crate::event::Timestamp;

#[derive(Debug)]
pub(super) struct Process {
    pub(super) started: Timestamp,
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut out = Exposition(encoder);
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        out.counter_of("process_cpu", "Processor time used", Some(&Unit::Seconds), cpu)?;
        let started = self.started.0 as f64 / 1e6;
        out.gauge("process_start_time", "When the server started, since 1970", Some(&Unit::Seconds), started)?;
        if let Some([virtual_bytes, resident_bytes]) = memory() {
            out.gauge("process_virtual_memory", "Address space taken", Some(&Unit::Bytes), virtual_bytes)?;
            out.gauge("process_resident_memory", "Memory in use", Some(&Unit::Bytes), resident_bytes)?;
        }
        if let Some(open) = open_files() {
            out.gauge("process_open_fds", "Open files, connections included", None, open)?;
        }
        let max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        out.gauge("process_max_fds", "Files that may be open at one time", None, max)
    }
}

/// The bytes of the address space, and those of them that are in memory.
fn memory() -> Option<[u64; 2]> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let mut bytes = pages.split(' ').map_while(|pages| Some(pages.parse::<u64>().ok()? * page_size() as u64));
    Some([bytes.next()?, bytes.next()?])
}

/// Since Linux 6.2 the folder has their number as its size. To list ten thousand of them takes milliseconds.
fn open_files() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        0 => Some(fs::read_dir(FOLDER).ok()?.count() as u64),
        open => Some(open),
    }
}
