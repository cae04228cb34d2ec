//! The unit language from outside: whole texts in, values or complaints out.

use agentd_orchestrator::unit::{
    Diff, POOL_CEILING, Status, Stdio, Unit, UnitError, UnitFile, UnitName, UnitSet,
};
use std::time::Duration;

fn file(place: &str, text: &str) -> UnitFile {
    UnitFile {
        place: place.into(),
        origin: format!("/etc/agentd/agents/{place}"),
        text: text.into(),
    }
}

fn load(files: &[(&str, &str)]) -> Result<UnitSet, UnitError> {
    let files: Vec<_> = files
        .iter()
        .map(|(place, text)| file(place, text))
        .collect();
    UnitSet::load(&files, POOL_CEILING)
}

fn unit(files: &[(&str, &str)], name: &str) -> Unit {
    let name = UnitName::parse(name).expect("a name");
    load(files).expect("loads").unit(&name).expect("is there")
}

fn complaints(files: &[(&str, &str)]) -> Vec<String> {
    let error = load(files).expect_err("must not load");
    error.0.iter().map(ToString::to_string).collect()
}

const FULL: &str = r#"
[agent]
uuid = "0f3c1d2e-5a6b-4c7d-8e9f-001122334455"
name = "front"
description = "Builds the user interface"
role = "frontend"
capabilities = ["typescript", "css"]
status = "PRODUCTION"
enabled = true

[run]
command = ["claude", "--model", "sonnet"]
driver = "claude"
policy = "coding"
workspace = "~/src/app"
env = { CI = "1" }
set = { "limits.pids" = 64 }
system_prompt = "You are %n."
timeout = "2h"

[pool]
min = 1
max = 4
idle = "5m"

[restart]
policy = "on-abnormal"
delay = "500ms"
factor = 1.5
max_delay = "1m"
jitter = "10%"
burst = 3
interval = "2m"

[budget]
tokens = 100000
memory = "2GiB"
cpu = "150%"

[tools]
deny = ["WebSearch"]

[triggers]
on_message = ["build.*.failed"]
on_task = true

[bus]
subscriptions = ["team.#"]

[cores]
core_class = "efficiency"
avx512_benefit = "low"
latency_target = "200ms"
power_cap = "15W"
"#;

#[test]
fn every_key_is_read() {
    let unit = unit(&[("frontend.toml", FULL)], "frontend");
    assert_eq!(unit.agent.status, Status::Production);
    assert_eq!(unit.agent_name(2), "front.2");
    assert_eq!(unit.run.system_prompt.as_deref(), Some("You are frontend."));
    assert_eq!(unit.restart.delay, Duration::from_millis(500));
    assert_eq!((unit.pool.min, unit.pool.max), (1, 4));
    assert_eq!(unit.cores.power_cap_mw, Some(15_000));
    assert!(unit.answers_to("css") && unit.answers_to("frontend") && !unit.answers_to("rust"));
    let settings: Vec<_> = unit
        .run
        .settings
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(
        settings,
        [
            "limits.pids=64",
            "env.set.CI=1",
            "limits.tokens=100000",
            "limits.memory=2GiB",
            "limits.cpu=150%",
            "tools.deny=WebSearch",
            "ipc.subscribe=team.#"
        ]
    );
}

#[test]
fn the_least_unit_has_the_defaults() {
    let unit = unit(&[("a.toml", "[run]\ncommand = [\"true\"]\n")], "a");
    assert_eq!(unit.agent.name, "a");
    assert_eq!(unit.agent_name(1), "a");
    assert_eq!(unit.run.policy, "coding");
    assert_eq!(unit.run.stdio, Stdio::Pipes);
    assert_eq!((unit.pool.min, unit.pool.max), (1, 1));
    assert_eq!(unit.agent.status, Status::Development);
    assert!(!unit.triggers.any() && !unit.cores.any());
}

