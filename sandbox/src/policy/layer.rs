//! One policy file, read: which keys it sets, how, and on which line.
//!
//! Takes untrusted text. Every mistake becomes a [`PolicyDiagnostic`]; reading goes on after each, so that a
//! person sees all of them at once.

use super::schema::{self, Key, Kind};
use super::value::{self, Problem, Scalar};
use super::{Origin, PolicyDiagnostic, Severity, Valued, suggest};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// No policy a person writes comes near this.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// How a file changes a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListEdit {
    /// Forget what was inherited.
    pub replace: bool,
    pub add: Vec<Valued<Scalar>>,
    pub remove: Vec<Valued<Scalar>>,
}

/// What a file says about one key.
#[derive(Debug, Clone)]
pub(crate) enum Setting {
    List(ListEdit),
    Single(Valued<Scalar>),
    Table(BTreeMap<String, Valued<Scalar>>),
}

/// A file's settings, by (section, key).
#[derive(Debug, Default)]
pub(crate) struct Layer {
    pub settings: BTreeMap<(&'static str, &'static str), Setting>,
}

impl Layer {
    pub(crate) fn single(&self, section: &str, name: &str) -> Option<&Valued<Scalar>> {
        let key = schema::find(section, name)?;
        match self.settings.get(&(key.section, key.name)) {
            Some(Setting::Single(value)) => Some(value),
            _ => None,
        }
    }
}

/// Reads one file. `Err` has every finding in file order.
pub(crate) fn read(file: &str, text: &str) -> Result<Layer, Vec<PolicyDiagnostic>> {
    let mut reader = Reader {
        file,
        text,
        findings: Vec::new(),
    };
    let layer = reader.document();
    if reader.findings.is_empty() {
        return Ok(layer);
    }
    reader.findings.sort_by_key(|f| f.origin.line);
    Err(reader.findings)
}

pub(super) fn finding(origin: Origin, key: &str, value: &str, p: Problem) -> PolicyDiagnostic {
    PolicyDiagnostic {
        severity: Severity::Error,
        origin,
        key: key.to_owned(),
        value: shorten(value),
        problem: p.problem,
        help: p.help,
    }
}

pub(super) fn unknown<'a>(
    what: &str,
    near: Option<&str>,
    known: impl Iterator<Item = &'a str>,
) -> Problem {
    let list = known.collect::<Vec<_>>().join(", ");
    let help = match near {
        Some(n) => format!("did you mean {n}? allowed are {list}"),
        None => format!("allowed are {list}"),
    };
    Problem::new(what, help)
}

