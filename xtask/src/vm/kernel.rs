//! The guest kernels: which series, from which suite, and what a boot needs of them.
//!
//! A series is pinned by name and suite; the archive keeps only the newest build of each, so the exact release is read
//! from the package and reported. The kernel and the modules of [`MODULES`] go into the cache, the rest of the package
//! is never kept. A series that can't be had is a counted skip with apt's words.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{Apt, Suite};
use super::cache::Cache;
use crate::child::capture;

/// A kernel that tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// As it is asked for, and as releases begin: `6.1`.
    pub name: &'static str,
    suite: Suite,
    /// The package that depends on the newest build.
    meta: &'static str,
    /// What it stands for.
    pub what: &'static str,
}

/// Oldest first.
pub const SERIES: [Series; 3] = [
    Series {
        name: "6.1",
        suite: Suite::Debian("bookworm"),
        meta: "linux-image-amd64",
        what: "stock Debian 12: Landlock ABI 2, no memfd_noexec, no MDWE",
    },
    Series {
        name: "6.12",
        suite: Suite::Debian("bookworm-backports"),
        meta: "linux-image-cloud-amd64",
        what: "Debian 13's: Landlock ABI 6, BPF LSM",
    },
    Series {
        name: "7",
        suite: Suite::Debian("trixie-backports"),
        meta: "linux-image-cloud-amd64",
        what: "newer than the sandbox was written for",
    },
];

/// What a guest needs: as modules, or built in.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "ext4", "overlay", "quota_v2"];

/// What ext4 asks for by a name of its own; newer kernels have no such module.
const SOFT: [&str; 1] = ["crc32c_generic"];

impl Series {
    pub fn of_name(name: &str) -> Result<Self> {
        SERIES
            .into_iter()
            .find(|series| series.name == name)
            .with_context(|| {
                let names: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
                format!(
                    "there is no kernel {name:?}; allowed are {}",
                    names.join(", ")
                )
            })
    }

