//! Documents that must stay true: every verb that README names exists, every test that SPECIFICATION.md names exists.
//!
//! README: each `cargo xtask VERB` and `agentctl VERB` in code must be a verb of the program. SPECIFICATION.md: a
//! reference is `path/to/file.rs::function` in backticks; the file must hold `fn function`. Links between documents
//! must lead somewhere. Reads files and runs `agentctl --help`; the parsing is pure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;

use crate::child::capture;
use crate::workspace::{build_all, root};

const VERBS_IN: [&str; 3] = ["README.md", "docs/testing.md", "ARCHITECTURE.md"];
const PROMISES: &str = "SPECIFICATION.md";

/// Fails with everything that is not so, one a line.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let own: Vec<String> = crate::Cli::command()
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let help = capture(Command::new(build_all()?.join("agentctl")).arg("--help"))?;
    let agentctl = verbs_of_help(&help);
    if agentctl.is_empty() {
        bail!("agentctl --help lists no verbs:\n{help}");
    }
    for name in VERBS_IN {
        let text = read(Path::new(name))?;
        for (program, verbs) in [("cargo xtask", &own), ("agentctl", &agentctl)] {
            for verb in verbs_named(&text, program) {
                if !verbs.contains(&verb) {
                    wrong.push(format!("{name}: `{program} {verb}` does not exist"));
                }
            }
        }
    }
    let promises = read(Path::new(PROMISES))?;
    for (file, function) in tests_named(&promises) {
        match std::fs::read_to_string(root().join(&file)) {
            Err(error) => wrong.push(format!("{PROMISES}: `{file}::{function}`: {error}")),
            Ok(code) if !code.contains(&format!("fn {function}(")) => {
                wrong.push(format!("{PROMISES}: `{file}` has no test `{function}`"));
            }
            Ok(_) => {}
        }
    }
    for document in documents()? {
        let text = read(&document)?;
        let directory = document.parent().unwrap_or(Path::new(""));
        for target in links(&text) {
            if !root().join(directory).join(&target).exists() {
                wrong.push(format!(
                    "{}: the link to {target} leads nowhere",
                    document.display()
                ));
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("{}", wrong.join("\n"))
    }
}

fn read(name: &Path) -> Result<String> {
    let path = root().join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Every Markdown file of the root and of docs/, relative to the root.
fn documents() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![root().join("docs")];
    let mut take = |path: PathBuf| {
        if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path.strip_prefix(root()).unwrap_or(&path).to_owned());
        }
    };
    for entry in std::fs::read_dir(root()).context("list the root")? {
        take(entry.context("list the root")?.path());
    }
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?
        {
            let path = entry
                .with_context(|| format!("list {}", directory.display()))?
                .path();
            if path.is_dir() {
                directories.push(path)
            } else {
                take(path)
            }
        }
    }
    Ok(found)
}

/// The verbs that clap's help lists under `Commands:`.
fn verbs_of_help(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| line.trim() != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // Deeper lines go on with a verb's description.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The words that follow `program` wherever it starts a piece of code, past its options.
fn verbs_named(text: &str, program: &str) -> Vec<String> {
    let mut verbs = Vec::new();
    for piece in code(text) {
        for command in piece.lines() {
            let command = command
                .trim_start()
                .trim_start_matches("$ ")
                .trim_start_matches("sudo ");
            let Some(rest) = command
                .strip_prefix(program)
                .filter(|rest| rest.starts_with(' '))
            else {
                continue;
            };
            let verb = rest.split_whitespace().find(|word| !word.starts_with('-'));
            // `agentctl VERB` and `agentctl [OPTIONS]` name no verb.
            if let Some(verb) =
                verb.filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            {
                verbs.push(verb.to_owned());
            }
        }
    }
    verbs
}

/// `path.rs::function` references in backticks.
fn tests_named(text: &str) -> Vec<(String, String)> {
    code(text)
        .iter()
        .filter_map(|piece| piece.split_once(".rs::"))
        .map(|(file, function)| (format!("{file}.rs"), function.to_owned()))
        .collect()
}

/// Pieces of code: what stands between backticks, and fenced blocks.
fn code(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    for (nth, block) in text.split("```").enumerate() {
        if nth % 2 == 1 {
            // The fence's language is not code.
            pieces.push(
                block
                    .split_once('\n')
                    .map_or(block, |(_, body)| body)
                    .to_owned(),
            );
        } else {
            pieces.extend(block.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    pieces
}

/// Targets of links to files of the tree, without their fragments.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#', ' ']).next())
        .filter(|target| {
            !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_found_in_blocks_and_in_lines_past_options() {
        let text = "Use `agentctl --json ps`, then\n```sh\n$ agentctl run -- true\nagentctl\n```\nnot agentctl stop, `agentctl VERB`";
        assert_eq!(verbs_named(text, "agentctl"), ["ps", "run"]);
    }

    #[test]
    fn verbs_of_a_help_text_are_its_commands_only() {
        let help = "Usage: x\n\nCommands:\n  run   Launches\n          more words\n  ps    Lists\n\nOptions:\n  -h  Help\n";
        assert_eq!(verbs_of_help(help), ["run", "ps"]);
    }

    #[test]
    fn a_test_reference_is_a_file_and_a_function() {
        assert_eq!(
            tests_named(
                "| x | `launch/tests/floor.rs::set_id_is_masked` | `cargo xtask bench launch` |"
            ),
            [(
                "launch/tests/floor.rs".to_owned(),
                "set_id_is_masked".to_owned()
            )]
        );
    }

    #[test]
    fn only_links_into_the_tree_are_followed() {
        assert_eq!(
            links("[a](docs/a.md#b) [c](https://example.org) [d](#here)"),
            ["docs/a.md"]
        );
    }
}