fn shorten(text: &str) -> String {
    let mut line = text.lines().next().unwrap_or_default().to_owned();
    let cut = line.char_indices().nth(80).map(|(at, _)| at);
    if let Some(at) = cut {
        line.truncate(at);
        line.push('…');
    }
    line
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    findings: Vec<PolicyDiagnostic>,
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let line = self.text.as_bytes()[..at.min(self.text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        Origin::new(self.file, u32::try_from(line).unwrap_or(u32::MAX))
    }

    fn report(
        &mut self,
        span: std::ops::Range<usize>,
        key: &str,
        show_value: bool,
        problem: Problem,
    ) {
        let value = if show_value {
            self.text.get(span.clone()).unwrap_or_default()
        } else {
            ""
        };
        self.findings
            .push(finding(self.origin(span.start), key, value, problem));
    }

    fn document(&mut self) -> Layer {
        let mut layer = Layer::default();
        if self.text.len() > MAX_BYTES {
            self.report(
                0..0,
                "",
                false,
                Problem::new(
                    "the file is larger than 256 KiB",
                    "a policy is a short text",
                ),
            );
            return layer;
        }
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for e in errors {
            let span = e.span().unwrap_or(0..0);
            let problem = Problem::new(
                format!("not valid TOML: {}", e.message().replace('\n', " ")),
                "",
            );
            self.report(span, "", false, problem);
        }
        if !self.findings.is_empty() {
            return layer;
        }
        for (name, value) in root.get_ref() {
            let word = name.get_ref().as_ref();
            if let Some(section) = schema::sections().find(|s| *s == word) {
                match value.get_ref() {
                    DeValue::Table(table) => self.section(section, table, &mut layer),
                    _ => self.report(
                        value.span(),
                        section,
                        true,
                        Problem::new(
                            "this is a section",
                            format!("write [{section}] and its keys below"),
                        ),
                    ),
                }
            } else if let Some(key) = schema::find("", word) {
                self.key(key, value, &mut layer);
            } else {
                let known: Vec<&str> = schema::keys_of("")
                    .map(|k| k.name)
                    .chain(schema::sections())
                    .collect();
                let near = suggest::nearest(word, known.iter().copied());
                let mut problem = unknown(
                    "there is no such key or section",
                    near,
                    known.iter().copied(),
                );
                // A key of a section, written above the sections or under the wrong one, is the common slip.
                if near.is_none()
                    && let Some(home) = schema::KEYS.iter().find(|k| k.name == word)
                {
                    problem.help = format!("{word} belongs under [{}]", home.section);
                }
                self.report(name.span(), word, false, problem);
            }
        }
        layer
    }

    fn section(&mut self, section: &'static str, table: &DeTable<'_>, layer: &mut Layer) {
        for (name, value) in table {
            let word = name.get_ref().as_ref();
            match schema::find(section, word) {
                Some(key) => self.key(key, value, layer),
                None => {
                    let known = || schema::keys_of(section).map(|k| k.name);
                    let near = suggest::nearest(word, known());
                    let mut problem = unknown(
                        &format!("there is no such key in [{section}]"),
                        near,
                        known(),
                    );
                    if near.is_none()
                        && let Some(home) = schema::KEYS
                            .iter()
                            .find(|k| k.name == word && !k.section.is_empty())
                    {
                        problem.help = format!("{word} belongs under [{}]", home.section);
                    }
                    self.report(name.span(), &format!("{section}.{word}"), false, problem);
                }
            }
        }
    }

    fn key(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, layer: &mut Layer) {
        let setting = if key.kind.is_list() {
            Setting::List(self.list(key, value))
        } else if key.kind.is_table() {
            Setting::Table(self.table(key, value))
        } else {
            match self.scalar(key, value) {
                Some(v) => Setting::Single(v),
                None => return,
            }
        };
        layer.settings.insert((key.section, key.name), setting);
    }

    fn list(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) -> ListEdit {
        const FORMS: &str = "an array [\"…\"] adds to what is inherited, { replace = [\"…\"] } starts anew, \
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
                            let near = suggest::nearest(other, ["replace", "add", "remove"]);
                            let p = unknown(
                                "a list has no such edit",
                                near,
                                ["replace", "add", "remove"].into_iter(),
                            );
                            self.report(name.span(), &format!("{}.{other}", key.path()), false, p);
                        }
                    }
                }
            }
            _ => self.report(
                value.span(),
                &key.path(),
                true,
                Problem::new("this is not a list", FORMS),
            ),
        }
        edit
    }

    fn items(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) -> Vec<Valued<Scalar>> {
        let DeValue::Array(array) = value.get_ref() else {
            self.report(
                value.span(),
                &key.path(),
                true,
                Problem::new("this is not an array", "write [\"…\", \"…\"]"),
            );
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| self.scalar(key, item))
            .collect()
    }

    fn scalar(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) -> Option<Valued<Scalar>> {
        let scalar = match value.get_ref() {
            DeValue::String(text) => Ok(Scalar::Text(text.to_string())),
            DeValue::Boolean(yes) if key.kind == Kind::Flag => Ok(Scalar::Flag(*yes)),
            DeValue::Integer(n) => i64::from_str_radix(&n.as_str().replace('_', ""), n.radix())
                .map(Scalar::Number)
                .map_err(|_| Problem::new("the number is too large", "")),
            DeValue::Table(table) if key.kind == Kind::Hosts => self.host(table, value),
            DeValue::Array(items) if key.kind == Kind::Ports => ports(items),
            other => Err(Problem::new(
                format!("a {} can't stand here", other.type_str()),
                expected(key),
            )),
        };
        match scalar.and_then(|s| key.check(&s).map(|()| s)) {
            Ok(s) => Some(Valued::new(s, self.origin(value.span().start))),
            Err(problem) => {
                self.report(value.span(), &key.path(), true, problem);
                None
            }
        }
    }

    fn host(
        &mut self,
        table: &DeTable<'_>,
        whole: &Spanned<DeValue<'_>>,
    ) -> Result<Scalar, Problem> {
        const FORM: &str = "a rule in long form is { host = \"db.internal:5432\", private = true }";
        let (mut host, mut private) = (None, false);
        for (name, value) in table {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("host", DeValue::String(text)) => host = Some(text.to_string()),
                ("private", DeValue::Boolean(b)) => private = *b,
                (other, _) => {
                    return Err(Problem::new(
                        format!("{other:?} is unknown or of the wrong type"),
                        FORM,
                    ));
                }
            }
        }
        host.map(|host| Scalar::Host { host, private })
            .ok_or_else(|| {
                Problem::new(
                    format!("the rule at byte {} names no host", whole.span().start),
                    FORM,
                )
            })
    }

    fn table(
        &mut self,
        key: &Key,
        value: &Spanned<DeValue<'_>>,
    ) -> BTreeMap<String, Valued<Scalar>> {
        let mut map = BTreeMap::new();
        let DeValue::Table(table) = value.get_ref() else {
            let help = format!(
                "write {} = {{ NAME = \"…\" }} or a section [{}]",
                key.name,
                key.path()
            );
            self.report(
                value.span(),
                &key.path(),
                true,
                Problem::new("this is not a table", help),
            );
            return map;
        };
        for (name, value) in table {
            let word = name.get_ref().as_ref();
            let path = format!("{}.{word}", key.path());
            if let Err(p) = check_name(key, word) {
                self.report(name.span(), &path, false, p);
                continue;
            }
            let checked = match value.get_ref() {
                DeValue::String(text) => check_entry(key, text),
                _ => Err(Problem::new("this is not a string", "write it in quotes")),
            };
            match checked {
                Ok(scalar) => {
                    let origin = self.origin(value.span().start);
                    map.insert(word.to_owned(), Valued::new(scalar, origin));
                }
                Err(problem) => self.report(value.span(), &path, true, problem),
            }
        }
        map
    }
}

