//! `agentd-escape`: the escape suite as one program.
//!
//! `judge` is the host's side: it raises the victims, runs a session of the sandbox under test, and prints the verdicts.
//! `inside` is what the session runs. The other words are parts that cases start. Everything but `judge` runs with
//! whatever rights the sandbox leaves.

use std::io::Write;
use std::process::ExitCode;

use agentd_escape::{catalogue, inside, judge, scene::Scene};

const USAGE: &str = "usage: agentd-escape list
       agentd-escape inside|hold SCENE [CASE…]
       agentd-escape judge [--user UID] [--place DIR] [--policy JSON-FILE] [--mode root|user] [--only CASE,…]
                           [--runtime-dir DIR] [-- COMMAND…]

COMMAND is the sandbox under test; {program}, {scene}, {work}, {shared}, {home}, {hidden} and {cases} in it are replaced,
and `{program} inside {scene} {cases}` is what it has to run. Without a command the cases run without any sandbox.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = match words.as_slice() {
        ["list"] => print(&serde_json::to_string(&catalogue::all()).unwrap_or_default()),
        ["inside", scene, only @ ..] => run_inside(scene, only),
        // Stays afterwards, so that the session has to be ended from outside.
        ["hold", scene, only @ ..] => {
            run_inside(scene, only).and_then(|()| agentd_escape::cases::life::linger("hold"))
        }
        ["judge", options @ ..] => run_judge(options),
        // Parts of cases.
        ["echo", text] => print(text),
        ["ids"] => print(&agentd_escape::cases::privileges::own_ids()),
        ["linger", mark] => agentd_escape::cases::life::linger(mark),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agentd-escape: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").map_err(|error| error.to_string())
}

fn run_inside(scene: &str, only: &[&str]) -> Result<(), String> {
    let scene: Scene =
        serde_json::from_str(scene).map_err(|error| format!("read the scene: {error}"))?;
    let cases = catalogue::select(only)?;
    inside::run(&scene, &cases, &mut std::io::stdout().lock())
        .map_err(|error| format!("try the cases: {error}"))
}

fn run_judge(words: &[&str]) -> Result<(), String> {
    let options = judge::Options::parse(words)?;
    let judgement = judge::judge(&options).map_err(|error| error.to_string())?;
    print(&serde_json::to_string(&judgement).map_err(|error| error.to_string())?)
}