#[test]
fn all_mistakes_are_told_at_once_with_place_and_remedy() {
    let text = "[agent]\nstatus = \"production\"\ncapabilites = []\n\n[run]\ncommand = \"claude -p\"\ndriver = \"cluade\"\n\n\
                [restart]\ndelay = \"soon\"\nfactor = 20\n\n[poool]\nmax = 3\n";
    let all = complaints(&[
        ("x.toml", text),
        (
            "y.toml",
            "[cores]\ncore_class = \"fast\"\npower_cap = \"15\"\n",
        ),
    ]);
    let expected = [
        "/etc/agentd/agents/x.toml:2: agent.status = \"production\": this is not one of the words; did you mean PRODUCTION?",
        "x.toml:3: agent.capabilites: there is no such key in [agent]; did you mean capabilities?",
        "x.toml:6: run.command = \"claude -p\": a command is not one string: no shell reads it; write [\"PROGRAM\"",
        "x.toml:7: run.driver = \"cluade\": this is not one of the words; did you mean claude? allowed are none, claude",
        "x.toml:10: restart.delay = \"soon\": it does not start with a whole number; a duration such as",
        "x.toml:11: restart.factor = 20: the number is out of range; a number from 1 to 10",
        "x.toml:13: poool: there is no such section; did you mean pool?",
        "y.toml:2: cores.core_class = \"fast\": this is not one of the words; allowed are performance, efficiency, low-power, any",
        "y.toml:3: cores.power_cap = \"15\": the unit W or mW is missing",
    ];
    assert_eq!(all.len(), expected.len(), "{all:#?}");
    for (got, want) in all.iter().zip(expected) {
        assert!(got.contains(want), "{got}\nshould contain\n{want}");
    }
}

#[test]
fn what_only_the_whole_shows_is_told_too() {
    for (text, needle) in [
        (
            "[agent]\nrole = \"x\"\n",
            "run.command: the unit names no command",
        ),
        (
            "[run]\ncommand = [\"x\"]\nprompt = \"hi\"\n",
            "run.prompt = \"hi\": without a driver",
        ),
        (
            "[run]\ndriver = \"jsonl\"\ncommand = [\"x\"]\nsystem_prompt = \"hi\"\n",
            "only the driver claude",
        ),
        (
            "[run]\ncommand = [\"x\"]\n[triggers]\non_task = true\n",
            "only a driven agent",
        ),
        (
            "[run]\ndriver = \"claude\"\nstdio = \"pty\"\n",
            "run.stdio = \"pty\"",
        ),
        (
            "[run]\ncommand = [\"x\"]\n[pool]\nmax = 11\n",
            "from 1 to 10",
        ),
        (
            "[run]\ncommand = [\"x\"]\n[pool]\nmin = 3\n",
            "at most pool.max, which is 1",
        ),
        (
            "[run]\ncommand = [\"x\"]\n[restart]\ndelay = \"10m\"\n",
            "restart.delay = \"10m\": the longest delay",
        ),
        (
            "[run]\ncommand = [\"x\"]\n[restart]\npolicy = \"always\"\n[triggers]\nschedule = \"1h\"\n",
            "has no schedule",
        ),
        ("[run]\ncommand = [\"x\", \"%i\"]\n", "%i has no meaning"),
        ("[run]\ncommand = [\"x\", \"50%\"]\n", "a % stands alone"),
        (
            "[triggers]\npath = \"/x\"\n",
            "triggers.path: there is no such key in [triggers]; allowed are on_message",
        ),
        ("command = [\"x\"]\n", "command belongs under [run]"),
        ("[run]\ncommand = [\"x\"\n", "not valid TOML"),
    ] {
        let all = complaints(&[("x.toml", text)]).join("\n");
        assert!(all.contains(needle), "{text}\ngave\n{all}\nwanted {needle}");
    }
}

#[test]
fn drop_ins_are_laid_over_in_the_order_of_their_names() {
    let base = "[agent]\ncapabilities = [\"a\", \"b\"]\n[run]\ncommand = [\"one\"]\nenv = { A = \"1\", B = \"1\" }\n";
    let set = load(&[
        ("x.toml.d/20-b.toml", "[run]\ncommand = [\"three\"]\nenv = { B = \"3\" }\n"),
        ("x.toml", base),
        ("x.toml.d/10-a.toml", "[run]\ncommand = [\"two\"]\n[agent]\ncapabilities = { add = [\"c\"], remove = [\"a\"] }\n"),
    ])
    .expect("loads");
    let name = UnitName::parse("x").expect("a name");
    let unit = set.unit(&name).expect("is there");
    assert_eq!(unit.run.command, ["three"]);
    assert_eq!(unit.agent.capabilities, ["b", "c"]);
    assert!(
        unit.run
            .settings
            .contains(&("env.set.A".into(), "1".into()))
    );
    assert!(
        unit.run
            .settings
            .contains(&("env.set.B".into(), "3".into()))
    );
    let origin = |key: &str| {
        unit.values()
            .iter()
            .find(|v| v.key == key)
            .map(|v| v.origin.to_string())
    };
    assert_eq!(
        origin("run.command").as_deref(),
        Some("/etc/agentd/agents/x.toml.d/20-b.toml:2")
    );
    assert_eq!(origin("run.policy").as_deref(), Some("default"));
    let files: Vec<_> = set
        .texts(&name)
        .into_iter()
        .map(|(file, _)| file.rsplit('/').next())
        .collect();
    assert_eq!(
        files,
        [Some("x.toml"), Some("10-a.toml"), Some("20-b.toml")]
    );
}

