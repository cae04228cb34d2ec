//! One text, read: which keys it sets, and on which line.
//!
//! Takes untrusted text. Every mistake becomes a [`Diagnostic`]; reading goes on after each, so that a person sees all
//! of them at once.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Origin, Problem, Valued};
use super::schema::{self, Key, Kind, Scalar};
use super::suggest::unknown;

/// No unit that a person writes comes near this.
const MAX_BYTES: usize = 256 * 1024;

/// How a text changes a list.
#[derive(Debug, Clone, Default)]
pub(super) struct ListEdit {
    /// Forget what earlier texts say.
    pub replace: bool,
    pub add: Vec<Valued<String>>,
    pub remove: Vec<Valued<String>>,
}

/// What a text says about one key.
#[derive(Debug, Clone)]
pub(super) enum Setting {
    List(ListEdit),
    Single(Valued<Scalar>),
    Table(BTreeMap<String, Valued<String>>),
}

/// A text's settings by (section, key), each with its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub settings: BTreeMap<(&'static str, &'static str), Setting>,
}

/// Reads one text. The findings are in the order of the text.
pub(super) fn read(file: &str, text: &str) -> (Layer, Vec<Diagnostic>) {
    let mut reader = Reader {
        file,
        text,
        findings: Vec::new(),
    };
    let layer = reader.document();
    reader.findings.sort_by_key(|f| f.origin.line);
    (layer, reader.findings)
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    findings: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Origin::new(self.file, u32::try_from(line).unwrap_or(u32::MAX))
    }

    fn report(&mut self, span: std::ops::Range<usize>, key: &str, value: Shown, problem: Problem) {
        let text = match value {
            Shown::Yes => self.text.get(span.clone()).unwrap_or_default(),
            Shown::No => "",
        };
        let found = problem.at(self.origin(span.start), key, text);
        self.findings.push(found);
    }

    fn document(&mut self) -> Layer {
        let mut layer = Layer::default();
        if self.text.len() > MAX_BYTES {
            let problem = Problem::new("the file is larger than 256 KiB", "a unit is a short text");
            self.report(0..0, "", Shown::No, problem);
            return layer;
        }
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for e in &errors {
            let problem = format!("not valid TOML: {}", e.message().replace('\n', " "));
            self.report(
                e.span().unwrap_or(0..0),
                "",
                Shown::No,
                Problem::new(problem, ""),
            );
        }
        if !errors.is_empty() {
            return layer;
        }
        for (name, value) in root.get_ref() {
            let word = name.get_ref().as_ref();
            let sections = schema::sections();
            match sections.iter().find(|s| **s == word) {
                Some(section) => match value.get_ref() {
                    DeValue::Table(table) => self.section(section, table, &mut layer),
                    _ => {
                        let help = format!("write [{section}] and its keys below");
                        let problem = Problem::new("this is a section", help);
                        self.report(value.span(), section, Shown::Yes, problem);
                    }
                },
                None => {
                    let mut problem = unknown("there is no such section", word, &sections);
                    if let Some(home) = schema::KEYS.iter().find(|k| k.name == word) {
                        problem.help = format!("{word} belongs under [{}]", home.section);
                    }
                    self.report(name.span(), word, Shown::No, problem);
                }
            }
        }
        layer
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>, layer: &mut Layer) {
        for (name, value) in table {
            let word = name.get_ref().as_ref();
            if let Some(key) = schema::find(section, word) {
                self.key(key, value, layer);
                continue;
            }
            let what = format!("there is no such key in [{section}]");
            let mut problem = unknown(what, word, &schema::keys_of(section));
            if !problem.help.starts_with("did you mean")
                && let Some(home) = schema::KEYS.iter().find(|k| k.name == word)
            {
                problem.help = format!("{word} belongs under [{}]", home.section);
            }
            self.report(
                name.span(),
                &format!("{section}.{word}"),
                Shown::No,
                problem,
            );
        }
    }

    fn key(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, layer: &mut Layer) {
        let setting = if key.kind.is_list() {
            Setting::List(self.list(key, value))
        } else if key.kind.is_table() {
            Setting::Table(self.table(key, value))
        } else {
            match self.scalar(key, value) {
                Some(value) => Setting::Single(value),
                None => return,
            }
        };
        layer.settings.insert((key.section, key.name), setting);
    }

    fn list(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) -> ListEdit {
        const FORMS: &str = "an array [\"…\"] adds to what earlier files say, { replace = [\"…\"] } starts anew, \
                             { add = [\"…\"], remove = [\"…\"] } edits";
        let mut edit = ListEdit::default();
        match value.get_ref() {
            DeValue::Array(_) => edit.add = self.items(key, value),
            DeValue::Table(table) => {
                for (name, part) in table {
                    match name.get_ref().as_ref() {
                        "replace" => {
                            edit.replace = true;
                            edit.add.extend(self.items(key, part));
                        }
                        "add" => edit.add.extend(self.items(key, part)),
                        "remove" => edit.remove = self.items(key, part),
                        other => {
                            let known = ["replace", "add", "remove"];
                            let problem = unknown("a list has no such edit", other, &known);
                            let path = format!("{}.{other}", key.path());
                            self.report(name.span(), &path, Shown::No, problem);
                        }
                    }
                }
            }
            _ => {
                let problem = Problem::new("this is not a list", FORMS);
                self.report(value.span(), &key.path(), Shown::Yes, problem);
            }
        }
        edit
    }

    fn items(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) -> Vec<Valued<String>> {
        let DeValue::Array(array) = value.get_ref() else {
            let problem = Problem::new("this is not an array", "write [\"…\", \"…\"]");
            self.report(value.span(), &key.path(), Shown::Yes, problem);
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| {
                let Valued { value, origin } = self.scalar(key, item)?;
                match value {
                    Scalar::Text(value) => Some(Valued { value, origin }),
                    _ => None,
                }
            })
            .collect()
    }

    fn scalar(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) -> Option<Valued<Scalar>> {
        let read = match value.get_ref() {
            DeValue::String(text) => Ok(Scalar::Text(text.to_string())),
            DeValue::Integer(n) => i64::from_str_radix(&n.as_str().replace('_', ""), n.radix())
                .map(Scalar::Number)
                .map_err(|_| Problem::new("the number is too large", "")),
            DeValue::Float(n) => match n.as_str().replace('_', "").parse() {
                Ok(number) => Ok(Scalar::Float(number)),
                Err(_) => Err(Problem::new("this is not a number", "")),
            },
            DeValue::Boolean(b) => Ok(Scalar::Bool(*b)),
            DeValue::Array(words) if key.kind == Kind::Command => words
                .iter()
                .map(|word| match word.get_ref() {
                    DeValue::String(text) if !text.contains('\0') => Ok(text.to_string()),
                    _ => Err(Problem::new(
                        "a word of a command is a string without NUL",
                        "write it in quotes",
                    )),
                })
                .collect::<Result<_, _>>()
                .map(Scalar::Command),
            other => {
                let problem = format!("a {} can't stand here", other.type_str());
                Err(Problem::new(problem, key.meaning))
            }
        };
        match read.and_then(|scalar| key.check(&scalar).map(|()| scalar)) {
            Ok(scalar) => Some(Valued {
                value: scalar,
                origin: self.origin(value.span().start),
            }),
            Err(problem) => {
                self.report(value.span(), &key.path(), Shown::Yes, problem);
                None
            }
        }
    }

    fn table(
        &mut self,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
    ) -> BTreeMap<String, Valued<String>> {
        let mut map = BTreeMap::new();
        let DeValue::Table(table) = value.get_ref() else {
            let help = format!("write {} = {{ … }} or a section [{}]", key.name, key.path());
            let problem = Problem::new("this is not a table", help);
            self.report(value.span(), &key.path(), Shown::Yes, problem);
            return map;
        };
        for (name, value) in table {
            let word = name.get_ref().as_ref();
            let path = format!("{}.{word}", key.path());
            if let Err(problem) = check_name(key.kind, word) {
                self.report(name.span(), &path, Shown::No, problem);
                continue;
            }
            let Some(read) = self.scalar(key, value) else {
                continue;
            };
            let text = match read.value {
                Scalar::Text(text) => text,
                other => other.show(),
            };
            let entry = Valued {
                value: text,
                origin: read.origin,
            };
            map.insert(word.to_owned(), entry);
        }
        map
    }
}

/// Whether a report repeats the value.
#[derive(Clone, Copy)]
enum Shown {
    Yes,
    No,
}

fn check_name(kind: Kind, name: &str) -> Result<(), Problem> {
    let dotted = kind == Kind::Settings;
    let fits = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || (dotted && b == b'.'));
    match (fits, dotted) {
        (true, false) => Ok(()),
        (true, true) if name.contains('.') => Ok(()),
        (_, true) => Err(Problem::new(
            "this is not a policy's value",
            "write it in quotes with its section: \"limits.memory\" = \"2GiB\"",
        )),
        (false, false) => Err(Problem::new(
            "this is not the name of an environment variable",
            "a name has letters, digits and _",
        )),
    }
}
