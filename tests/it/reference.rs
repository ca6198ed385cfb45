//! The generated documents: `docs/configuration.md` and `deploy/event-pipeline.toml` come from the table of settings,
//! `docs/command-line.md` from `--help`, `docs/errors.md` from the problem types in `docs/openapi.json`.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use event_pipeline::config::{SETTINGS, Setting};
use serde_json::Value;

use crate::support::interface;
use crate::support::*;

const RENEW: &str = "BLESS=1 cargo test --test it reference::";

/// Compares a document with what it is generated from. With `BLESS=1` it is written instead.
fn check(document: &str, generated: &str) {
    if std::env::var_os("BLESS").is_some_and(|bless| bless == "1") {
        fs::write(document, generated).unwrap();
    }
    let text = fs::read_to_string(document).unwrap_or_default();
    let differs = text.lines().zip(generated.lines()).find(|(told, generated)| told != generated);
    assert!(text == generated, "{document} is not up to date: {differs:?}. To write it again: {RENEW}");
}

/// Breaks a paragraph or an item of a list into lines of 120 columns, as in the documents that are written by hand.
fn folded(text: &str) -> String {
    let indent = if text.starts_with("* ") { "\n  " } else { "\n" };
    let (mut folded, mut width) = (String::new(), 0);
    for word in text.split(' ') {
        let word_width = word.chars().count();
        if width > 0 && width + 1 + word_width > 120 {
            folded.push_str(indent);
            width = indent.len() - 1;
        } else if width > 0 {
            folded.push(' ');
            width += 1;
        }
        folded.push_str(word);
        width += word_width;
    }
    folded + "\n"
}

#[test]
fn the_configuration_reference_is_what_the_table_of_settings_says() {
    let mut text = format!(
        "# Configuration

<!-- Generated from the table in src/config/table.rs. To write it again: {RENEW} -->

Each setting has one name. `MAX_QUEUE_SIZE` is the environment variable, `--max-queue-size` the flag of
`event-pipeline serve`, `max_queue_size` the key in the TOML file.

A flag overrides an environment variable, which overrides the file, which overrides the default. The file is the one that
`--config` names, else the one that `CONFIG_FILE` names, else `event-pipeline.toml` in the working directory if it
exists:

```toml
port = 9000
database_path = \"/var/lib/events/events.db\"
max_queue_bytes = \"128 MiB\"

[event_types]
hand_raised = \"A student raised a hand\"
```

`event-pipeline config show` prints every setting with its value and what has set it. A value that cannot be used stops
the start with exit code 2 and one line that names the setting, before anything is opened.

A size is a number of bytes, or a number with `KiB`, `MiB` or `GiB`. Seconds may have a fraction. A switch is `true` or
`false` (also `1`, `yes`, `on`, `0`, `no`, `off`); its flag alone, such as `--require-auth`, means `true`.

"
    );
    let headings: Vec<&[Setting]> = SETTINGS.chunk_by(|a, b| a.heading == b.heading).collect();
    for settings in &headings {
        let links: Vec<_> = settings.iter().map(|s| format!("[`{}`](#{})", s.name, s.key())).collect();
        let heading = settings[0].heading;
        text += &folded(&format!("* [{heading}](#{}): {}", heading.to_lowercase(), links.join(", ")));
    }
    for settings in headings {
        write!(text, "\n## {}\n", settings[0].heading).unwrap();
        for setting in settings {
            let default = match (setting.default_rule, setting.default()) {
                (Some(rule), _) => rule.to_owned(),
                (None, none) if none.is_empty() => "none".to_owned(),
                (None, default) if setting.is_secret() => default,
                (None, default) => format!("`{default}`"),
            };
            let what = folded(&format!("{}.", setting.help));
            write!(text, "\n### `{}`\n\n{what}\n", setting.name).unwrap();
            text += &folded(&format!("* Flag: `--{}`. In the file: `{}`.", setting.flag(), setting.key()));
            text += &folded(&format!("* Default: {default}."));
            text += &folded(&format!("* Values: {}.", setting.allowed.to_string().replace('*', "`*`")));
        }
    }
    check("docs/configuration.md", &text);
}

/// A file of settings in which nothing is set.
fn commented_settings() -> String {
    let mut text = format!(
        "# Settings of the event pipeline. Each is shown with its default; take away the # before one to change it. What a
# value may be: event-pipeline serve --help. What is in effect: event-pipeline config show --config FILE.
#
# Generated from the table in src/config/table.rs. To write it again: {RENEW}
"
    );
    for settings in SETTINGS.chunk_by(|a, b| a.heading == b.heading) {
        write!(text, "\n# ---- {}\n", settings[0].heading).unwrap();
        for setting in settings {
            let help = match setting.default_rule {
                Some(rule) => format!("{}. Default: {rule}.", setting.help),
                None => format!("{}.", setting.help),
            };
            let lines = folded(&help);
            text.push('\n');
            lines.lines().for_each(|line| writeln!(text, "# {line}").unwrap());
            let default = setting.default();
            let value = match setting.default_rule {
                None if default.parse::<f64>().is_ok() || default == "true" || default == "false" => default,
                None if !setting.is_secret() && !default.is_empty() => format!("\"{default}\""),
                _ => "\u{2026}".to_owned(),
            };
            writeln!(text, "#{} = {value}", setting.key()).unwrap();
        }
    }
    text
}