#[test]
fn the_first_directory_given_wins() {
    let mut files = vec![
        file("x.toml", "[run]\ncommand = [\"admin\"]\n"),
        file("x.toml", "[run]\ncommand = [\"vendor\"]\n"),
    ];
    files[1].origin = "/usr/lib/agentd/agents/x.toml".into();
    let set = UnitSet::load(&files, POOL_CEILING).expect("loads");
    let unit = set
        .unit(&UnitName::parse("x").expect("a name"))
        .expect("is there");
    assert_eq!(unit.run.command, ["admin"]);
}

#[test]
fn a_template_gives_instances_and_an_instance_may_have_drop_ins() {
    let files = [
        (
            "coder@.toml",
            "[run]\ncommand = [\"work\", \"%i\"]\nworkspace = \"~/src/%i\"\n",
        ),
        (
            "coder@api.toml.d/more.toml",
            "[agent]\nrole = \"backend\"\n",
        ),
    ];
    let api = unit(&files, "coder@api");
    assert_eq!(api.run.command, ["work", "api"]);
    assert_eq!(api.run.workspace.as_deref(), Some("~/src/api"));
    assert_eq!(
        (api.agent.name.as_str(), api.agent.role.as_deref()),
        ("coder@api", Some("backend"))
    );
    assert_eq!(unit(&files, "coder@web").agent.role, None);
    let set = load(&files).expect("loads");
    let missing = set
        .unit(&UnitName::parse("codr@api").expect("a name"))
        .expect_err("no such template");
    assert!(
        missing.to_string().contains("did you mean coder@"),
        "{missing}"
    );
    let all = complaints(&[(
        "c@.toml",
        "[agent]\nuuid = \"0f3c1d2e-5a6b-4c7d-8e9f-001122334455\"\n[run]\ncommand=[\"x\"]\n",
    )]);
    assert!(all[0].contains("instances of a template"), "{all:?}");
}

#[test]
fn files_that_are_no_units_are_named() {
    let run = "[run]\ncommand = [\"x\"]\n";
    for (place, needle) in [
        ("coder@api.toml", "write coder@.toml"),
        ("../x.toml", "cannot name a unit"),
        ("x.conf", "a unit is called NAME.toml"),
        ("gone.toml.d/a.toml", "belongs to no unit"),
    ] {
        let all = complaints(&[("y.toml", run), (place, "")]).join("\n");
        assert!(all.contains(needle), "{place}: {all}");
    }
    let uuid =
        "[agent]\nuuid = \"0f3c1d2e-5a6b-4c7d-8e9f-001122334455\"\n[run]\ncommand = [\"x\"]\n";
    let all = complaints(&[("a.toml", uuid), ("b.toml", uuid)]);
    assert!(all[0].contains("the unit a has the same UUID"), "{all:?}");
}

#[test]
fn a_diff_names_units_and_values() {
    let old = [
        unit(&[("a.toml", "[run]\ncommand = [\"x\"]\n")], "a"),
        unit(&[("b.toml", "[run]\ncommand = [\"x\"]\n")], "b"),
    ];
    let new = [
        unit(
            &[(
                "a.toml",
                "\n\n[run]\ncommand = [\"y\"]\n[bus]\nsubscriptions = [\"t.#\"]\n",
            )],
            "a",
        ),
        unit(&[("c.toml", "[run]\ncommand = [\"x\"]\n")], "c"),
    ];
    let diff = Diff::between(&old, &new);
    assert_eq!(
        (diff.added.as_slice(), diff.removed.as_slice()),
        (&["c".to_owned()][..], &["b".to_owned()][..])
    );
    let keys: Vec<_> = diff.changed[0]
        .changes
        .iter()
        .map(|c| (c.key.as_str(), c.old.as_deref(), c.new.as_deref()))
        .collect();
    assert_eq!(
        keys,
        [
            ("bus.subscriptions", None, Some("\"t.#\"")),
            ("run.command", Some("[\"x\"]"), Some("[\"y\"]"))
        ]
    );
    assert!(Diff::between(&old, &old).is_empty());
}

proptest::proptest! {
    /// The parser takes whatever is in a file.
    #[test]
    fn no_text_makes_it_panic(text in "(\\[[a-z]{1,8}\\]\n|[a-z_]{1,10} = [0-9\"\\[\\]{}%a-z]{0,12}\n){0,12}") {
        drop(load(&[("x.toml", &text)]));
    }
}
