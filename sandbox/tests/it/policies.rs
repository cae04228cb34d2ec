//! Loading: inheritance, origins, errors, lint, settings.

use super::{load, load_with, named};
use agentd_sandbox::{
    Access, CallerContext, Decision, EffectivePolicy, LoopbackPorts, Memfd, NetMode, PolicyError,
    PolicyRef, Sources, WantedGrant,
};
use proptest::prelude::*;

const BUILT_IN: [&str; 7] = [
    "base",
    "build",
    "coding",
    "python-task",
    "review",
    "strict",
    "toolchain",
];

fn error(text: &str) -> String {
    load(text).expect_err("must not load").to_string()
}

#[test]
fn built_in_policies_are_clean() {
    for name in BUILT_IN {
        let warnings: Vec<_> = named(name).lint().iter().map(ToString::to_string).collect();
        assert!(warnings.is_empty(), "{name}: {warnings:#?}");
    }
}

#[test]
fn built_in_policies_open_what_their_names_say_and_no_more() {
    let coding = named("coding");
    for name in BUILT_IN {
        let policy = named(name);
        let reaches = name == "coding";
        assert_eq!(policy.net.mode == NetMode::Proxy, reaches, "{name}");
        assert_eq!(policy.ipc.send.is_empty(), !reaches, "{name}");
        assert_eq!(policy.model.enabled, reaches || name == "review", "{name}");
        let writes = ["coding", "build", "python-task"].contains(&name);
        assert_eq!(policy.fs.write.is_empty(), !writes, "{name}");
        assert_ne!(policy.exec.memfd, Memfd::Any, "{name}");
        assert!(
            policy.sockets.is_empty() && policy.devices.is_empty() && policy.secrets.is_empty(),
            "{name}"
        );
        // Whoever may execute what the agent writes is named here, so that nobody joins them by an oversight.
        let runs_its_own = policy
            .fs
            .exec
            .iter()
            .any(|e| policy.fs.write.iter().any(|w| w.value == e.value));
        assert_eq!(runs_its_own, ["coding", "build"].contains(&name), "{name}");
        for limit in [
            policy.limits.memory_bytes,
            policy.limits.pids,
            policy.limits.cpu_percent,
            policy.limits.fsize_bytes,
        ] {
            assert!(limit.is_some(), "{name}");
        }
    }
    let strict = named("strict");
    assert_eq!(strict.exec.memfd, Memfd::Refused);
    assert_eq!(strict.net.ports, LoopbackPorts::Only(Vec::new()));
    assert!(strict.degrade.is_empty() && !strict.ipc.shared_memory && !strict.exec.write_exec);
    let sets: Vec<_> = strict.syscalls.iter().map(|s| s.value.name()).collect();
    assert!(
        !sets
            .iter()
            .any(|s| ["locks", "ipc", "confinement", "debug"].contains(s)),
        "{sets:?}"
    );
    assert!(coding.syscalls.len() > sets.len());
}

#[test]
fn every_value_names_its_file_and_line() {
    let policy = load("extends = \"base\"\n\n[limits]\nmemory = \"4GiB\"\n").expect("loads");
    let line = |key: &str| {
        policy
            .shown
            .iter()
            .find(|s| s.key == key)
            .map(|s| format!("{} {}", s.value, s.origin))
    };
    assert_eq!(
        line("limits.memory").as_deref(),
        Some("\"4GiB\" example.toml:4")
    );
    assert!(
        line("limits.pids")
            .expect("inherited")
            .starts_with("512 base (built in):")
    );
    assert!(
        policy.shown.iter().all(|s| s.origin.line > 0),
        "a value without a line"
    );
    assert_eq!(policy.files, ["base (built in)", "example.toml"]);
}

#[test]
fn show_is_aligned_and_complete() {
    let policy =
        load("[limits]\nmemory = \"4GiB\"\npids = 10\n[net]\nmode = \"none\"\n").expect("loads");
    let shown = policy.show();
    let (first, rest) = shown.split_once('\n').expect("lines");
    assert!(first.starts_with("# policy example, hash "), "{first}");
    assert_eq!(
        rest,
        "net.mode = \"none\"       # example.toml:5\n\
         limits.memory = \"4GiB\"  # example.toml:2\n\
         limits.pids = 10        # example.toml:3\n"
    );
}

