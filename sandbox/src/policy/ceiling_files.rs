//! The ceiling's part about places: what is shown, written and executed, and what of the host is handed over beside files.
//!
//! What a policy says about a path changes only at paths that one of its lines names. So it is enough to ask both policies
//! about each path that either names: where neither allows more there, neither does anywhere.

use super::ceiling::{Compare, Excess, Side, texts};
use super::path::{PathBase, PathTemplate};
use super::{Origin, Valued};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A line of a policy, its key, and the place it means.
#[derive(Clone)]
struct Place<'a> {
    key: &'static str,
    line: &'a Valued<PathTemplate>,
    path: PathBuf,
}

impl Place<'_> {
    fn depth(&self) -> usize {
        self.path.components().count()
    }
}

impl<'a> Side<'a> {
    /// Absolute where the launch says where; otherwise below a name that no path has, so that equal bases still compare.
    fn place(&self, path: &PathTemplate) -> PathBuf {
        let symbolic = || {
            let base = match path.base {
                PathBase::Root => "/",
                PathBase::Home => "~",
                PathBase::Workspace => "${workspace}",
            };
            Path::new(base).join(&path.rest)
        };
        path.resolve(self.at.home.as_deref(), self.at.workspace.as_deref())
            .unwrap_or_else(symbolic)
    }

    fn places(&self, key: &'static str, list: &'a [Valued<PathTemplate>]) -> Vec<Place<'a>> {
        let place = |line| Place {
            key,
            line,
            path: self.place(&line.value),
        };
        list.iter().map(place).collect()
    }
}

/// The lines of `[fs]`.
struct Files<'a> {
    read: Vec<Place<'a>>,
    write: Vec<Place<'a>>,
    exec: Vec<Place<'a>>,
    protect: Vec<Place<'a>>,
    scratch: Vec<Place<'a>>,
    deny: Vec<Place<'a>>,
}

fn deepest<'p, 'a>(list: &'p [Place<'a>], path: &Path) -> Option<&'p Place<'a>> {
    let covering = list.iter().filter(|p| path.starts_with(&p.path));
    covering.max_by_key(|p| p.depth())
}

impl<'a> Files<'a> {
    fn of(side: Side<'a>) -> Self {
        let fs = &side.policy.fs;
        Self {
            read: side.places("fs.read", &fs.read),
            write: side.places("fs.write", &fs.write),
            exec: side.places("fs.exec", &fs.exec),
            // To the host, what changes in a copy does not change.
            protect: [
                side.places("fs.protect", &fs.protect),
                side.places("fs.copy", &fs.copy),
            ]
            .concat(),
            scratch: side.places("fs.scratch", &fs.scratch),
            deny: side.places("fs.deny", &fs.deny),
        }
    }

    fn lists(&self) -> [&Vec<Place<'a>>; 6] {
        [
            &self.read,
            &self.write,
            &self.exec,
            &self.protect,
            &self.scratch,
            &self.deny,
        ]
    }

    /// The line that shows this path: `Err` is the line that hides it, if one does.
    fn shown(&self, path: &Path) -> Result<&Place<'a>, Option<&Place<'a>>> {
        if let Some(line) = deepest(&self.deny, path) {
            return Err(Some(line));
        }
        let lists = [&self.read, &self.scratch, &self.write];
        let lines = lists.into_iter().filter_map(|list| deepest(list, path));
        lines.max_by_key(|p| p.depth()).ok_or(None)
    }

    /// The line that lets this path be changed on the host: `Err` is the line that does not, if one does.
    fn changed(&self, path: &Path) -> Result<&Place<'a>, Option<&Place<'a>>> {
        self.shown(path)?;
        if let Some(line) = deepest(&self.protect, path) {
            return Err(Some(line));
        }
        // The deeper line decides; of equally deep ones write wins over read and scratch.
        let lists = [&self.read, &self.scratch, &self.write];
        let lines = lists.into_iter().filter_map(|list| deepest(list, path));
        match lines.max_by_key(|p| p.depth()) {
            Some(line) if line.key == "fs.write" => Ok(line),
            other => Err(other),
        }
    }

