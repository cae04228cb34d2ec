//! `docs/units.md` is true: its examples load, its mistakes give the errors it shows, its tables name every key; and the
//! units in `units/` load.

use agentd_orchestrator::unit::{POOL_CEILING, UnitError, UnitFile, UnitName, UnitSet, reference};

const UNITS_MD: &str = include_str!("../../docs/units.md");

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

fn load(place: &str, text: &str) -> Result<UnitSet, UnitError> {
    let file = UnitFile {
        place: place.into(),
        origin: place.into(),
        text: text.into(),
    };
    UnitSet::load(&[file], POOL_CEILING)
}

#[test]
fn every_example_loads() {
    let examples = blocks(UNITS_MD, "toml");
    assert!(
        examples.len() >= 6,
        "only {} examples found",
        examples.len()
    );
    for (text, _) in examples {
        load("example.toml", text).unwrap_or_else(|e| panic!("{text}\n{e}"));
    }
    let templates = blocks(UNITS_MD, "toml template");
    assert!(!templates.is_empty());
    for (text, _) in templates {
        load("example@.toml", text).unwrap_or_else(|e| panic!("{text}\n{e}"));
    }
}

#[test]
fn every_mistake_gives_the_errors_shown() {
    let mistakes = blocks(UNITS_MD, "toml fails");
    assert_eq!(mistakes.len(), 1);
    for (text, rest) in mistakes {
        let (shown, _) = blocks(rest, "text")[0];
        let error = load("example.toml", text).expect_err("must not load");
        assert_eq!(format!("{error}\n"), shown);
    }
}

#[test]
fn the_reference_names_every_section_and_key() {
    for (section, key, _) in reference() {
        assert!(UNITS_MD.contains(&format!("`[{section}]`")), "[{section}]");
        assert!(UNITS_MD.contains(&format!("`{key}")), "{section}.{key}");
    }
}

#[test]
fn the_shipped_units_load_and_cover_the_roles() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../units");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("units/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "toml") {
            let place = path
                .file_name()
                .and_then(|n| n.to_str())
                .expect("a name")
                .to_owned();
            let text = std::fs::read_to_string(&path).expect("text");
            files.push(UnitFile {
                origin: place.clone(),
                place,
                text,
            });
        }
    }
    let set = UnitSet::load(&files, POOL_CEILING).expect("loads");
    for name in [
        "coordinator",
        "frontend",
        "backend",
        "security",
        "qa",
        "coder@api",
    ] {
        let unit = set
            .unit(&UnitName::parse(name).expect("a name"))
            .expect("is there");
        assert_eq!(unit.run.driver, "claude", "{name}");
        assert!(
            unit.triggers.on_task && unit.run.prompt.is_none(),
            "{name} takes tasks"
        );
        assert!(
            unit.run
                .system_prompt
                .as_ref()
                .is_some_and(|text| text.contains("task")),
            "{name}"
        );
        assert!(
            unit.answers_to(name.split('@').next().expect("a role")),
            "{name} is found by its role"
        );
    }
    assert!(
        set.unit(&UnitName::parse("coordinator").expect("a name"))
            .expect("there")
            .run
            .system_prompt
            .is_some_and(|text| [
                "task_submit",
                "task_result",
                "task_list",
                "task_status",
                "task_cancel"
            ]
            .iter()
            .all(|tool| text.contains(tool)))
    );
}