/// The name of an entry of a table.
pub(super) fn check_name(key: &Key, name: &str) -> Result<(), Problem> {
    match key.kind {
        Kind::SecretFiles => value::secret_name(name),
        _ => value::env_name(name, false),
    }
}

/// What an entry of a table says.
pub(super) fn check_entry(key: &Key, text: &str) -> Result<Scalar, Problem> {
    if text.contains('\0') {
        let problem = "there is a NUL";
        return Err(Problem::new(problem, "no program could read what follows"));
    }
    let scalar = Scalar::Text(text.to_owned());
    key.check(&scalar).map(|()| scalar)
}

/// The items of an array of ports; what they mean is checked with the whole.
fn ports(items: &toml::de::DeArray<'_>) -> Result<Scalar, Problem> {
    let item = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::String(text) => Ok(Scalar::Text(text.to_string())),
        DeValue::Integer(n) => i64::from_str_radix(&n.as_str().replace('_', ""), n.radix())
            .map(Scalar::Number)
            .map_err(|_| Problem::new("the number is too large", "a port is at most 65535")),
        other => Err(Problem::new(
            format!("a {} is not a port", other.type_str()),
            "write numbers, or ranges such as \"8000-8080\"",
        )),
    };
    items
        .iter()
        .map(item)
        .collect::<Result<_, _>>()
        .map(Scalar::Array)
}

fn expected(key: &Key) -> &'static str {
    match key.kind {
        Kind::Size => "write a size such as \"512MiB\"",
        Kind::Count => "write a whole number",
        Kind::Flag => "write true or false, without quotes",
        Kind::Percent => "write a percentage such as \"150%\"",
        Kind::Duration | Kind::AskTimeout => "write a duration such as \"15m\"",
        Kind::Dollars => "write an amount such as \"$5\"",
        Kind::Ports => "write \"any\" or an array such as [3000, \"8000-8080\"]",
        Kind::Hosts => "write \"host:port\" or { host = \"…\", private = true }",
        _ => "write a string in quotes",
    }
}
