//! The documents for people: their links work, the files that they name exist, and their terminal blocks show what the
//! commands really print.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use crate::support::*;
use crate::upgrade::{Schema, old_database, rows};

fn documents() -> Vec<PathBuf> {
    let folders = [".", "docs", "tests", "loadtest/peers/baseline"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files
}

/// The text without blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchors of a document, as GitHub makes them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let text = prose(text);
    let headings = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let part = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings.map(|heading| heading.chars().filter_map(part).collect()).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for link in prose(&text).split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let found = fs::read_to_string(&target);
            let found = found.unwrap_or_else(|error| panic!("{} links to {link}: {error}", file.display()));
            assert!(anchor.is_empty() || anchors(&found).contains(anchor), "{} links to {link}", file.display());
        }
    }
}

#[test]
fn every_document_is_in_the_index() {
    let index = fs::read_to_string("docs/README.md").unwrap();
    for file in documents().iter().filter(|file| file.starts_with("docs") && !file.ends_with("README.md")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(index.contains(&format!("]({name}")), "docs/README.md does not lead to {name}");
    }
}

#[test]
fn every_file_that_a_contributor_is_sent_to_exists() {
    for file in ["CONTRIBUTING.md", "SECURITY.md", "tests/README.md"] {
        let text = fs::read_to_string(file).unwrap();
        let code = prose(&text).split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let folders = ["src/", "tests/", "loadtest/", "benches/", "docs/", ".ci/"];
        for path in code.iter().filter(|code| folders.iter().any(|folder| code.starts_with(folder))) {
            let path = path.split(' ').next().unwrap();
            assert!(path.contains('<') || Path::new(path).exists(), "{file} names {path}");
        }
    }
}

/// A command in a terminal block, and the output that the document shows below it.
struct Step {
    typed: String,
    shown: String,
}

/// The steps of all blocks called `console`.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines().map(str::trim_start) {
            match (line.strip_prefix("$ "), line.strip_prefix("> "), steps.last_mut()) {
                (Some(typed), ..) => steps.push(Step { typed: typed.to_owned(), shown: String::new() }),
                (_, Some(more), Some(step)) => step.typed += &format!("\n{more}"),
                (.., Some(step)) => step.shown += &format!("{line}\n"),
                (.., None) => panic!("{line:?} comes before any command"),
            }
        }
    }
    steps
}

/// Without white space, and with one text for all times.
fn plain(text: &str) -> String {
    let is_of_time = |c: char| c.is_ascii_digit() || "TZ:.-".contains(c);
    let is_time =
        |word: &str| word.len() >= 8 && word.starts_with(|c: char| c.is_ascii_digit()) && word.contains([':', '-']);
    let mut plain = String::new();
    for word in text.split_inclusive(|c| !is_of_time(c)) {
        let (body, end) = word.split_at(word.trim_end_matches(|c| !is_of_time(c)).len());
        plain += if is_time(body) { "TIME" } else { body };
        plain.extend(end.chars().filter(|c| !c.is_whitespace()));
    }
    plain
}