#[test]
fn the_file_of_commented_settings_is_up_to_date_and_sets_the_defaults() {
    let text = commented_settings();
    check("deploy/event-pipeline.toml", &text);
    let folder = tempfile::tempdir().unwrap();
    let (commented, uncommented) = (folder.path().join("commented.toml"), folder.path().join("uncommented.toml"));
    std::fs::write(&commented, &text).unwrap();
    let is_setting =
        |line: &str| line.starts_with('#') && !line.starts_with("# ") && !line.ends_with('\u{2026}') && line.len() > 1;
    let set: Vec<_> = text.lines().filter(|line| is_setting(line)).map(|line| &line[1..]).collect();
    assert!(set.len() > SETTINGS.len() / 2, "{set:?}");
    std::fs::write(&uncommented, set.join("\n")).unwrap();
    let shown = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-pipeline"));
        command.env_clear().current_dir(folder.path()).args(["config", "show", "--json", "--config"]).arg(file);
        let finished = Run::start(&mut command, "").finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let shown: Value = serde_json::from_str(&finished.stdout).unwrap();
        let settings = shown["settings"].as_array().unwrap().clone();
        settings.into_iter().map(|setting| (setting["name"].clone(), setting["value"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(shown(&commented), shown(&uncommented));
}

/// What a command prints with `--help` when its output is not a terminal, so that the width is always the same.
fn help(command_words: &[String]) -> String {
    let mut command = command(Path::new("."));
    let finished = Run::start(command.args(command_words).arg("--help"), "").finish();
    assert_eq!(finished.code, Some(0), "{command_words:?}: {}", finished.stderr);
    finished.stdout.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The commands that the help of a command lists.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The help without the flags of the settings, which are in `docs/configuration.md`.
fn without_settings(help: &str) -> String {
    let is_of_settings = |line: &str| SETTINGS.iter().any(|s| line == format!("{}:", s.heading));
    let (mut kept, mut skips) = (String::new(), false);
    for line in help.lines() {
        if !line.is_empty() && !line.starts_with(' ') {
            skips = is_of_settings(line);
        }
        if !skips {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn the_command_line_reference_is_what_the_help_says() {
    let mut text = format!(
        "# Command line

<!-- Generated from what each command prints with --help. To write it again: {RENEW} -->

What each command prints with `--help`. The settings, each of which is a flag of `serve`, are in
[Configuration](configuration.md).
"
    );
    let mut left = vec![Vec::new()];
    while let Some(words) = left.pop() {
        let help = help(&words);
        for name in subcommands(&help).into_iter().rev() {
            left.push([&words[..], &[name]].concat());
        }
        let name = ["event-pipeline".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ");
        write!(text, "\n## `{name}`\n\n```text\n{}\n```\n", without_settings(&help).trim_end()).unwrap();
    }
    check("docs/command-line.md", &text);
}

#[test]
fn no_line_of_the_help_is_wider_than_100_columns() {
    let mut left = vec![Vec::new()];
    while let Some(words) = left.pop() {
        let help = help(&words);
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{words:?}: {line}");
        }
        left.extend(subcommands(&help).into_iter().map(|name| [&words[..], &[name]].concat()));
    }
}

#[test]
fn the_error_reference_is_what_openapi_json_says() {
    let mut text = format!(
        "# Errors

<!-- Generated from x-problem-types in docs/openapi.json. To write it again: {RENEW} -->

The server refuses a request with `application/problem+json` (RFC 9457):

```json
{{\"type\":\"/docs#/problems/queue-full\",\"title\":\"Service Unavailable\",\"status\":503,
 \"detail\":\"Too many events are waiting to be stored, try again\"}}
```

`type` is a relative URL: on the server itself it leads to one of these descriptions. `title` and `status` are those of
HTTP, and `detail` is a sentence. The `detail` of a 422 is a list of `{{\"loc\": […], \"msg\": \"…\", \"type\": \"…\"}}`: where,
what, and the kind. If the same request may succeed later, the answer has `Retry-After` with a number of seconds.

An open WebSocket gets error messages and [close codes](CONTRACT.md#close-codes) instead, an open event stream
[messages](event-streams.md#messages).

"
    );
    let types = interface::OPENAPI.json["x-problem-types"].as_array().unwrap();
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    for row in types {
        let slug = field(row, "slug");
        write!(
            text,
            "## {slug}\n\n{} {}: {}\n\n{}{}\n",
            row["status"],
            field(row, "title"),
            if row["detail"] == "…" {
                "a sentence of its own for each case".to_owned()
            } else {
                field(row, "detail")
            },
            folded(&format!("* **Cause.** {}", field(row, "cause"))),
            folded(&format!("* **What to do.** {}", field(row, "remedy"))),
        )
        .unwrap();
    }
    check("docs/errors.md", &(text.trim_end().to_owned() + "\n"));
}
