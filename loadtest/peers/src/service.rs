//! The service that ours replaced: its architecture, written anew in `baseline/service.py`. It is installed into a
//! virtual environment of its own, once, and started for each run.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use loadtest::{Folder, Process, Subject, Target};

use crate::binary::version_parts;

const SERVICE: &str = include_str!("../baseline/service.py");
const REQUIREMENTS: &str = include_str!("../baseline/requirements.txt");

/// The first version of Python that has everything the service uses (`asyncio.timeout`).
const PYTHON_MIN: (u32, u32) = (3, 11);

/// How long it may take to end its connections before it is ended with them.
const END_SECONDS: &str = "5";

/// The service, installed.
#[derive(Debug)]
pub struct Service {
    python: PathBuf,
    name: String,
}

impl Service {
    /// Installs what the service requires, unless the same was installed before.
    pub async fn install() -> anyhow::Result<Self> {
        let version = output("python3", ["--version"], Path::new("/"))
            .await
            .context("this needs python3 (apt-get install python3-venv)")?;
        let version = version.trim().trim_start_matches("Python ").to_owned();
        let (major, minor) = PYTHON_MIN;
        ensure!(version_parts(&version) >= PYTHON_MIN, "this needs Python {major}.{minor}, and python3 is {version}");

        let cache = cache()?;
        let mut hasher = DefaultHasher::new();
        (REQUIREMENTS, &version).hash(&mut hasher);
        let environment = cache.join(format!("baseline-{:016x}", hasher.finish()));
        if !environment.exists() {
            eprintln!("loadtest: installing what the baseline requires into {}, once", environment.display());
            create(&environment, &cache).await.context("install what the baseline requires")?;
        }
        let fastapi = REQUIREMENTS.lines().find_map(|line| line.strip_prefix("fastapi==")).unwrap_or_default();
        let name = format!("FastAPI {fastapi} + sqlite3, Python {version}");
        Ok(Self { python: environment.join("bin/python"), name })
    }

    /// Starts it with an empty database in this folder.
    pub fn start(&self, folder: Folder) -> anyhow::Result<Target> {
        fs::write(folder.path().join("service.py"), SERVICE).context("write the service")?;
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "uvicorn", "service:app", "--host", "127.0.0.1", "--port", "0", "--no-access-log"])
            .args(["--timeout-graceful-shutdown", END_SECONDS])
            .current_dir(folder.path())
            // No setting from around us may change what is measured.
            .env_clear()
            .env("DATABASE_PATH", folder.path().join("events.db"));
        let process = Process::start(&mut command, folder)?;
        let authority = process.wait_for(|line| {
            let (_, url) = line.split_once("Uvicorn running on http://")?;
            url.split(' ').next().map(str::to_owned)
        })?;
        let subject = Subject { name: self.name.clone(), acknowledged_means: "synced to disk".to_owned() };
        Ok(Target::of_process(authority, subject, process))
    }
}

/// Where to keep what can be made again.
fn cache() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    // Cargo marks the folder in which it builds.
    let folders = || program.ancestors().skip(1);
    let folder = folders().find(|folder| folder.join("CACHEDIR.TAG").exists()).or(folders().next());
    let cache = folder.context("find the folder of this program")?.join("tmp");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    Ok(cache)
}

/// Creates a virtual environment with everything that is required: all of it, or none.
async fn create(environment: &Path, cache: &Path) -> anyhow::Result<()> {
    let folder = Folder::new(cache)?;
    let requirements = folder.path().join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)?;
    output("python3", ["-m", "venv", "new"], folder.path()).await?;
    let pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "-r"];
    let new = folder.path().join("new");
    output(new.join("bin/python"), pip.iter().map(Path::new).chain([&*requirements]), folder.path()).await?;
    // Another run may have created it meanwhile, with the same result.
    fs::rename(&new, environment).or_else(|error| if environment.exists() { Ok(()) } else { Err(error) })?;
    Ok(())
}

/// Runs a program to its end and returns what it printed. Cancelled, the program is killed.
///
/// # Errors
/// It did not succeed, with what it printed.
async fn output<A: AsRef<std::ffi::OsStr>>(
    program: impl AsRef<Path>,
    arguments: impl IntoIterator<Item = A>,
    folder: &Path,
) -> anyhow::Result<String> {
    let program = program.as_ref();
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).current_dir(folder).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("start {}", program.display()))?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        bail!("{} ended with {}: {}", program.display(), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_pipeline::event::EventTypes;

    #[test]
    fn everything_is_pinned() {
        let names = REQUIREMENTS.lines().map(|line| line.split_once("==").expect(line).0).collect::<Vec<_>>();
        for needed in ["fastapi", "pydantic", "starlette", "uvicorn", "uvloop", "httptools", "websockets"] {
            assert!(names.contains(&needed), "{needed}");
        }
    }

    #[test]
    fn the_service_knows_the_same_types() {
        for (name, _) in EventTypes::builtin().iter() {
            assert!(SERVICE.contains(&format!("    \"{name}\",\n")), "{name}");
        }
    }
}
