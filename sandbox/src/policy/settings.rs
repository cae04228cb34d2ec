//! `--set section.key=value`: settings of one launch, as a layer over the files of its policy.

use super::layer::{self, Layer, ListEdit, Setting, finding, unknown};
use super::schema::{self, Key, Kind};
use super::value::{Problem, Scalar};
use super::{Origin, PolicyDiagnostic, Valued, suggest};
use std::collections::BTreeMap;

/// A layer from `section.key=value` settings given on a command line.
pub(crate) fn from_settings(settings: &[(String, String)]) -> Result<Layer, Vec<PolicyDiagnostic>> {
    let mut layer = Layer::default();
    let mut findings = Vec::new();
    for (path, written) in settings {
        let origin = Origin::new(format!("--set {path}"), 0);
        match setting(path, written, &origin, &mut layer) {
            Ok(()) => {}
            Err(p) => findings.push(finding(origin, path, written, p)),
        }
    }
    if findings.is_empty() {
        Ok(layer)
    } else {
        Err(findings)
    }
}

fn setting(path: &str, written: &str, origin: &Origin, layer: &mut Layer) -> Result<(), Problem> {
    let entry = |k: &&Key| {
        let name = path.strip_prefix(&k.path())?.strip_prefix('.')?;
        Some((k.section, k.name, name.to_owned()))
    };
    let tables = || schema::KEYS.iter().filter(|k| k.kind.is_table());
    if let Some((key, (section, name, item))) = tables().find_map(|k| Some((k, entry(&k)?))) {
        layer::check_name(key, &item)?;
        let value = Valued::new(layer::check_entry(key, written)?, origin.clone());
        let slot = layer
            .settings
            .entry((section, name))
            .or_insert_with(|| Setting::Table(BTreeMap::new()));
        if let Setting::Table(map) = slot {
            map.insert(item, value);
        }
        return Ok(());
    }
    let known: Vec<String> = schema::KEYS
        .iter()
        .filter(|k| k.name != "extends" && !k.kind.is_table())
        .map(Key::path)
        .collect();
    let Some(key) = known.iter().position(|k| k == path).and_then(|i| {
        let (section, name) = known[i].split_once('.').unwrap_or(("", &known[i]));
        schema::find(section, name)
    }) else {
        let near = suggest::nearest(path, known.iter().map(String::as_str));
        return Err(unknown(
            "there is no such setting",
            near,
            known.iter().map(String::as_str),
        ));
    };
    let scalar = match key.kind {
        Kind::Count => written
            .parse()
            .map_or_else(|_| Scalar::Text(written.to_owned()), Scalar::Number),
        Kind::Flag => written
            .parse()
            .map_or_else(|_| Scalar::Text(written.to_owned()), Scalar::Flag),
        Kind::Ports if written != "any" => Scalar::Array(
            written
                .split(',')
                .filter(|p| !p.is_empty())
                .map(|p| Scalar::Text(p.to_owned()))
                .collect(),
        ),
        _ => Scalar::Text(written.to_owned()),
    };
    key.check(&scalar)?;
    let value = Valued::new(scalar, origin.clone());
    if key.kind.is_list() {
        let slot = layer
            .settings
            .entry((key.section, key.name))
            .or_insert_with(|| Setting::List(ListEdit::default()));
        if let Setting::List(edit) = slot {
            edit.add.push(value);
        }
    } else {
        layer
            .settings
            .insert((key.section, key.name), Setting::Single(value));
    }
    Ok(())
}