#[test]
fn lists_add_replace_and_remove() {
    let hosts = |text: &str| {
        load(text)
            .expect("loads")
            .egress
            .rules
            .iter()
            .map(|r| r.text.clone())
            .collect::<Vec<_>>()
    };
    let inherited = hosts("extends = \"coding\"");
    let added = hosts("extends = \"coding\"\n[net]\nallow = [\"a.example\"]");
    assert_eq!(added.len(), inherited.len() + 1);
    assert_eq!(
        hosts("extends = \"coding\"\n[net]\nallow = { replace = [\"a.example\"] }"),
        ["a.example"]
    );
    let removed = hosts("extends = \"coding\"\n[net]\nallow = { remove = [\"gitlab.com:443\"] }");
    assert_eq!(removed.len(), inherited.len() - 1);
    assert!(!removed.contains(&"gitlab.com:443".to_owned()));
}

#[test]
fn none_takes_a_limit_away() {
    let policy = load("extends = \"coding\"\n[limits]\nmemory = \"none\"\n").expect("loads");
    assert_eq!(policy.limits.memory_bytes, None);
    assert!(error("[limits]\nnofile = \"none\"").contains("this is not a number"));
}

#[test]
fn settings_win_and_say_where_they_come_from() {
    let policy = load_with(
        "extends = \"coding\"",
        &[
            ("limits.memory", "1GiB"),
            ("net.allow", "x.example:8443"),
            ("env.set.A", "1"),
        ],
    )
    .expect("loads");
    assert_eq!(policy.limits.memory_bytes, Some(1 << 30));
    assert!(matches!(
        policy.egress.allows("x.example", 8443),
        Decision::Allow { .. }
    ));
    assert_eq!(policy.env.set["A"].value, "1");
    let memory = policy
        .shown
        .iter()
        .find(|s| s.key == "limits.memory")
        .expect("shown");
    assert_eq!(memory.origin.to_string(), "--set limits.memory");
    let wrong = load_with("", &[("limits.memmory", "1GiB"), ("limits.pids", "many")])
        .expect_err("wrong")
        .to_string();
    assert!(wrong.contains("did you mean limits.memory?"), "{wrong}");
    assert!(
        wrong.contains("--set limits.pids: limits.pids = many: this is not a number"),
        "{wrong}"
    );
}

