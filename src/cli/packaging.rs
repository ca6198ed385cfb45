//! What a package ships beside the program, made from the command line: manual pages, and completions for shells.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline completions bash > /usr/share/bash-completion/completions/event-pipeline
  event-pipeline completions zsh > /usr/share/zsh/vendor-completions/_event-pipeline
  event-pipeline completions fish > ~/.config/fish/completions/event-pipeline.fish")]
pub struct Completions {
    shell: Shell,
}

/// Write the manual pages, one for each command
#[derive(Args)]
#[command(after_help = "Example:
  event-pipeline man /usr/local/share/man/man1")]
pub struct Man {
    /// The folder to write them into; it is made if it is missing
    folder: PathBuf,
}

impl Completions {
    pub fn run(self, mut command: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "event-pipeline", &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}

impl Man {
    /// # Errors
    /// A page cannot be written.
    pub fn run(self, command: Command) -> anyhow::Result<()> {
        let write = || {
            std::fs::create_dir_all(&self.folder)?;
            clap_mangen::generate_to(command.disable_help_subcommand(true), &self.folder)
        };
        write().with_context(|| format!("write into {}", self.folder.display()))
    }
}
