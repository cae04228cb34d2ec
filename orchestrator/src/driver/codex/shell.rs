//! What a command of Codex really runs: it shows its shell's command line, quoted (`/bin/bash -lc 'git status'`), and
//! the policy's rules are about the script in it.
//!
//! Pure. What can't be taken apart is an error, so that the driver refuses it instead of judging a text that no rule
//! was written for.

/// The script that `line` hands to a shell; `line` itself when it runs a program without one.
///
/// # Errors
/// A sentence, when the quoting can't be read.
pub(super) fn script(line: &str) -> Result<String, String> {
    let words = words(line)?;
    if let [shell, flags, script] = words.as_slice()
        && is_shell(shell)
        && takes_script(flags)
    {
        return Ok(script.clone());
    }
    Ok(line.to_owned())
}

fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    ["sh", "bash", "dash", "zsh", "ash", "ksh"].contains(&name)
}

/// `-c`, `-lc`, `-ic`: flags of which the last says that a script follows.
fn takes_script(flags: &str) -> bool {
    flags.strip_prefix('-').is_some_and(|letters| {
        letters.ends_with('c') && letters.bytes().all(|letter| b"lic".contains(&letter))
    })
}

/// Splits a line into words by the rules of a POSIX shell's quotes. Nothing is expanded.
fn words(line: &str) -> Result<Vec<String>, String> {
    let unfinished = |what: &str| Err(format!("a command line that ends inside {what}"));
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(char) => word.push(char),
                        None => return unfinished("single quotes"),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(char @ ('"' | '\\' | '$' | '`')) => word.push(char),
                            Some('\n') => {}
                            Some(char) => word.extend(['\\', char]),
                            None => return unfinished("double quotes"),
                        },
                        Some(char) => word.push(char),
                        None => return unfinished("double quotes"),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(char) => word.get_or_insert_default().push(char),
                None => return unfinished("an escape"),
            },
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_script_is_taken_out_of_its_shell() {
        for (line, want) in [
            ("/bin/bash -lc 'git status'", "git status"),
            ("bash -c ls", "ls"),
            ("/bin/sh -c \"echo 'it'\\\"s\\\"\"", "echo 'it'\"s\""),
            ("/bin/bash -lc 'a'\\''b'", "a'b"),
            ("/bin/zsh -lc 'ls && cat x\ncat y'", "ls && cat x\ncat y"),
        ] {
            assert_eq!(script(line).as_deref(), Ok(want), "{line}");
        }
    }

    #[test]
    fn what_is_no_shell_stays_as_it_is() {
        for line in [
            "git status",
            "bash script.sh arg",
            "bash -lc 'a' b",
            "bash --rcfile x",
            "/opt/bashful -c x",
            "bash -x y",
        ] {
            assert_eq!(script(line).as_deref(), Ok(line));
        }
    }

    #[test]
    fn broken_quotes_are_an_error() {
        for line in ["bash -lc 'x", "bash -lc \"x", "bash \\", "bash \"a\\"] {
            assert!(script(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_comes_back(text in "\\PC{0,60}") {
            let quoted = text.replace('\'', "'\\''");
            prop_assert_eq!(script(&format!("/bin/bash -lc '{quoted}'")), Ok(text));
        }
    }
}
