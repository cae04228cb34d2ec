//! The small agent against the stand-in, without a daemon between them.

use std::path::Path;
use std::process::{Command, Output};

use agentd_testkit::standin::{Script, Standin};

fn run(standin: &Standin, dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_small-agent"))
        .args(arguments)
        .current_dir(dir)
        .env("ANTHROPIC_BASE_URL", standin.url())
        .env("ANTHROPIC_API_KEY", "placeholder")
        .env_remove("AGENTD_BUS")
        .output()
        .expect("the small agent starts")
}

fn standin(script: &str) -> Standin {
    Standin::local(Script::from_text(script).expect("the script is valid")).expect("a port is free")
}

const WORK: &str = r#"
    [[rule]]
    when = { task = "shout (?<word>\\w+)", turn = 0 }
    reply = { text = "I write.", tools = [
        { name = "write_file", input = { path = "note", content = "say {{word}}\n" } },
        { name = "bash", input = { command = "tr a-z A-Z < note; exit 3" } },
    ] }
    [[rule]]
    when = { turn = 1, tool_result = "note has \\d+ bytes now\nSAY (\\w+)\n+.exit status: 3" }
    reply = { tools = [{ name = "edit_file", input = { path = "note", old = "say", new = "said" } }] }
    [[rule]]
    when = { turn = 2, tool_result = "note has" }
    reply = { tools = [{ name = "read_file", input = { path = "missing" } }, { name = "ask_agent", input = { agent = "a", question = "b" } }] }
    [[rule]]
    when = { turn = 3, tool_result = "cannot read missing(.|\n)*cannot join the bus" }
    reply = { text = "All done." }
"#;

#[test]
fn tools_are_run_for_real_and_their_results_go_back() {
    for extra in [&[][..], &["--no-stream"]] {
        let dir = tempfile::tempdir().unwrap();
        let standin = standin(WORK);
        let output = run(
            &standin,
            dir.path(),
            &[&["--task", "shout hello"], extra].concat(),
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.ends_with("All done.\n"), "{text}");
        assert_eq!(
            std::fs::read_to_string(dir.path().join("note")).unwrap(),
            "said hello\n"
        );
        assert_eq!(standin.requests()[0].body["stream"], extra.is_empty());
    }
}

#[test]
fn trouble_with_the_model_ends_in_one_clear_line() {
    for (reply, needle) in [
        (
            "{ error = 'overloaded_error', status = 400, text = 'no such thing' }",
            "answered 400: no such thing",
        ),
        (
            "{ text = 'a long enough text', chunk_chars = 2, truncate_after = 5 }",
            "broke off",
        ),
        (
            "{ raw = 'data: {oops', content_type = 'text/event-stream' }",
            "malformed",
        ),
        (
            "{ raw = '', content_type = 'text/event-stream' }",
            "ended before the answer did",
        ),
        ("{ raw = '{}' }", "no content"),
    ] {
        let standin = standin(&format!("[[rule]]\nreply = {reply}"));
        let dir = tempfile::tempdir().unwrap();
        let output = run(&standin, dir.path(), &["--task", "x"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{reply}: {text}");
        assert!(
            text.starts_with("small-agent: ") && text.contains(needle) && text.lines().count() == 1,
            "{reply}: {text}"
        );
    }
}

#[test]
fn a_busy_provider_is_asked_again() {
    let standin = standin(
        "[[rule]]\ntimes = 1\nreply = { error = 'overloaded_error', status = 529 }\n[[rule]]\nreply = { text = 'now' }",
    );
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&standin, dir.path(), &["--task", "x"]).status.success());
    assert_eq!(standin.requests().len(), 2);
}
