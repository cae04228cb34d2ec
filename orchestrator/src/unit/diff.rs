//! What changes from one set of units to another.

use std::collections::BTreeMap;

use super::build::Unit;

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// As in TOML; a list's items with commas between; `None` where nothing is said.
    pub old: Option<String>,
    pub new: Option<String>,
}

/// A unit that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub unit: String,
    pub changes: Vec<Change>,
}

/// The difference of two sets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<Changed>,
}

impl Diff {
    /// Compares by name; origins do not count, values do.
    pub fn between<'a>(
        old: impl IntoIterator<Item = &'a Unit>,
        new: impl IntoIterator<Item = &'a Unit>,
    ) -> Self {
        let by_name = |units: &mut dyn Iterator<Item = &'a Unit>| {
            units
                .map(|unit| (unit.name.as_str(), unit))
                .collect::<BTreeMap<_, _>>()
        };
        let (old, new) = (by_name(&mut old.into_iter()), by_name(&mut new.into_iter()));
        let only = |a: &BTreeMap<&str, &Unit>, b: &BTreeMap<&str, &Unit>| {
            a.keys()
                .filter(|name| !b.contains_key(*name))
                .map(|name| (*name).to_owned())
                .collect()
        };
        let changed = old.iter().filter_map(|(name, before)| {
            let changes = changes(before, new.get(name)?);
            (!changes.is_empty()).then(|| Changed {
                unit: (*name).to_owned(),
                changes,
            })
        });
        Self {
            added: only(&new, &old),
            removed: only(&old, &new),
            changed: changed.collect(),
        }
    }

    /// Whether the two are alike.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

fn changes(old: &Unit, new: &Unit) -> Vec<Change> {
    let values = |unit: &Unit| {
        let mut map: BTreeMap<String, String> = BTreeMap::new();
        for shown in unit.values() {
            let text = map.entry(shown.key.clone()).or_default();
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(&shown.value);
        }
        map
    };
    let (old, new) = (values(old), values(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Change {
            key: key.clone(),
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
        })
        .collect()
}