/// Whether a text is the output that a document shows, in which `…` stands for any text.
fn is_shown(shown: &str, text: &str) -> bool {
    let (shown, text) = (plain(shown), plain(text));
    let mut parts: Vec<_> = shown.split('…').collect();
    let last = parts.pop().expect("at least one part");
    let Some(first) = parts.first() else { return text == last };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in &parts[1..] {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A shell in a folder of its own, in which `cargo run` runs the binary that was built for the tests. When it is dropped,
/// everything that runs in the shell is killed.
struct Terminal {
    shell: Child,
    input: ChildStdin,
    output: Arc<Mutex<String>>,
    address: SocketAddr,
    folder: TempDir,
}

impl Terminal {
    /// The server of each document has an address of its own: process ids have 22 bits.
    fn open(number: u16) -> Terminal {
        let host = Ipv4Addr::from_bits(0x7f40_0000 | std::process::id());
        let address = SocketAddr::from((host, 8001 + number));
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::copy("data/classroom.ndjson", folder.path().join("data/classroom.ndjson")).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_event-pipeline")).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash")
            .env_clear()
            .env("PATH", format!("{}:{path}", binary.display()))
            .envs([("HOST", host.to_string()), ("PORT", address.port().to_string())])
            .env("EVENT_PIPELINE_URL", format!("http://{address}"))
            .current_dir(folder.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let (mut source, collected) = (shell.stdout.take().unwrap(), Arc::clone(&output));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = source.read(&mut bytes) {
                collected.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        let mut input = shell.stdin.take().unwrap();
        input.write_all(b"exec 2>&1\ncargo() { exec event-pipeline serve; }\n").unwrap();
        Terminal { shell, input, output, address, folder }
    }

    /// Types a command and waits for what the document shows. The output of a server may come later than the next prompt.
    fn run(&mut self, step: &Step, document: &str) {
        let start = self.output.lock().unwrap().len();
        // The recording need not be shown at a pace that people can follow.
        let typed =
            step.typed.replace("localhost:8001", &self.address.to_string()).replace("--speed 10", "--speed 100");
        let prompt = format!("<{start}>");
        writeln!(self.input, "{{ {typed}\n}} < /dev/null\nprintf '{prompt}'").unwrap();
        let text = || {
            let text = self.output.lock().unwrap()[start..].to_owned();
            let own = self.address.to_string();
            text.replace(&format!("listen  {own}"), "listen  127.0.0.1:8001").replace(&own, "localhost:8001")
        };
        await_true(&format!("{document}: what is shown below {:?}", step.typed), || {
            let text = text();
            text.contains(&prompt) && is_shown(&step.shown, &text.replace(&prompt, ""))
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        kill_group(&mut self.shell);
        if thread::panicking() {
            eprintln!("the terminal:\n{}", self.output.lock().unwrap());
        }
    }
}

#[test]
fn the_commands_in_documents_print_what_is_shown() {
    for tool in ["bash", "curl", "sqlite3"] {
        if program(tool).is_none() {
            return skip("what is typed in documents", tool);
        }
    }
    let mut walked = Vec::new();
    for (number, file) in (0..).zip(documents()) {
        let text = fs::read_to_string(&file).unwrap();
        let (steps, name) = (steps(&text), file.display().to_string());
        let Some(first) = steps.first() else { continue };
        let mut terminal = Terminal::open(number);
        if file.ends_with("migration.md") {
            old_database(terminal.folder.path(), Schema::Newer, &rows());
        } else if !first.typed.starts_with("cargo run") {
            let serve = Step { typed: "event-pipeline 2> server.log &".to_owned(), shown: String::new() };
            terminal.run(&serve, &name);
            await_true("the server", || TcpStream::connect(terminal.address).is_ok());
        }
        // A file that the reader is asked to save.
        if let Some((_, rest)) = text.split_once("Save these\nstatements as `") {
            let (saved, rest) = rest.split_once('`').unwrap();
            let block = rest.split("```").nth(1).unwrap().split_once('\n').unwrap().1;
            fs::write(terminal.folder.path().join(saved), block).unwrap();
        }
        steps.iter().for_each(|step| terminal.run(step, &name));
        walked.push(name);
    }
    assert!(walked.contains(&"./README.md".to_owned()) && walked.len() > 5, "walked through {walked:?}");
}

#[test]
fn output_is_compared_without_times_and_line_breaks() {
    for (shown, text) in [
        ("{\"a\":1,\n\"b\":…}", "{\"a\":1,\"b\":[2]}"),
        ("2026-11-30 18:37:03.425Z  tick", "2031-01-02 00:00:00.000Z tick"),
        ("…\n\"timestamp\":\"2026-11-30T18:37:02.322324Z\"}", "x\"timestamp\":\"2031-01-01T00:00:00.000001Z\"}"),
        ("", "\n"),
    ] {
        assert!(is_shown(shown, text), "{shown:?} {text:?}");
    }
    for (shown, text) in [("", "x"), ("a…", "b"), ("…a", "ab"), ("a…b…c", "acb"), ("id 7", "id 8"), ("a…a", "a")]
    {
        assert!(!is_shown(shown, text), "{shown:?} {text:?}");
    }
}
