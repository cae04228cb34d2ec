//! A whole set of units: texts in, every unit or every mistake out.

use std::collections::BTreeMap;

use super::build::{Unit, build};
use super::diagnostic::{Diagnostic, Origin, Problem, UnitError};
use super::layer::{self, Layer};
use super::name::{NameError, UnitName};
use super::suggest::unknown;

/// Units of one owner. A directory with more is a mistake.
const MAX_FILES: usize = 1024;

/// One text, and what its place says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    /// Below the directory: `coder.toml` or `coder.toml.d/10-local.toml`. Of two with the same place the first one
    /// given counts: give `/etc` before `/usr/lib`.
    pub place: String,
    /// The whole path, for messages.
    pub origin: String,
    pub text: String,
}

/// What a place below a units' directory means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichFile {
    /// `NAME.toml`.
    Unit(UnitName),
    /// `NAME.toml.d/FILE.toml`.
    DropIn(UnitName),
}

impl WhichFile {
    /// Reads a place such as `coder@.toml` or `coder@api.toml.d/10-local.toml`.
    ///
    /// # Errors
    /// What a place must look like.
    pub fn of(place: &str) -> Result<Self, String> {
        let name = |text: &str| {
            UnitName::parse(text).map_err(|NameError(_)| {
            format!(
                "{text:?} cannot name a unit; allowed are letters, digits, - and _, and one @ (NAME.toml, NAME@.toml)"
            )
        })
        };
        if let Some((unit, file)) = place.split_once(".toml.d/") {
            if file.contains('/') || !file.ends_with(".toml") {
                return Err("a drop-in is called NAME.toml.d/FILE.toml".to_owned());
            }
            return Ok(Self::DropIn(name(unit)?));
        }
        match place.strip_suffix(".toml") {
            Some(unit) => {
                let unit = name(unit)?;
                match unit.instance() {
                    Some(_) => Err(format!(
                        "an instance has no file of its own: write {}.toml, and what differs into {unit}.toml.d/FILE.toml",
                        unit.template().expect("an instance has a template")
                    )),
                    None => Ok(Self::Unit(unit)),
                }
            }
            _ => Err("a unit is called NAME.toml, a drop-in NAME.toml.d/FILE.toml".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Texts {
    unit: Option<(String, String, Parsed)>,
    /// By file name, so that 10- comes before 20-.
    drop_ins: BTreeMap<String, (String, String, Parsed)>,
}

/// A text that has been read once.
#[derive(Debug, Clone, Default)]
struct Parsed(Layer);

impl PartialEq for Parsed {
    /// Made of the text beside it, which is compared.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Every unit of one owner, checked. Cheap to compare, never changed: a reload makes another one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UnitSet {
    texts: BTreeMap<UnitName, Texts>,
    pool_ceiling: u32,
}

impl UnitSet {
    /// Reads all texts. Either every one of them stands, or none.
    ///
    /// # Errors
    /// Every mistake of every text.
    pub fn load(files: &[UnitFile], pool_ceiling: u32) -> Result<Self, UnitError> {
        let mut set = Self {
            texts: BTreeMap::new(),
            pool_ceiling,
        };
        let mut findings = Vec::new();
        if files.len() > MAX_FILES {
            let problem = Problem::new(
                format!("{} files are more than {MAX_FILES}", files.len()),
                "a directory of units holds units only",
            );
            return Err(UnitError(vec![problem.at(
                Origin::new(files[0].origin.clone(), 0),
                "",
                "",
            )]));
        }
        for file in files {
            let which = match WhichFile::of(&file.place) {
                Ok(which) => which,
                Err(problem) => {
                    let origin = Origin::new(file.origin.clone(), 0);
                    findings.push(Problem::new(problem, "").at(origin, "", ""));
                    continue;
                }
            };
            let (layer, wrong) = layer::read(&file.origin, &file.text);
            let entry = (file.origin.clone(), file.text.clone(), Parsed(layer));
            let taken = match which {
                WhichFile::Unit(name) => {
                    let texts = set.texts.entry(name).or_default();
                    let free = texts.unit.is_none();
                    if free {
                        texts.unit = Some(entry);
                    }
                    free
                }
                WhichFile::DropIn(name) => {
                    let file_name = file.place.rsplit('/').next().unwrap_or_default().to_owned();
                    let drop_ins = &mut set.texts.entry(name).or_default().drop_ins;
                    let free = !drop_ins.contains_key(&file_name);
                    if free {
                        drop_ins.insert(file_name, entry);
                    }
                    free
                }
            };
            if taken {
                findings.extend(wrong);
            }
        }
        if findings.is_empty() {
            set.check_whole(&mut findings);
        }
        if findings.is_empty() {
            Ok(set)
        } else {
            Err(UnitError(findings))
        }
    }

    /// Every unit by itself, then what two can have against each other.
    fn check_whole(&self, findings: &mut Vec<Diagnostic>) {
        let mut uuids: BTreeMap<String, UnitName> = BTreeMap::new();
        for (name, texts) in &self.texts {
            if texts.unit.is_none() && name.template().is_none_or(|t| !self.defines(&t)) {
                for (origin, _, _) in texts.drop_ins.values() {
                    let problem = unknown(
                        format!("this drop-in belongs to no unit: there is no {name}.toml"),
                        name.as_str(),
                        &self
                            .texts
                            .keys()
                            .filter(|n| self.defines(n))
                            .map(UnitName::as_str)
                            .collect::<Vec<_>>(),
                    );
                    findings.push(problem.at(Origin::new(origin.clone(), 0), "", ""));
                }
                continue;
            }
            match self.build(name) {
                Err(wrong) => findings.extend(wrong),
                Ok(unit) => {
                    let Some(uuid) = unit.agent.uuid.clone() else {
                        continue;
                    };
                    if let Some(other) = uuids.insert(uuid, name.clone()) {
                        let shown = unit.values().iter().find(|v| v.key == "agent.uuid");
                        let problem = Problem::new(
                            format!("the unit {other} has the same UUID"),
                            "every unit has its own (`uuidgen` makes one)",
                        );
                        findings.extend(
                            shown.map(|s| problem.at(s.origin.clone(), "agent.uuid", &s.value)),
                        );
                    }
                }
            }
        }
    }

    fn defines(&self, name: &UnitName) -> bool {
        self.texts.get(name).is_some_and(|t| t.unit.is_some())
    }

    /// The texts of `name` in the order in which they are laid over each other.
    fn stack(&self, name: &UnitName) -> Vec<&(String, String, Parsed)> {
        let of = |name: &UnitName| self.texts.get(name);
        let template = name.template().and_then(|t| of(&t));
        let own = of(name);
        let unit = template.or(own).and_then(|t| t.unit.as_ref());
        unit.into_iter()
            .chain(template.into_iter().flat_map(|t| t.drop_ins.values()))
            .chain(own.into_iter().flat_map(|t| t.drop_ins.values()))
            .collect()
    }

    fn build(&self, name: &UnitName) -> Result<Unit, Vec<Diagnostic>> {
        let stack = self.stack(name);
        let files = stack.iter().map(|(origin, _, _)| origin.clone()).collect();
        let layers: Vec<&Layer> = stack.iter().map(|(_, _, parsed)| &parsed.0).collect();
        build(name, files, &layers, self.pool_ceiling)
    }

    /// The unit called `name`, which may be an instance of a template.
    ///
    /// # Errors
    /// A [`Diagnostic`] that says which units there are, or, for an instance, what its name does to the template.
    pub fn unit(&self, name: &UnitName) -> Result<Unit, UnitError> {
        let home = name.template().unwrap_or_else(|| name.clone());
        if !self.defines(&home) {
            let known: Vec<&str> = self.names().map(UnitName::as_str).collect();
            let problem = if known.is_empty() {
                Problem::new("there is no such unit", "there are none")
            } else {
                unknown("there is no such unit", home.as_str(), &known)
            };
            return Err(UnitError(vec![problem.at(
                Origin::new(name.as_str(), 0),
                "",
                "",
            )]));
        }
        self.build(name).map_err(UnitError)
    }

    /// Names of units and templates that have a file.
    pub fn names(&self) -> impl Iterator<Item = &UnitName> {
        self.texts
            .iter()
            .filter(|(_, t)| t.unit.is_some())
            .map(|(name, _)| name)
    }

    /// Names that can be started without further words: units, and instances that have drop-ins.
    pub fn startable(&self) -> impl Iterator<Item = &UnitName> {
        self.texts
            .iter()
            .filter(|(name, t)| {
                !name.is_template()
                    && (t.unit.is_some() || name.template().is_some_and(|t| self.defines(&t)))
            })
            .map(|(name, _)| name)
    }

    /// The texts that make `name`, with their files, for `cat`.
    pub fn texts(&self, name: &UnitName) -> Vec<(&str, &str)> {
        self.stack(name)
            .into_iter()
            .map(|(origin, text, _)| (origin.as_str(), text.as_str()))
            .collect()
    }

    /// Every text that counts, with its place, as [`Self::load`] takes them.
    pub fn files(&self) -> Vec<UnitFile> {
        let file = |place: String, (origin, text, _): &(String, String, Parsed)| UnitFile {
            place,
            origin: origin.clone(),
            text: text.clone(),
        };
        let mut files = Vec::new();
        for (name, texts) in &self.texts {
            files.extend(
                texts
                    .unit
                    .iter()
                    .map(|entry| file(format!("{name}.toml"), entry)),
            );
            let drop_ins = texts.drop_ins.iter();
            files.extend(
                drop_ins.map(|(below, entry)| file(format!("{name}.toml.d/{below}"), entry)),
            );
        }
        files
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}
