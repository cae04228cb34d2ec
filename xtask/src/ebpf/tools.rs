//! A compiler with a BPF back end, the source of `core`, a linker: from rustup, or from Debian.
//!
//! rustup's nightly with `rust-src` is taken where it is whole; else Debian's `rustc-web`,
//! `rust-web-src` and LLVM, which root on Debian gets installed here, with an archives directory of
//! its own (a parallel `apt-get update` deletes others' downloads). bpf-linker is taken from the
//! PATH, or built once below the target directory. Says what it fetches; what is missing is an
//! error with the command.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{self, capture};
use crate::test::needs::which;
use crate::workspace::Metadata;

/// The version that was tested with both compilers.
const LINKER: &str = "0.13.0";
/// The LLVM of Debian's rustc-web, which the linker must have too.
const LLVM: &str = "22";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust";

/// Everything that a build takes.
#[derive(Debug)]
pub struct Tools {
    rustc: PathBuf,
    /// Where the compiler's own source is.
    source: PathBuf,
    linker: PathBuf,
    strip: PathBuf,
}

impl Tools {
    /// The first tool set that is whole, or can be made so.
    pub fn get() -> Result<Self> {
        let rustup = nightly();
        let (rustc, source) = match rustup {
            Some(found) => found,
            None => debian()?,
        };
        let own = rustc == Path::new(DEBIAN_RUSTC);
        Ok(Self {
            linker: linker(own)?,
            strip: strip()?,
            rustc,
            source,
        })
    }

    /// The build of the crate in `directory`.
    pub fn cargo_build(&self, directory: &Path, target: &Path) -> Result<Command> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(["build", "--release", "--target", "bpfel-unknown-none"])
            .args(["-Z", "build-std=core"])
            .current_dir(directory)
            .env("RUSTC", &self.rustc)
            // build-std and the target are unstable, with a stable compiler too.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", target)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(directory)?)
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN");
        Ok(command)
    }

    /// The BPF linker, types for the kernel, and no path of this machine.
    fn flags(&self, directory: &Path) -> Result<String> {
        let root = directory
            .parent()
            .context("the crate is in the repository")?;
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let mut flags = vec![
            "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            format!("--remap-path-prefix={}=rust", self.source.display()),
            format!("--remap-path-prefix={}=.", root.display()),
        ];
        let registries = home.map(|home| home.join("registry/src"));
        let registries = registries.and_then(|path| std::fs::read_dir(path).ok());
        for registry in registries.into_iter().flatten().flatten() {
            let path = registry.path();
            flags.push(format!("--remap-path-prefix={}=registry", path.display()));
        }
        Ok(flags.join("\x1f"))
    }

    pub fn strip(&self) -> Command {
        Command::new(&self.strip)
    }
}

/// rustup's nightly, if the source of `core` is there.
fn nightly() -> Option<(PathBuf, PathBuf)> {
    which("rustup")?;
    let said = capture(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    let rustc = PathBuf::from(said.ok()?.trim());
    let source = rustc.parent()?.parent()?.join("lib/rustlib/src/rust");
    source
        .join("library/core")
        .is_dir()
        .then_some((rustc, source))
}

/// Debian's, installed if that may be.
fn debian() -> Result<(PathBuf, PathBuf)> {
    let whole = || {
        Path::new(DEBIAN_SOURCE).join("library/core").is_dir()
            && capture(Command::new(DEBIAN_RUSTC).arg("-vV"))
                .is_ok_and(|said| said.contains(&format!("LLVM version: {LLVM}")))
            && Path::new(&llvm("llvm-strip")).exists()
    };
    if !whole() {
        let packages = ["rustc-web", "rust-web-src", &format!("llvm-{LLVM}-dev")];
        install(&packages).context(
            "no tool set for eBPF; with rustup: rustup toolchain install nightly --component rust-src",
        )?;
    }
    if !whole() {
        bail!("{DEBIAN_RUSTC} is not of LLVM {LLVM}, or has no source in {DEBIAN_SOURCE}");
    }
    Ok((DEBIAN_RUSTC.into(), DEBIAN_SOURCE.into()))
}

fn install(packages: &[&str]) -> Result<()> {
    if !rustix::process::geteuid().is_root() || which("apt-get").is_none() {
        bail!(
            "missing: sudo apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        );
    }
    eprintln!("ebpf: installing {}", packages.join(", "));
    let archives = directory()?.join("archives");
    std::fs::create_dir_all(archives.join("partial")).context("make a directory for packages")?;
    let apt = |words: &[&str]| {
        child::run(
            Command::new("apt-get")
                .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", archives.display()))
                .args(words)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(std::io::stderr()),
        )
    };
    let wanted = [&["install", "-y", "--no-install-recommends"], packages].concat();
    // The lists may be fresh; only if not are they fetched.
    apt(&wanted).or_else(|_| apt(&["update"]).and_then(|()| apt(&wanted)))
}

/// bpf-linker; built once where there is none, with Debian's LLVM beside Debian's compiler.
fn linker(with_debians_llvm: bool) -> Result<PathBuf> {
    let root = directory()?;
    let built = root.join("bin/bpf-linker");
    if built.exists() {
        return Ok(built);
    }
    if let Some(found) = which("bpf-linker") {
        return Ok(found);
    }
    eprintln!("ebpf: building bpf-linker {LINKER} into {}", root.display());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            LINKER,
            "--root",
        ])
        .arg(&root)
        .env("CARGO_TARGET_DIR", root.join("build"))
        .stdout(std::io::stderr());
    if with_debians_llvm {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{LLVM}"))
            .env("PATH", format!("/usr/lib/llvm-{LLVM}/bin:{path}"));
    }
    child::run(&mut command)?;
    Ok(built)
}

fn strip() -> Result<PathBuf> {
    let own = PathBuf::from(llvm("llvm-strip"));
    let found = own.exists().then_some(own).or_else(|| which("llvm-strip"));
    found.context("llvm-strip is missing: sudo apt-get install -y llvm")
}

fn llvm(program: &str) -> String {
    format!("/usr/lib/llvm-{LLVM}/bin/{program}")
}

/// What is fetched and built for this lies here.
fn directory() -> Result<PathBuf> {
    Ok(Metadata::of_members()?.target_directory.join("ebpf-tools"))
}
