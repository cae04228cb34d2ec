//! The caller's own units: found, opened and read as the caller.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use agentd_orchestrator::unit::UnitFile;

use crate::failure::Failure;
use crate::resolve::Context;

/// One opened text.
#[derive(Debug)]
pub struct Opened {
    pub unit: UnitFile,
    pub file: File,
}

/// `~/.config/agentd/agents`; root has none of its own: the system's are root's.
pub fn own_dir(context: &Context) -> Option<PathBuf> {
    if context.dirs.uid == 0 {
        return None;
    }
    Some(config_dir(context)?.join("agents"))
}

/// `~/.config/agentd`.
pub fn config_dir(context: &Context) -> Option<PathBuf> {
    let set = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = context.dirs.home.as_ref().map(|home| home.join(".config"));
    Some(set.filter(|dir| dir.is_absolute()).or(home)?.join("agentd"))
}

/// Opens every unit and drop-in in `dir`.
pub fn open(dir: &Path) -> Result<Vec<Opened>, Failure> {
    let dir =
        std::path::absolute(dir).map_err(|e| Failure::usage(format!("can't use {dir:?}"), e))?;
    let mut opened = Vec::new();
    for path in entries(&dir)? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
            continue;
        };
        if name.ends_with(".toml.d") && path.is_dir() {
            for drop_in in entries(&path)? {
                let below = drop_in.file_name().and_then(|n| n.to_str());
                if let Some(below) = below.filter(|below| below.ends_with(".toml")) {
                    opened.push(one(&drop_in, format!("{name}/{below}"))?);
                }
            }
        } else if name.ends_with(".toml") {
            opened.push(one(&path, name)?);
        }
    }
    Ok(opened)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e| {
        Failure::usage(format!("can't read units in {}", dir.display()), e)
            .try_next("name a directory with --from DIR")
    };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(fail)?
        .flatten()
        .map(|e| e.path())
        .collect();
    paths.sort();
    Ok(paths)
}

fn one(path: &Path, place: String) -> Result<Opened, Failure> {
    let fail = |e: std::io::Error| Failure::local(format!("can't read {}", path.display()), e);
    let mut file = File::open(path).map_err(fail)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(fail)?;
    let unit = UnitFile {
        place,
        origin: path.display().to_string(),
        text,
    };
    Ok(Opened { unit, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_drop_ins_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("a.toml.d")).expect("mkdir");
        for place in ["a.toml", "a.toml.d/1.toml", "notes", "a.toml.d/x.bak"] {
            std::fs::write(dir.path().join(place), "x").expect("write");
        }
        let opened = open(dir.path()).expect("opens");
        let places: Vec<_> = opened.iter().map(|o| o.unit.place.as_str()).collect();
        assert_eq!(places, ["a.toml", "a.toml.d/1.toml"]);
        let error = open(&dir.path().join("missing")).expect_err("not there");
        assert_eq!(error.exit_code(), 2);
    }
}