#[test]
fn every_mistake_is_named_with_file_line_key_value_and_remedy() {
    for (text, expected) in [
        (
            "[fs]\nread = [\"usr\"]",
            "example.toml:2: fs.read = \"usr\": the path is relative; a path is absolute",
        ),
        (
            "[fs]\nread = [\"/a/../b\"]",
            "example.toml:2: fs.read = \"/a/../b\": the path has a . or .. component",
        ),
        (
            "[fs]\nread = \"/usr\"",
            "example.toml:2: fs.read = \"/usr\": this is not a list; an array",
        ),
        (
            "[net]\nmode = \"prxy\"",
            "example.toml:2: net.mode = \"prxy\": this is not a network mode; did you mean \"proxy\"?",
        ),
        (
            "[net]\nallow = [\"https://x.example/a\"]",
            "a rule has no scheme and no path",
        ),
        (
            "[net]\nallow = [\"x.example:99999\"]",
            "\"99999\" is not a port",
        ),
        (
            "[limits]\nmemory = \"4Gb\"",
            "\"Gb\" is not a unit of size; a size is a whole number",
        ),
        (
            "[limits]\nmemory = 4.5",
            "example.toml:2: limits.memory = 4.5: a float can't stand here",
        ),
        (
            "[limits]\nwall_clock = 90",
            "this is not a duration; a duration is written like",
        ),
        (
            "[ipc]\nsend = [\"a b\"]",
            "not a name or pattern; ' ' is not allowed",
        ),
        (
            "[tools]\ndeny = [\"Bash(\"]",
            "not a tool rule; a tool rule is Tool or Tool(pattern)",
        ),
        (
            "[syscalls]\nallow = [\"proces\"]",
            "did you mean \"process\"?",
        ),
        (
            "[degrade]\nallow = [\"file-view\"]",
            "example.toml:2: degrade.allow = \"file-view\": this is not a property",
        ),
        (
            "[env]\npass = [\"A=B\"]",
            "\"A=B\" is not the name of an environment variable",
        ),
        (
            "[env]\nset = { A = 1 }",
            "example.toml:2: env.set.A = 1: this is not a string",
        ),
        (
            "memory = \"1GiB\"",
            "example.toml:1: memory: there is no such key or section; memory belongs under [limits]",
        ),
        (
            "[fs]\nmode = \"none\"",
            "there is no such key in [fs]; mode belongs under [net]",
        ),
        (
            "[network]\nmode = \"none\"",
            "there is no such key or section",
        ),
        (
            "net = 3",
            "example.toml:1: net = 3: this is a section; write [net]",
        ),
        (
            "extends = \"codign\"",
            "no policy is named \"codign\"; there are: base, build, coding, python-task, review, strict, toolchain (did you mean \"coding\"?)",
        ),
        (
            "[exec]\nmemfd = \"never\"",
            "example.toml:2: exec.memfd = \"never\": this is not a rule for memory files; allowed are any, data, none",
        ),
        (
            "[net]\nports = [0]",
            "example.toml:2: net.ports = [0]: \"0\" is not a port; write \"any\", or an array",
        ),
        ("[net]\nports = [\"9-8\"]", "9-8 is not a range"),
        ("[net]\nports = [\"1-300\"]", "these are 300 ports"),
        (
            "[devices]\nallow = [\"/etc/passwd\"]",
            "this is not a device; a device is a node below /dev",
        ),
        (
            "[limits]\ncost = \"5\"",
            "the dollar sign is missing; it is an amount of US dollars",
        ),
        (
            "[limits]\ndisk_inodes = 1",
            "the number is out of range; it is a whole number from 256",
        ),
        (
            "[secrets]\nfiles = { \"../x\" = \"/a\" }",
            "example.toml:2: secrets.files.../x: \"../x\" is not the name of a secret",
        ),
        (
            "[secrets]\nfiles = { x = \"a\" }",
            "example.toml:2: secrets.files.x = \"a\": the path is relative",
        ),
        ("[limits\nmemory = 1", "example.toml:1: not valid TOML"),
        (
            "[limits]\npids = 5\npids = 6",
            "example.toml:3: not valid TOML: duplicate key",
        ),
    ] {
        let error = error(text);
        assert!(
            error.contains(expected),
            "{text}\n  gave: {error}\n  want: {expected}"
        );
    }
}