    /// Whether `release`, as uname says it, is one of this series.
    pub fn holds(&self, release: &str) -> bool {
        release
            .strip_prefix(self.name)
            .is_some_and(|rest| rest.starts_with('.'))
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// From the cache, else from the archive.
    pub fn get(cache: &Cache, series: Series) -> Result<Self> {
        let recipe = (series.suite, series.meta, MODULES, SOFT, 1);
        let directory = cache.once(&format!("kernel-{}", series.name), recipe, |at| {
            eprintln!("vm: fetching kernel {} ({})", series.name, series.what);
            fetch(at, series)
        })?;
        Ok(Self { directory })
    }

    pub fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The modules, in the order in which they are to be loaded.
    pub fn modules(&self) -> Result<Vec<PathBuf>> {
        let list = self.directory.join("modules");
        let text =
            std::fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        Ok(text.lines().map(|name| self.directory.join(name)).collect())
    }
}

fn fetch(at: &Path, series: Series) -> Result<()> {
    let scratch = tempfile::tempdir_in(at).context("make a directory")?;
    let apt = Apt::open(&scratch.path().join("apt"), series.suite)?;
    let depends = apt
        .depends(series.meta)?
        .with_context(|| format!("{:?} has no package {}", series.suite, series.meta))?;
    let release = release_in(&depends)
        .with_context(|| format!("{} names no kernel: {depends}", series.meta))?;
    if !series.holds(&release) {
        bail!(
            "{:?} has kernel {release}, no {}",
            series.suite,
            series.name
        );
    }
    // Since 7.x the image, the list of what is built in and the modules are packages of their own.
    let mut packages = Vec::new();
    for part in ["image", "binary", "base", "modules"] {
        let name = format!("linux-{part}-{release}");
        if apt.depends(&name)?.is_some() {
            packages.push(name);
        }
    }
    let tree = scratch.path().join("tree");
    std::fs::create_dir(&tree).context("make a directory")?;
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt.unpack_alone(
        &names,
        &tree,
        &["*/vmlinuz*", "*/modules.builtin", "*.ko", "*.ko.*"],
    )?;
    let image = found(&tree, &|name| name.starts_with("vmlinuz"))?
        .pop()
        .with_context(|| format!("no kernel image in {}", packages.join(", ")))?;
    std::fs::copy(&image, at.join("vmlinuz")).context("keep the kernel image")?;
    let names = keep_modules(&tree, at)?;
    std::fs::write(at.join("modules"), names.join("\n")).context("list the modules")
}

/// `linux-image-6.1.0-50-amd64 (= 6.1.176-1), …` → `6.1.0-50-amd64`.
fn release_in(depends: &str) -> Option<String> {
    depends.split([',', ' ']).find_map(|word| {
        let rest = word.strip_prefix("linux-image-")?;
        rest.starts_with(|c: char| c.is_ascii_digit())
            .then(|| rest.to_owned())
    })
}

/// Copies [`MODULES`] and what they need from `tree` to `at`, unpacked; their file names in the order of loading.
fn keep_modules(tree: &Path, at: &Path) -> Result<Vec<String>> {
    let files = found(tree, &|name| name.contains(".ko"))?;
    let builtin = found(tree, &|name| name == "modules.builtin")?
        .first()
        .map(std::fs::read_to_string)
        .transpose()
        .context("read modules.builtin")?
        .unwrap_or_default();
    let mut order = Vec::new();
    let mut asked = BTreeSet::new();
    let soft = SOFT
        .into_iter()
        .filter(|name| files.iter().any(|file| module_name(file) == *name));
    for module in soft.chain(MODULES) {
        load(module, &files, &builtin, at, &mut asked, &mut order)?;
    }
    Ok(order)
}

/// Puts a module behind those that it needs.
fn load(
    module: &str,
    files: &[PathBuf],
    builtin: &str,
    at: &Path,
    asked: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) -> Result<()> {
    if !asked.insert(module.to_owned()) {
        return Ok(());
    }
    let Some(file) = files.iter().find(|file| module_name(file) == module) else {
        let built_in = builtin
            .lines()
            .any(|line| module_name(Path::new(line)) == module);
        if !built_in {
            bail!("the kernel has no module {module}, and it isn't built in");
        }
        return Ok(());
    };
    let bytes = plain(file)?;
    for needed in needs(&bytes) {
        load(&needed, files, builtin, at, asked, order)?;
    }
    let name = format!("{module}.ko");
    std::fs::write(at.join(&name), bytes).with_context(|| format!("keep module {module}"))?;
    order.push(name);
    Ok(())
}

/// `kernel/fs/ext4/ext4.ko.xz` → `ext4`; the kernel takes `-` and `_` for the same.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

/// The module itself, whatever it is packed with.
fn plain(file: &Path) -> Result<Vec<u8>> {
    let unpack = match file.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return std::fs::read(file).with_context(|| format!("read {}", file.display())),
    };
    let output = Command::new(unpack)
        .arg("-dc")
        .arg(file)
        .output()
        .with_context(|| format!("start {unpack}"))?;
    if !output.status.success() {
        bail!(
            "{unpack} -dc {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// What a module says it needs: `depends=` in its `.modinfo`, a list of strings that end in zero.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    module
        .windows(KEY.len())
        .position(|window| window == KEY)
        .map(|start| &module[start + KEY.len()..])
        .and_then(|rest| rest.split(|byte| *byte == 0).next())
        .map(|list| String::from_utf8_lossy(list).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Every file below `tree` whose name is wanted.
fn found(tree: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?
        {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let kind = entry.file_type().context("look at a file")?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if wanted(&entry.file_name().to_string_lossy()) {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// Whether the tools that unpack kernels and make file systems are here; the name of the first that isn't.
pub fn missing_tool() -> Option<&'static str> {
    ["xz", "mkfs.ext4", "ldconfig"].into_iter().find(|program| {
        // Root's own directories are not on everybody's PATH.
        capture(Command::new("sh").args([
            "-c",
            &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}"),
        ]))
        .is_err()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_holds_its_releases_and_no_other() {
        let series = Series::of_name("6.1").expect("known");
        assert!(series.holds("6.1.0-50-amd64"));
        assert!(!series.holds("6.12.95+deb12-cloud-amd64") && !series.holds("6.1"));
        assert!(Series::of_name("5.4").is_err());
    }

    #[test]
    fn the_release_is_read_from_what_the_meta_package_depends_on() {
        let depends =
            "linux-base-cloud-amd64 (= 7.3.4-1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)";
        assert_eq!(
            release_in(depends).as_deref(),
            Some("7.3.4+deb13-cloud-amd64")
        );
        assert_eq!(release_in("linux-image-amd64 (= 1)"), None);
    }

    #[test]
    fn a_module_is_loaded_behind_what_it_needs() {
        let scratch = tempfile::tempdir().expect("a directory");
        let tree = scratch.path().join("tree/kernel");
        let at = scratch.path().join("kept");
        std::fs::create_dir_all(&tree).expect("made");
        std::fs::create_dir_all(&at).expect("made");
        for (name, text) in [
            ("ext4.ko", "x\0license=GPL\0depends=jbd2,crc-32\0y"),
            ("jbd2.ko", "x\0depends=\0"),
            ("crc-32.ko", "x\0depends=jbd2\0"),
        ] {
            std::fs::write(tree.join(name), text).expect("written");
        }
        let files = found(&tree, &|name| name.contains(".ko")).expect("listed");
        let (mut asked, mut order) = (BTreeSet::new(), Vec::new());
        load("ext4", &files, "", &at, &mut asked, &mut order).expect("there");
        assert_eq!(order, ["jbd2.ko", "crc_32.ko", "ext4.ko"]);
        let built_in = "kernel/drivers/virtio/virtio_pci.ko\n";
        load("virtio_pci", &files, built_in, &at, &mut asked, &mut order).expect("built in");
        assert_eq!(order.len(), 3);
        assert!(load("nothing", &files, built_in, &at, &mut asked, &mut order).is_err());
    }
}
