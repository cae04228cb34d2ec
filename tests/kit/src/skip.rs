//! Skips that are counted: a test that can't run here says so, and the run's summary shows it.
//!
//! libtest knows only *passed*, *failed* and *ignored*. A test that finds the machine lacking (no root, no
//! cgroup controllers, no bubblewrap) calls [`skip`] and returns; `cargo xtask test` takes it out of the passed
//! count, prints the reason in the tier's line, and fails the run if the feature was expected here.
//!
//! The line goes to two places: stderr, for a person who runs one test with `--nocapture`, and the file named by
//! `AGENTD_SKIP_LOG`, which the runner reads, so that neither output capture nor interleaving can lose one.
//!
//! Thread and privilege: any. It fails loudly (panics) when the log is named and can't be written: a lost skip
//! would count as a pass.

use std::fs::OpenOptions;
use std::io::Write;

/// The environment variable that names the file to which [`skip`] appends.
pub const SKIP_LOG_ENV: &str = "AGENTD_SKIP_LOG";

/// What every skip line starts with.
pub const SKIP_PREFIX: &str = "agentd-skip: ";

/// Records that the calling test did not run because `feature` is missing here, and why.
///
/// `feature` is a short lower-case name as in `.ci/expect` (`root`, `cgroup-memory`, `bwrap`, `tmux`, `network`);
/// `why` is one line for a person, with the command that would help where there is one. Call it once per test,
/// then return from the test.
///
/// # Panics
///
/// When `AGENTD_SKIP_LOG` names a file that can't be appended to.
pub fn skip(feature: &str, why: &str) {
    let line = skip_line(feature, why, std::thread::current().name());
    eprint!("{line}");
    let Some(path) = std::env::var_os(SKIP_LOG_ENV) else {
        return;
    };
    // One write of one short line with O_APPEND: concurrent tests of several processes never mix their lines.
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!(
            "{SKIP_LOG_ENV}={}: the skip of {feature} can't be recorded: {error}",
            path.display()
        );
    }
}

/// `agentd-skip: FEATURE: WHY [in TEST]`, always exactly one line.
fn skip_line(feature: &str, why: &str, test: Option<&str>) -> String {
    let why = why.replace(['\n', '\r'], " ");
    match test {
        Some(test) if test != "main" => format!("{SKIP_PREFIX}{feature}: {why} [in {test}]\n"),
        _ => format!("{SKIP_PREFIX}{feature}: {why}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::skip_line;

    #[test]
    fn a_skip_is_one_line_that_names_feature_reason_and_test() {
        assert_eq!(
            skip_line(
                "root",
                "needs root\nrun it with sudo",
                Some("kill::the_tree_dies")
            ),
            "agentd-skip: root: needs root run it with sudo [in kill::the_tree_dies]\n"
        );
        assert_eq!(
            skip_line("root", "needs root", Some("main")),
            "agentd-skip: root: needs root\n"
        );
    }
}
