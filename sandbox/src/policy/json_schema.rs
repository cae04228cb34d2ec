//! The policy language as a JSON Schema (draft 2020-12), for editors: completion, and errors while typing.
//!
//! Made of the same table of keys that reading uses. It says the form of each value; what a schema can't say (that a path
//! has no `..`, that a host name is one) is left to loading.

use super::schema::{self, Key, Kind};
use crate::plan::Property;
use crate::seccomp::SyscallSet;
use serde_json::{Map, Value, json};

/// Where the committed copy is, below the repository's root.
pub const SCHEMA_FILE: &str = "policy/policy.schema.json";

/// The schema of a policy file.
pub fn json_schema() -> Value {
    let mut top = properties("");
    for section in schema::sections() {
        top.insert(
            section.into(),
            json!({
                "type": "object",
                "additionalProperties": false,
                "properties": properties(section),
            }),
        );
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agentd policy",
        "type": "object",
        "additionalProperties": false,
        "properties": top,
    })
}

fn properties(section: &str) -> Map<String, Value> {
    let property = |key: &Key| {
        let mut form = if key.kind.is_list() {
            list(item(key))
        } else {
            item(key)
        };
        if key.may_be_none {
            form = json!({ "anyOf": [form, { "const": "none" }] });
        }
        form["description"] = key.about.into();
        (key.name.to_owned(), form)
    };
    schema::keys_of(section).map(property).collect()
}

/// An array adds to what is inherited; a table edits it.
fn list(item: Value) -> Value {
    let items = json!({ "type": "array", "items": item });
    json!({
        "anyOf": [
            items,
            {
                "type": "object",
                "additionalProperties": false,
                "properties": { "replace": items, "add": items, "remove": items },
            },
        ]
    })
}

/// One value, or one item of a list.
fn item(key: &Key) -> Value {
    let words = |words: Vec<&str>| json!({ "enum": words });
    let written = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    const SECRET_NAME: &str = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$";
    const PATH: &str = r"^(/|~|\$\{workspace\})";
    const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
    match key.kind {
        Kind::Paths => written(PATH),
        Kind::DevicePaths => written("^/dev/."),
        Kind::Hosts => json!({
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["host"],
                    "properties": { "host": { "type": "string" }, "private": { "type": "boolean" } },
                },
            ]
        }),
        Kind::EnvNames => written(r"^([A-Za-z_][A-Za-z0-9_]*)?\*?$"),
        Kind::ToolRules => written(r"^[A-Za-z0-9_*:.-]+(\(.+\))?$"),
        Kind::SyscallSets => words(SyscallSet::ALL.iter().map(|s| s.name()).collect()),
        Kind::Properties => words(Property::degradable_names().collect()),
        Kind::Fingerprints => written("^SHA256:"),
        Kind::Names | Kind::Globs | Kind::CredentialNames => json!({
            "type": "string",
            "minLength": 1,
        }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Choice(_, allowed) => words(allowed.to_vec()),
        Kind::Size => json!({
            "anyOf": [
                { "type": "integer", "minimum": 1 << 20 },
                written(r"^[0-9][0-9_]* ?([kKMGT]i?B?|B)?$"),
            ]
        }),
        Kind::Count => {
            let range = key.range();
            json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() })
        }
        Kind::Percent => written("^[0-9][0-9_]*%$"),
        Kind::Duration | Kind::AskTimeout => written("^([0-9][0-9_]*(ms|s|m|min|h|d))+$"),
        Kind::Dollars => written(r"^\$[0-9][0-9_]*(\.[0-9]{1,6})?$"),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Ports => json!({
            "anyOf": [
                { "const": "any" },
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            { "type": "integer", "minimum": 1, "maximum": u16::MAX },
                            written("^[0-9]{1,5}(-[0-9]{1,5})?$"),
                        ]
                    },
                },
            ]
        }),
        Kind::Variables => json!({
            "type": "object",
            "propertyNames": { "pattern": VARIABLE },
            "additionalProperties": { "type": "string" },
        }),
        Kind::SecretFiles => json!({
            "type": "object",
            "propertyNames": { "pattern": SECRET_NAME },
            "additionalProperties": written(PATH),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_in_its_section() {
        let schema = json_schema();
        for key in schema::KEYS {
            let at = if key.section.is_empty() {
                &schema["properties"][key.name]
            } else {
                &schema["properties"][key.section]["properties"][key.name]
            };
            assert_eq!(at["description"], key.about, "{}", key.path());
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
