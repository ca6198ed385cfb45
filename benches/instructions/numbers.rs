//! The recorded numbers, and what they depend on besides our code.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

/// How far a count may differ from the recorded number, in either direction. Two runs of one build differ by less than a
/// tenth of this.
const TOLERANCE: f64 = 0.05;

/// `benches/instructions.txt`.
#[derive(Default)]
pub struct Numbers {
    /// The tools that they were counted with.
    pub toolchain: String,
    by_stage: Vec<(String, f64)>,
}

/// A count and the recorded number.
pub enum Change {
    By(f64),
    New,
}

const COUNTED_WITH: &str = "# Counted with ";

impl Numbers {
    /// The numbers of the file; none if it does not exist.
    pub fn read() -> Result<Self, String> {
        let text = match std::fs::read_to_string(path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(|error| format!("read {}: {error}", path().display()))?,
        };
        let mut numbers = Self::default();
        for line in text.lines() {
            if let Some(toolchain) = line.strip_prefix(COUNTED_WITH) {
                numbers.toolchain = toolchain.to_owned();
            } else if !line.starts_with('#') {
                let number =
                    line.split_once(' ').and_then(|(stage, number)| Some((stage, number.trim().parse().ok()?)));
                let (stage, number) = number.ok_or_else(|| format!("{}: what is {line:?}?", path().display()))?;
                numbers.set(stage, number);
            }
        }
        Ok(numbers)
    }

    pub fn write(&self) -> Result<(), String> {
        let mut text =
            "# Instructions that an event costs, stage by stage: see benches/instructions/main.rs.\n".to_owned();
        text += &format!("{COUNTED_WITH}{}\n", self.toolchain);
        self.by_stage.iter().for_each(|(stage, number)| text += &format!("{stage:16} {number:10.1}\n"));
        std::fs::write(path(), text).map_err(|error| format!("write {}: {error}", path().display()))
    }

    pub fn change(&self, stage: &str, count: f64) -> Change {
        self.number(stage).map_or(Change::New, |number| Change::By(count / number - 1.0))
    }

    pub fn shown(&self, stage: &str) -> String {
        self.number(stage).map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"))
    }

    pub fn set(&mut self, stage: &str, count: f64) {
        match self.by_stage.iter_mut().find(|(name, _)| name == stage) {
            Some((_, number)) => *number = count,
            None => self.by_stage.push((stage.to_owned(), count)),
        }
    }

    fn number(&self, stage: &str) -> Option<f64> {
        self.by_stage.iter().find(|(name, _)| name == stage).map(|(_, number)| *number)
    }
}

impl Change {
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::By(change) if *change > TOLERANCE)
    }

    pub fn is_gain(&self) -> bool {
        matches!(self, Self::By(change) if *change < -TOLERANCE)
    }

    pub fn is_new(&self) -> bool {
        matches!(self, Self::New)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(change) => f.pad(&format!("{:+.1} %", change * 100.0)),
            Self::New => f.pad("new"),
        }
    }
}

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "benches", "instructions.txt"].iter().collect()
}

/// Everything outside this repository that the counts depend on: the compilers of our code and of SQLite, the C library
/// (it copies memory), callgrind, and whether there are the vector instructions that parse JSON. Another kind of CPU makes
/// no difference: callgrind shows every program the same CPU, without AVX-512, and the C library and simd-json choose by
/// what they see.
pub fn toolchain() -> Result<String, String> {
    let parts = [
        said("rustc", "--version")?,
        said("cc", "--version")?,
        said("getconf", "GNU_LIBC_VERSION")?,
        said("valgrind", "--version").map_err(|error| format!("{error} (Debian: apt-get install valgrind)"))?,
        format!("{}{}", std::env::consts::ARCH, if has_avx2() { " with AVX2" } else { "" }),
    ];
    Ok(parts.join(", "))
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// The first line of a program's output.
fn said(program: &str, argument: &str) -> Result<String, String> {
    let output = Command::new(program).arg(argument).output().map_err(|error| format!("run {program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned).ok_or_else(|| format!("{program} {argument} says nothing"))
}
