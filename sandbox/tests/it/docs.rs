//! The documentation is true: the examples of `docs/policy.md` load, its mistakes give the errors it shows, its tables are
//! complete; `docs/properties.md` and `docs/syscalls.md` are what the tables of the source say.

use super::load;
use agentd_sandbox::Property;
use agentd_sandbox::seccomp::{SyscallSet, refused_calls};
use std::fmt::Write;

const POLICY_MD: &str = include_str!("../../../docs/policy.md");
const PROPERTIES_MD: &str = include_str!("../../../docs/properties.md");
const SYSCALLS_MD: &str = include_str!("../../../docs/syscalls.md");
const HOST_MD: &str = include_str!("../../../docs/host-requirements.md");

/// The fenced blocks with this info string, each with what follows it.
fn blocks<'a>(text: &'a str, info: &str) -> Vec<(&'a str, &'a str)> {
    let open = format!("```{info}\n");
    text.match_indices(&open)
        .map(|(at, _)| {
            let rest = &text[at + open.len()..];
            rest.split_once("```").expect("the block is closed")
        })
        .collect()
}

#[test]
fn every_example_loads_without_warnings() {
    let examples = blocks(POLICY_MD, "toml");
    assert!(
        examples.len() >= 9,
        "only {} examples found",
        examples.len()
    );
    for (text, _) in examples {
        let policy = load(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        assert_eq!(policy.lint(), [], "{text}");
    }
    // What costs something says so.
    for (text, _) in blocks(POLICY_MD, "toml lints") {
        let policy = load(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        assert_ne!(policy.lint(), [], "{text}");
    }
}

#[test]
fn every_mistake_gives_the_error_shown() {
    let mistakes = blocks(POLICY_MD, "toml fails");
    assert_eq!(mistakes.len(), 1);
    for (text, rest) in mistakes {
        let (shown, _) = blocks(rest, "text")[0];
        let error = load(text).expect_err("must not load");
        assert_eq!(format!("{error}\n"), shown);
    }
}

#[test]
fn the_expectations_shown_are_met() {
    let caller = agentd_sandbox::CallerContext {
        home: Some("/home/ada".into()),
        workspace: Some("/home/ada/repo".into()),
        ..Default::default()
    };
    let examples = blocks(POLICY_MD, "toml expectations");
    assert_eq!(examples.len(), 1);
    let list = agentd_sandbox::policy::Expectation::read("example.toml", examples[0].0);
    for expected in list.expect("reads") {
        let answer = super::named("coding").answer(&expected.question, &caller);
        assert_eq!(answer.verdict, expected.verdict, "{answer:?}");
    }
}

#[test]
fn the_tables_name_every_set_and_every_property_that_can_be_given_up() {
    for set in SyscallSet::ALL {
        assert!(
            POLICY_MD.contains(&format!("| `{}` |", set.name())),
            "{}",
            set.name()
        );
    }
    for name in Property::degradable_names() {
        assert!(POLICY_MD.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_feature_is_in_the_host_requirements() {
    for feature in agentd_kernel::probe::Feature::ALL {
        assert!(
            HOST_MD.contains(&format!("| `{}` |", feature.name())),
            "{}",
            feature.name()
        );
    }
}

/// Compares a page with the part of it that the source says; the panic shows what belongs there.
fn ends_with(page: &str, path: &str, expected: &str) {
    assert!(
        page.ends_with(expected),
        "{path} does not end with what the source says, which is:\n{expected}"
    );
}

#[test]
fn the_properties_page_is_the_table_of_properties() {
    let mut table = String::from(
        "| property | promise | held by | may be given up |\n| --- | --- | --- | --- |\n",
    );
    for row in Property::table() {
        let may = if row.degradable { "yes" } else { "" };
        writeln!(
            table,
            "| `{}` | {} | {} | {may} |",
            row.name,
            row.promise,
            row.mechanisms.join("; ")
        )
        .expect("a string");
    }
    ends_with(PROPERTIES_MD, "docs/properties.md", &table);
}

#[test]
fn the_system_calls_page_is_the_sets_and_the_refusals() {
    let mut table = String::new();
    for set in SyscallSet::ALL {
        writeln!(
            table,
            "## `{}`\n\n| call | why |\n| --- | --- |",
            set.name()
        )
        .expect("a string");
        for (name, why) in set.calls() {
            writeln!(table, "| `{name}` | {why} |").expect("a string");
        }
        table.push('\n');
    }
    table.push_str("## In no set\n\n| calls | answer | why |\n| --- | --- | --- |\n");
    for (error, why, names) in refused_calls() {
        writeln!(table, "| `{}` | {error} | {why} |", names.join("` `")).expect("a string");
    }
    ends_with(SYSCALLS_MD, "docs/syscalls.md", &table);
}
