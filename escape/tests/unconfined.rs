//! Each case works where nothing stops it, or says why it can't: otherwise being stopped would prove nothing.
//!
//! Runs the whole program without a sandbox, as an ordinary user. What a case names as its reason is taken at its word; a
//! case without one has to escape.

use std::path::Path;
use std::process::Command;

use agentd_escape::catalogue;
use agentd_escape::report::{Judgement, Outcome};

/// Families that take gigabytes or seconds: `cargo xtask attack --none` runs them too.
const HEAVY: [&str; 1] = ["resource"];
const SOMEBODY: &str = "61234";

#[test]
fn every_case_escapes_without_a_sandbox_or_says_why_it_cannot() {
    use std::os::unix::fs::PermissionsExt;
    let place = std::env::temp_dir().join(format!("agentd-escape-test-{}", std::process::id()));
    std::fs::create_dir(&place).expect("a folder");
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).expect("open to all");
    let families: Vec<&str> = agentd_escape::cases::FAMILIES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !HEAVY.contains(name))
        .collect();
    // A copy that everybody can execute: the build's own directory may be private.
    let program = place.join("agentd-escape");
    std::fs::copy(env!("CARGO_BIN_EXE_agentd-escape"), &program).expect("a copy");
    let mut judgement = judge(&place, &families.join(","));
    for case in catalogue::all().iter().filter(|case| case.alone) {
        judgement.verdicts.extend(judge(&place, case.id).verdicts);
    }
    std::fs::remove_dir_all(&place).expect("removed");

    let cases = catalogue::all();
    let silent: Vec<String> = judgement
        .verdicts
        .iter()
        .filter(|verdict| verdict.outcome != Outcome::Escaped)
        .filter(|verdict| {
            cases
                .iter()
                .any(|case| case.id == verdict.id && case.cannot.is_none())
        })
        .map(|verdict| format!("{}: {}", verdict.id, verdict.detail))
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
    assert!(
        judgement.count(Outcome::Escaped) >= 220,
        "{} escape",
        judgement.count(Outcome::Escaped)
    );
}

fn judge(place: &Path, only: &str) -> Judgement {
    let mut command = Command::new(place.join("agentd-escape"));
    command.arg("judge").arg("--place").arg(place);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        command.args(["--user", SOMEBODY]);
    }
    command.args(["--only", only]);
    let output = command.output().expect("it runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("a judgement")
}