#[test]
fn what_executes_and_what_is_reached_inside_is_said() {
    let text = "extends = \"base\"\n[exec]\nmemfd = \"none\"\nwrite_exec = true\n[net]\nports = [3000, \"8000-8002\", \"3000\"]\n\
                [fs]\nprotect = [\"${workspace}/.git/hooks/\", \"${workspace}/.envrc\"]\nscratch = [\"~/x\"]\n\
                [ipc]\nsockets = [\"/run/db.sock\"]\n[devices]\nallow = [\"/dev/kvm\"]\n\
                [limits]\ncost = \"$2.50\"\ndisk = \"1GiB\"\ndisk_inodes = 1000\n[secrets]\nfiles = { key = \"~/k\" }\n";
    let policy = load(text).expect("loads");
    assert_eq!(policy.exec.memfd, Memfd::Refused);
    assert!(policy.exec.write_exec);
    let ports = LoopbackPorts::Only(vec![3000, 8000, 8001, 8002]);
    assert_eq!(policy.net.ports, ports);
    assert!(policy.fs.protect[0].value.folder && !policy.fs.protect[1].value.folder);
    assert_eq!(policy.fs.scratch[0].value.to_string(), "~/x");
    assert_eq!(policy.sockets[0].origin.to_string(), "example.toml:11");
    assert_eq!(policy.devices[0].value.to_string(), "/dev/kvm");
    assert_eq!(policy.limits.cost_micro_usd, Some(2_500_000));
    assert_eq!(policy.limits.disk_bytes, Some(1 << 30));
    assert_eq!(policy.limits.disk_inodes, Some(1000));
    assert_eq!(policy.secrets["key"].value.to_string(), "~/k");
    let shown = policy.show();
    for line in [
        "exec.memfd = \"none\"",
        "net.ports = [3000, \"8000-8002\", \"3000\"]",
        "fs.protect = \"${workspace}/.git/hooks/\"",
        "limits.cost = \"$2.50\"",
        "secrets.files.key = \"~/k\"",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    // An array of ports replaces, as every single value does; and an empty one is not the same as none.
    let settings = [
        ("net.ports", ""),
        ("secrets.files.other", "/srv/o"),
        ("exec.write_exec", "false"),
    ];
    let again = load_with(text, &settings).expect("loads");
    assert_eq!(again.net.ports, LoopbackPorts::Only(Vec::new()));
    assert_eq!(again.secrets.len(), 2);
    assert!(!again.exec.write_exec && again.hash() != policy.hash());
    let default = load("").expect("loads");
    assert_eq!(
        (default.exec.memfd, default.exec.write_exec),
        (Memfd::Data, false)
    );
    assert_eq!(default.net.ports, LoopbackPorts::Any);
}

#[test]
fn shared_memory_is_given_unless_the_policy_says_otherwise() {
    let ipc = |text: &str| load(text).expect("loads").ipc;
    assert!(ipc("extends = \"base\"").shared_memory);
    let without = ipc("extends = \"coding\"\n[ipc]\nshared_memory = false\n");
    assert!(!without.shared_memory && without.may_send("anyone"));
    let again = load("[ipc]\nshared_memory = false\n")
        .expect("loads")
        .show();
    assert!(again.contains("ipc.shared_memory = false"), "{again}");
    let wrong = error("[ipc]\nshared_memory = \"no\"");
    assert!(
        wrong.contains("example.toml:2: ipc.shared_memory = \"no\"")
            && wrong.contains("write true or false, without quotes"),
        "{wrong}"
    );
}

#[test]
fn all_mistakes_are_reported_at_once_in_file_order() {
    let error = load("[net]\nmode = 1\n[limits]\npids = 0\ncpu = \"x\"\n").expect_err("wrong");
    let lines: Vec<u32> = error.diagnostics().iter().map(|d| d.origin.line).collect();
    assert_eq!(lines, [2, 4, 5]);
}

#[test]
fn policies_that_extend_each_other_are_refused() {
    let place = std::env::temp_dir().join(format!("agentd-policy-test-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("made");
    std::fs::write(place.join("one.toml"), "extends = \"two\"").expect("written");
    std::fs::write(place.join("two.toml"), "extends = \"one\"").expect("written");
    std::fs::write(
        place.join("coding.toml"),
        "extends = \"base\"\n[limits]\npids = 77\n",
    )
    .expect("written");
    let sources = Sources {
        folders: vec![place.clone()],
        settings: Vec::new(),
    };
    let cycle = EffectivePolicy::load(&PolicyRef::Name("one".into()), &sources);
    let own = EffectivePolicy::load(&PolicyRef::Name("coding".into()), &sources);
    std::fs::remove_dir_all(&place).expect("removed");
    let cycle = cycle.expect_err("a cycle");
    assert_eq!(
        cycle.to_string(),
        "policy one extends itself: one extends two extends one"
    );
    // The operator's policy of the same name hides the built-in one.
    assert_eq!(own.expect("loads").limits.pids, Some(77));
}

#[test]
fn names_do_not_lead_out_of_the_folders() {
    let sources = Sources {
        folders: vec!["/etc".into()],
        settings: Vec::new(),
    };
    for name in ["../etc/passwd", "a/b", "", ".", "x.toml"] {
        let error =
            EffectivePolicy::load(&PolicyRef::Name(name.into()), &sources).expect_err("not a name");
        assert!(
            matches!(error, PolicyError::NotFound { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn the_hash_is_of_the_meaning() {
    let hash = |t: &str| load(t).expect("loads").hash();
    let one = hash("[limits]\npids = 10\n[net]\nmode = \"none\"\n");
    assert_eq!(
        one,
        hash("# a comment\n[net]\nmode = 'none'\n\n[limits]\npids = 10 # same\n")
    );
    assert_ne!(one, hash("[limits]\npids = 11\n[net]\nmode = \"none\"\n"));
    assert_eq!(one.len(), 64);
}

#[test]
fn lint_gives_reasons() {
    let policy = load(
        "extends = \"coding\"\n[fs]\nread = [\"~/.ssh\"]\nwrite = [\"~/.cargo/bin\"]\ndeny = [\"/root/x\"]\n\
         [net]\nallow = [\"*\", \"*.github.io\"]\n[env]\npass = [\"AWS_SECRET_ACCESS_KEY\"]\n[limits]\ntokens = \"none\"\n",
    )
    .expect("loads");
    let warnings: Vec<String> = policy.lint().iter().map(ToString::to_string).collect();
    for expected in [
        "example.toml:3: fs.read = ~/.ssh: this shows SSH keys to the agent",
        "example.toml:4: fs.write = ~/.cargo/bin: programs here can be replaced by the agent",
        "example.toml:5: fs.deny = /root/x: it is not visible anyway",
        "example.toml:7: net.allow = *: every public host can be reached",
        "example.toml:7: net.allow = *.github.io: anybody can get a name below this one",
        "example.toml:9: env.pass = AWS_SECRET_ACCESS_KEY: this hands a secret",
        "limits.tokens: there is no ceiling on what the agent spends",
    ] {
        assert!(
            warnings.iter().any(|w| w.contains(expected)),
            "{expected}\nnot in {warnings:#?}"
        );
    }
}

#[test]
fn the_caller_is_asked_for_what_only_the_caller_may_open() {
    let policy = load(
        "[fs]\nread = [\"/usr\", \"~/.cargo\", \"~/.cargo/bin\", \"${workspace}/.git/hooks\"]\nwrite = [\"${workspace}\"]\nexec = [\"~\", \"/tmp\"]\n",
    )
    .expect("loads");
    let caller = CallerContext {
        home: Some("/home/ada".into()),
        workspace: Some("/home/ada/repo".into()),
        exe: Some("/srv/tools/agent".into()),
        keep: Vec::new(),
    };
    let grant = |path: &str, access, optional| WantedGrant {
        kind: agentd_kernel::grant::Kind::File,
        src: path.into(),
        dst: path.into(),
        access,
        optional,
    };
    assert_eq!(
        policy.wanted_grants(&caller),
        [
            grant("/home/ada/repo", Access::ReadWrite, false),
            grant("/home/ada/.cargo", Access::ReadOnly, true),
            // An island: less access than what surrounds it.
            grant("/home/ada/repo/.git/hooks", Access::ReadOnly, true),
            // Pins .git, so that it can't be renamed away with the island in it.
            grant("/home/ada/repo/.git", Access::ReadWrite, true),
            grant("/srv/tools/agent", Access::ReadOnly, false),
        ]
    );
}

#[test]
fn what_is_protected_shows_nothing_and_needs_no_grant() {
    let policy = load(
        "[fs]\nwrite = [\"${workspace}\"]\nprotect = [\"${workspace}/.vscode/\", \"~/.ssh\"]\n",
    )
    .expect("loads");
    let caller = CallerContext {
        home: Some("/home/ada".into()),
        workspace: Some("/w".into()),
        ..CallerContext::default()
    };
    let wanted = policy.wanted_grants(&caller);
    let paths: Vec<_> = wanted.iter().map(|w| (w.src.to_str(), w.access)).collect();
    assert_eq!(paths, [(Some("/w"), Access::ReadWrite)]);
    let warnings: Vec<String> = policy.lint().iter().map(ToString::to_string).collect();
    let expected = "example.toml:3: fs.protect = ~/.ssh: it is not inside fs.write";
    assert!(
        warnings.iter().any(|w| w.starts_with(expected)),
        "{warnings:#?}"
    );
    let open = load(
        "extends = \"coding\"\n[ipc]\nsockets = [\"/run/docker.sock\"]\n[net]\nmode = \"host\"\n",
    )
    .expect("loads");
    let warnings: Vec<String> = open.lint().iter().map(ToString::to_string).collect();
    for expected in [
        "example.toml:3: ipc.sockets = /run/docker.sock: this hands over a container engine",
        ": model.access = gateway: the gateway is not offered in the host's network",
        "example.toml:5: net.mode = host: what listens on the host's loopback",
    ] {
        assert!(
            warnings.iter().any(|w| w.contains(expected)),
            "{warnings:#?}"
        );
    }
}

#[test]
fn what_is_denied_is_pinned_by_the_launcher_and_needs_no_grant() {
    let policy = load("[fs]\nwrite = [\"${workspace}\"]\ndeny = [\"${workspace}/.env\", \"${workspace}/a/b/key\"]\n").expect("loads");
    let caller = CallerContext {
        workspace: Some("/w".into()),
        ..CallerContext::default()
    };
    let paths: Vec<_> = policy
        .wanted_grants(&caller)
        .into_iter()
        .map(|w| (w.src, w.access))
        .collect();
    assert_eq!(paths, [("/w".into(), Access::ReadWrite)]);
}

#[test]
fn a_program_in_a_system_folder_needs_no_grant() {
    let caller = CallerContext {
        exe: Some("/usr/bin/git".into()),
        ..CallerContext::default()
    };
    assert_eq!(named("base").wanted_grants(&caller), []);
}

#[test]
fn the_program_asked_for_is_shown_by_itself_where_nothing_else_lets_it_run() {
    let caller = CallerContext {
        workspace: Some("/srv/repo".into()),
        exe: Some("/srv/repo/bin/program".into()),
        ..CallerContext::default()
    };
    let by_itself = |policy: &str| {
        let wanted = named(policy).wanted_grants(&caller);
        wanted
            .iter()
            .any(|w| Some(&w.src) == caller.exe.as_ref() && w.access == Access::ReadOnly)
    };
    for (policy, expected) in [("strict", true), ("review", true), ("coding", false)] {
        assert_eq!(by_itself(policy), expected, "{policy}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        if let Ok(policy) = load(&text) {
            prop_assert_eq!(policy.hash().len(), 64);
        }
    }

    #[test]
    fn arbitrary_values_under_real_keys_never_panic(
        section in prop::sample::select(vec![
            "fs", "exec", "runtime", "net", "model", "ipc", "devices", "limits", "env", "secrets", "tools", "syscalls", "degrade",
        ]),
        key in prop::sample::select(vec![
            "read", "write", "exec", "deny", "mode", "allow", "access", "models", "max_tokens", "send", "publish",
            "kind", "protect", "scratch", "memfd", "write_exec", "ports", "sockets", "files", "cost", "disk",
            "memory", "pids", "cpu", "nofile", "tmp", "wall_clock", "tokens", "pass", "set",
        ]),
        value in prop_oneof![
            "[0-9_]{1,30}".prop_map(|s| s),
            "\\PC{0,40}".prop_map(|s| format!("{s:?}")),
            "[a-z/~*.:${}% 0-9-]{0,40}".prop_map(|s| format!("{s:?}")),
            "[a-z/~*.:${}#() 0-9-]{0,40}".prop_map(|s| format!("[{s:?}, {s:?}]")),
            "[a-z/~*.:${}#() 0-9-]{0,40}".prop_map(|s| format!("{{ replace = [{s:?}], add = 1 }}")),
            "[a-z.:*]{0,20}".prop_map(|s| format!("[{{ host = {s:?}, private = true }}]")),
            "[A-Z=]{0,9}".prop_map(|s| format!("{{ {s:?} = \"x\" }}")),
        ],
    ) {
        if let Ok(policy) = load(&format!("[{section}]\n{key} = {value}\n")) {
            prop_assert!(!policy.show().is_empty());
            policy.lint();
        }
    }
}
