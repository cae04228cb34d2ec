//! What one policy allows beyond another, and what a policy says to a question.

use super::{load, named};
use agentd_sandbox::policy::{Expectation, Question, Verdict};
use agentd_sandbox::{CallerContext, EffectivePolicy};
use proptest::prelude::*;

fn ada() -> CallerContext {
    CallerContext {
        home: Some("/home/ada".into()),
        workspace: Some("/home/ada/repo".into()),
        exe: None,
        keep: Vec::new(),
    }
}

fn over(text: &str, ceiling: &str) -> Vec<String> {
    let (own, top) = (load(text).expect("loads"), load(ceiling).expect("loads"));
    let found = own.exceeds(&ada(), &top, &ada());
    found
        .iter()
        .map(|e| {
            format!(
                "{}: {} ({}) over {}: {}",
                e.key, e.value, e.origin, e.ceiling, e.allowed
            )
        })
        .collect()
}

#[test]
fn a_policy_never_exceeds_itself_or_what_it_was_extended_from_by_taking_away() {
    for name in [
        "base",
        "toolchain",
        "coding",
        "review",
        "build",
        "python-task",
        "strict",
    ] {
        let policy = named(name);
        let found = policy.exceeds(&ada(), &policy, &ada());
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
    let tighter = "extends = \"coding\"\n[limits]\nmemory = \"1GiB\"\n[net]\nallow = { replace = [\"github.com:443\"] }\n\
                   [fs]\ndeny = [\"${workspace}/.env\"]\n[ipc]\nsend = { replace = [\"team.*\"] }\n[tools]\ndeny = [\"WebSearch\"]\n\
                   [degrade]\nallow = { replace = [] }\n[model]\nmodels = [\"claude-*\"]\nmax_tokens = 100\n";
    assert_eq!(over(tighter, "extends = \"coding\""), [""; 0]);
}

#[test]
fn each_kind_of_excess_names_key_value_line_and_ceiling() {
    for (more, expected) in [
        (
            "[fs]\nread = [\"~/.ssh\"]",
            "fs.read: ~/.ssh (example.toml:3) over coding (built in)",
        ),
        (
            "[fs]\nwrite = [\"~/.cargo/bin\"]",
            "fs.write: ~/.cargo/bin (example.toml:3)",
        ),
        (
            "[fs]\nprotect = { remove = [\"${workspace}/.envrc/\"] }",
            "no ${workspace}/.envrc/ to be changed (fs.protect)",
        ),
        (
            "[fs]\nprotect = { remove = [\"${workspace}/.git/hooks/\"] }",
            "no ${workspace}/.git/hooks/ to be changed (fs.protect)",
        ),
        (
            "[fs]\nexec = [\"/srv/tools\"]",
            "fs.exec: /srv/tools (example.toml:3)",
        ),
        (
            "[exec]\nmemfd = \"any\"",
            "exec.memfd: any (example.toml:3)",
        ),
        ("[net]\nmode = \"host\"", "net.mode: host (example.toml:3)"),
        (
            "[net]\nallow = [\"evil.example\"]",
            "net.allow: evil.example (example.toml:3)",
        ),
        (
            "[net]\nask = [\"evil.example\"]",
            "net.ask: evil.example (example.toml:3)",
        ),
        (
            "[net]\ncredentials = [\"forge\"]",
            "net.credentials: forge (example.toml:3)",
        ),
        (
            "[ipc]\nsockets = [\"/run/db.sock\"]",
            "ipc.sockets: /run/db.sock (example.toml:3)",
        ),
        (
            "[devices]\nallow = [\"/dev/kvm\"]",
            "devices.allow: /dev/kvm (example.toml:3)",
        ),
        (
            "[secrets]\nfiles = { k = \"~/.ssh/id\" }",
            "secrets.files.k: ~/.ssh/id (example.toml:3)",
        ),
        (
            "[limits]\nmemory = \"none\"",
            "limits.memory: none (example.toml:3) over coding (built in):",
        ),
        (
            "[limits]\ncpu = \"401%\"",
            "limits.cpu: 401% (example.toml:3)",
        ),
        ("[limits]\nwall_clock = \"13h\"", "at most 43200 s"),
        ("[limits]\ntokens = 20_000_001", "limits.tokens: 20000001"),
        (
            "[env]\npass = [\"AWS_*\"]",
            "env.pass: AWS_* (example.toml:3)",
        ),
        (
            "[ssh]\nagent = \"forward\"",
            "ssh.agent: forward (example.toml:3)",
        ),
        (
            "[degrade]\nallow = [\"file-rules\"]",
            "degrade.allow: file-rules (example.toml:3)",
        ),
    ] {
        let found = over(
            &format!("extends = \"coding\"\n{more}\n"),
            "extends = \"coding\"",
        );
        assert!(
            found.iter().any(|f| f.contains(expected)),
            "{more}: {found:#?}"
        );
    }
    // What the ceiling takes away has to be taken away below it, too.
    let top = "extends = \"coding\"\n[fs]\ndeny = [\"${workspace}/.env\"]\n[tools]\ndeny = [\"WebSearch\"]\nask = [\"Bash(git push*)\"]\n\
               [net]\nask = [\"github.com:443\"]\nports = [3000]\n[ipc]\nshared_memory = false\n[model]\nmodels = [\"claude-*\"]\n[exec]\nwrite_exec = false\n";
    let found = over("extends = \"coding\"", top);
    for expected in [
        "fs.write: ${workspace}",
        "tools.deny: no WebSearch",
        "tools.ask: no Bash(git push*)",
        "net.allow: github.com:443",
        "net.ports: any",
        "ipc.shared_memory: true",
        "model.models: every model",
        "exec.write_exec: true",
    ] {
        assert!(
            found.iter().any(|f| f.starts_with(expected)),
            "{expected}: {found:#?}"
        );
    }
    let below = over(
        "[fs]\nread = [\"~/.config/tool/key\"]",
        "[fs]\nread = [\"~/.config\"]\ndeny = [\"~/.config/tool\"]",
    );
    assert!(
        below[0].starts_with("fs.read: ~/.config/tool/key"),
        "{below:#?}"
    );
}

#[test]
fn a_ceilings_home_is_not_what_the_caller_says_it_is() {
    let policy = load("[fs]\nread = [\"~\"]").expect("loads");
    let top = load("[fs]\nread = [\"~\"]").expect("loads");
    let liar = CallerContext {
        home: Some("/etc".into()),
        ..ada()
    };
    assert!(policy.exceeds(&ada(), &top, &ada()).is_empty());
    assert_eq!(policy.exceeds(&liar, &top, &ada())[0].value, "~");
}

#[test]
fn questions_are_answered_with_the_line_that_decides() {
    let policy = load(
        "extends = \"coding\"\n[fs]\ndeny = [\"${workspace}/.env\"]\nprotect = [\"${workspace}/.env.d/\"]\n\
         [net]\nask = [\"db.example:5432\"]\n[tools]\ndeny = [\"Bash(git push*)\"]\n",
    )
    .expect("loads");
    let ask = |text: &str| {
        let question: Question = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        let answer = policy.answer(&question, &ada());
        let by = answer.by.map_or("-".to_owned(), |o| o.to_string());
        format!("{:?} {by}: {}", answer.verdict, answer.why)
    };
    for (question, expected) in [
        ("read ${workspace}/src/main.rs", "Allow coding (built in):"),
        ("write /home/ada/repo/src", "Allow coding (built in):"),
        (
            "read ${workspace}/.env",
            "Deny example.toml:3: fs.deny hides it",
        ),
        (
            "write ${workspace}/.env.d/tasks.json",
            "Deny example.toml:4: fs.protect",
        ),
        ("read ${workspace}/.env.d/tasks.json", "Allow"),
        (
            "write ${workspace}/.git/hooks/pre-commit",
            "Deny base (built in):",
        ),
        ("write ${workspace}/.git/index", "Allow coding (built in):"),
        (
            "write ${workspace}/.git/modules/x/config",
            "Allow coding (built in):",
        ),
        (
            "read ~/.ssh/id_ed25519",
            "Deny -: every sandbox has a private one",
        ),
        ("write ~/notes", "Allow -: into the sandbox's private one"),
        ("read /root/x", "Deny -: no line of fs.read"),
        ("write /usr/bin/git", "Deny base (built in):"),
        ("exec /usr/bin/git", "Allow base (built in):"),
        ("exec ${workspace}/a.out", "Allow coding (built in):"),
        ("exec /tmp/a.out", "Allow coding (built in):"),
        (
            "exec /etc/localtime",
            "Deny -: no line of fs.exec covers it",
        ),
        ("connect github.com:443", "Allow coding (built in):"),
        ("connect github.com:22", "Deny -: port 22"),
        ("connect db.example:5432", "Ask example.toml:6"),
        ("tool Bash(git push)", "Deny example.toml:8"),
        ("tool Bash(git status)", "Allow -"),
        ("model claude-x", "Allow coding (built in):"),
        ("env LC_ALL", "Allow base (built in):"),
        ("env AWS_SECRET_ACCESS_KEY", "Deny -"),
        ("syscalls ipc", "Allow coding (built in):"),
        ("send reviewer", "Allow coding (built in):"),
    ] {
        let answer = ask(question);
        assert!(answer.starts_with(expected), "{question}: {answer}");
    }
    for (wrong, why) in [
        ("red /usr", "did you mean \"read\"?"),
        ("read", "a question is KIND"),
        ("read usr", "the path is relative"),
        ("connect x", "write HOST:PORT"),
        ("syscalls all", "is not a set of system calls"),
        ("tool Bash(x", "a use of a tool is"),
    ] {
        let error = wrong.parse::<Question>().expect_err(wrong);
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

#[test]
fn expectations_know_their_lines() {
    let file = "# what coding has to do\nallow = [\n    \"read ${workspace}/a\",\n]\ndeny = [\"read ~/.ssh\"]\n";
    let list = Expectation::read("e.toml", file).expect("reads");
    let lines: Vec<_> = list
        .iter()
        .map(|e| (e.verdict, e.origin.to_string()))
        .collect();
    assert_eq!(
        lines,
        [
            (Verdict::Allow, "e.toml:3".into()),
            (Verdict::Deny, "e.toml:5".into())
        ]
    );
    let wrong =
        Expectation::read("e.toml", "alow = []\ndeny = [\"reed /x\", 3]\n").expect_err("wrong");
    let wrong = wrong.to_string();
    for expected in [
        "e.toml:1: alow: there is no such key",
        "e.toml:2: deny = \"reed /x\"",
        "e.toml:2: deny: this is not a string",
    ] {
        assert!(wrong.contains(expected), "{wrong}");
    }
}

#[test]
fn a_diff_says_what_differs_and_which_allows_more() {
    let diff = named("coding").diff(&named("review"));
    let keys: Vec<&str> = diff.differences.iter().map(|d| d.key.as_str()).collect();
    for key in ["fs.write", "net.mode", "limits.memory"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    assert!(diff.left_exceeds.iter().any(|e| e.key == "fs.write"));
    assert!(diff.right_exceeds.is_empty(), "{:#?}", diff.right_exceeds);
    let same = named("base").diff(&named("base"));
    assert!(same.differences.is_empty() && same.left_exceeds.is_empty());
}

/// A policy over a small vocabulary, so that random ones overlap.
fn small() -> impl Strategy<Value = String> {
    let places = || {
        prop::sample::subsequence(
            vec![
                "/srv",
                "/srv/a",
                "/srv/a/b",
                "/srv/c",
                "~",
                "~/x",
                "${workspace}",
                "${workspace}/d",
            ],
            0..5,
        )
    };
    let list = |items: Vec<&str>| format!("{items:?}");
    let hosts = || {
        prop::sample::subsequence(
            vec![
                "a.example:443",
                "*.example:443",
                "b.a.example",
                "*:443",
                "a.example:22",
            ],
            0..3,
        )
    };
    let names = || prop::sample::subsequence(vec!["a", "a.*", "a.b", "#"], 0..3);
    (places(), places(), places(), places(), places(), hosts(), hosts(), names(), 0usize..3, 0usize..2).prop_map(
        move |(read, write, exec, protect, deny, allow, ask, send, memfd, flag)| {
            format!(
                "[fs]\nread = {}\nwrite = {}\nexec = {}\nprotect = {}\ndeny = {}\n[exec]\nmemfd = {:?}\nwrite_exec = {}\n\
                 [net]\nmode = {:?}\nallow = {}\nask = {}\n[ipc]\nsend = {}\n",
                list(read), list(write), list(exec), list(protect), list(deny),
                ["none", "data", "any"][memfd], flag == 1, ["none", "proxy"][flag], list(allow), list(ask), list(send),
            )
        },
    )
}

/// How much of it is allowed. What a sandbox has of its own where the host's is not shown counts as nothing.
fn rank(policy: &EffectivePolicy, kind: &str, about: &str) -> u8 {
    let verdict = |kind| {
        policy
            .answer(&Question::new(kind, about).expect("a question"), &ada())
            .verdict
    };
    let is_file = ["read", "write", "exec"].contains(&kind);
    match verdict(kind) {
        _ if is_file && verdict("read") == Verdict::Deny => 0,
        Verdict::Deny => 0,
        Verdict::Ask => 1,
        Verdict::Allow => 2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The promise of a ceiling: what stays within it gets nothing that it would not get.
    #[test]
    fn what_does_not_exceed_a_ceiling_is_allowed_nothing_beyond_it(own in small(), top in small()) {
        let (own, top) = (load(&own).expect("loads"), load(&top).expect("loads"));
        if own.exceeds(&ada(), &top, &ada()).is_empty() {
            for place in ["/srv", "/srv/a", "/srv/a/b", "/srv/a/b/c", "/srv/c/x", "~", "~/x", "~/y/z", "${workspace}", "${workspace}/d", "${workspace}/d/e"] {
                for kind in ["read", "write", "exec"] {
                    prop_assert!(rank(&own, kind, place) <= rank(&top, kind, place), "{} {}", kind, place);
                }
            }
            for host in ["a.example:443", "a.example:22", "b.a.example:80", "c.b.a.example:443", "other:443"] {
                prop_assert!(rank(&own, "connect", host) <= rank(&top, "connect", host), "{}", host);
            }
            for name in ["a", "a.b", "a.b.c", "z"] {
                prop_assert!(rank(&own, "send", name) <= rank(&top, "send", name), "{}", name);
            }
            prop_assert!(own.exec.memfd <= top.exec.memfd && own.exec.write_exec <= top.exec.write_exec);
        }
    }

    /// Laying a policy over itself, or over what it extends, changes nothing; merging is the same whichever way it is read.
    #[test]
    fn a_policy_is_within_itself_and_hashes_the_same_twice(text in small()) {
        let (one, two) = (load(&text).expect("loads"), load(&text).expect("loads"));
        prop_assert_eq!(one.hash(), two.hash());
        prop_assert!(one.diff(&two).differences.is_empty());
        let found = one.exceeds(&ada(), &two, &ada());
        prop_assert!(found.is_empty(), "{:#?}", found);
    }
}