    fn executed(&self, path: &Path) -> Result<&Place<'a>, Option<&Place<'a>>> {
        deepest(&self.exec, path).ok_or(None)
    }
}

fn named<'p, 'a: 'p>(places: impl Iterator<Item = &'p Place<'a>>) -> String {
    let written: Vec<String> = places.map(|p| p.line.value.to_string()).collect();
    texts(written.iter().map(String::as_str))
}

impl Compare<'_> {
    pub(super) fn files(&mut self) {
        let (own_side, top_side) = (self.own, self.top);
        let (own, top) = (Files::of(own_side), Files::of(top_side));
        let paths: BTreeSet<&Path> = [&own, &top]
            .into_iter()
            .flat_map(Files::lists)
            .flatten()
            .map(|p| p.path.as_path())
            .collect();
        for path in paths {
            if let (Ok(line), Err(by)) = (own.shown(path), top.shown(path)) {
                let all = || named([&top.write, &top.scratch, &top.read].into_iter().flatten());
                self.place_beyond(line, by, "shown", all);
            }
            if let (Ok(line), Err(by)) = (own.changed(path), top.changed(path)) {
                self.place_beyond(line, by, "changed", || named(top.write.iter()));
            }
            if let (Ok(line), Err(by)) = (own.executed(path), top.executed(path)) {
                self.place_beyond(line, by, "executed", || named(top.exec.iter()));
            }
        }
        self.objects(
            "ipc.sockets",
            &own_side.policy.sockets,
            &top_side.policy.sockets,
        );
        self.objects(
            "devices.allow",
            &own_side.policy.devices,
            &top_side.policy.devices,
        );
        self.secrets(&top);
    }

    /// `line` is of ours; `by` the line of the ceiling that decides otherwise, or nothing.
    fn place_beyond(
        &mut self,
        line: &Place<'_>,
        by: Option<&Place<'_>>,
        what: &str,
        all: impl FnOnce() -> String,
    ) {
        let (allowed, ceiling) = match by {
            Some(by) => {
                let kept = format!("no {} to be {what} ({})", by.line.value, by.key);
                (kept, by.line.origin.clone())
            }
            None => (all(), self.ceiling_of(line.key)),
        };
        self.found_once(
            line.key,
            &line.line.value,
            &line.line.origin,
            allowed,
            ceiling,
        );
    }

    fn found_once(
        &mut self,
        key: &str,
        value: &PathTemplate,
        origin: &Origin,
        allowed: String,
        ceiling: Origin,
    ) {
        let excess = Excess {
            key: key.to_owned(),
            value: value.to_string(),
            origin: origin.clone(),
            allowed,
            ceiling,
        };
        let same = |e: &Excess| {
            (&e.key, &e.origin, &e.value, &e.ceiling)
                == (&excess.key, &excess.origin, &excess.value, &excess.ceiling)
        };
        if !self.found.iter().any(same) {
            self.found.push(excess);
        }
    }

    /// Sockets and devices, which a line of the ceiling has to name, or the folder that they are in.
    fn objects(
        &mut self,
        key: &'static str,
        own: &[Valued<PathTemplate>],
        top: &[Valued<PathTemplate>],
    ) {
        let allowed = self.top.places(key, top);
        for line in own {
            if deepest(&allowed, &self.own.place(&line.value)).is_none() {
                let (value, origin) = (line.value.clone(), line.origin.clone());
                self.exceed(key, value, origin, named(allowed.iter()));
            }
        }
    }

    /// A secret's file is shown: it has to be one of the ceiling's secrets, or lie in what the ceiling shows.
    fn secrets(&mut self, top: &Files<'_>) {
        let known = &self.top.policy.secrets;
        for (name, line) in &self.own.policy.secrets {
            let path = self.own.place(&line.value);
            let same = known.values().any(|t| self.top.place(&t.value) == path);
            if !same && top.shown(&path).is_err() {
                let allowed = texts(known.keys().map(String::as_str));
                let ceiling = self.ceiling_of("secrets.files");
                let key = format!("secrets.files.{name}");
                self.found_once(&key, &line.value, &line.origin, allowed, ceiling);
            }
        }
    }
}
