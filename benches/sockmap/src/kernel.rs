//! The direct path's programs, loaded from the committed object and attached to a cgroup of this benchmark's own.
//!
//! Needs root and a cgroup2 hierarchy. Everything is gone with the value: programs and tables with their descriptors, the cgroups
//! by [`Drop`]. It never touches what a running agentd has loaded.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use agentd_ebpf_common::Place;
use agentd_ebpf_common::route::{CREDIT, Grant, address};
use anyhow::{Context, Result, bail};
use aya::maps::{Array, MapData, SockHash};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSockAddr, SkMsg, SockOps};
use aya::{Btf, Ebpf, EbpfLoader, Pod};

/// Where a user's own object is, instead of the committed one.
const OBJECT_ENV: &str = "AGENTD_EBPF_OBJECT";

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Row<T>(T);

// SAFETY: the layouts of agentd-ebpf-common are integers without padding, for which any bytes are a valid value.
unsafe impl Pod for Row<Place> {}
// SAFETY: as above.
unsafe impl Pod for Row<Grant> {}

/// Loaded programs, and the cgroups of two agents below the one that they are attached to.
pub struct Plane {
    /// Programs stay attached as long as this is open.
    _ebpf: Ebpf,
    cgroups: [PathBuf; 3],
}

impl Plane {
    /// Loads and attaches. Agent `n` is in slot `n + 1`.
    pub fn load() -> Result<Self> {
        let root = hierarchy()?;
        let own = root.join(format!("agentd-bench-{}", std::process::id()));
        let cgroups = [own.join("0"), own.join("1"), own.clone()];
        for path in [&cgroups[2], &cgroups[0], &cgroups[1]] {
            std::fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        }
        match Self::attach(&root, &cgroups) {
            Ok(ebpf) => Ok(Self {
                _ebpf: ebpf,
                cgroups,
            }),
            Err(error) => {
                remove(&cgroups);
                Err(error)
            }
        }
    }

    fn attach(root: &Path, cgroups: &[PathBuf; 3]) -> Result<Ebpf> {
        let level = cgroups[0].strip_prefix(root)?.components().count() as u32;
        let object = match std::env::var_os(OBJECT_ENV) {
            Some(path) => {
                std::fs::read(&path).with_context(|| format!("read {}", path.display()))?
            }
            None => aya::include_bytes_aligned!("../../../agentd-ebpf/agentd.bpf.o").to_vec(),
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("AGENT_LEVEL", &level, true)
            .load(&object)
            .context("make the tables")?;
        let sockets: SockHash<_, u32> =
            SockHash::try_from(ebpf.map("ROUTE_SOCKETS").context("no ROUTE_SOCKETS")?)?;
        let sockets = sockets.fd().try_clone()?;
        let verdict: &mut SkMsg = program(&mut ebpf, "route_verdict")?;
        verdict.load().context("load route_verdict")?;
        verdict.attach(&sockets).context("attach route_verdict")?;
        let cgroup = File::open(&cgroups[2])?;
        let connect: &mut CgroupSockAddr = program(&mut ebpf, "route_connect4")?;
        connect.load().context("load route_connect4")?;
        connect.attach(&cgroup, CgroupAttachMode::Single)?;
        let established: &mut SockOps = program(&mut ebpf, "route_established")?;
        established.load().context("load route_established")?;
        established.attach(&cgroup, CgroupAttachMode::Single)?;

        let btf = Btf::from_sys_fs().context("read the kernel's types")?;
        let received: &mut BtfTracePoint = program(&mut ebpf, "route_received")?;
        received
            .load("sock_recv_length", &btf)
            .context("load route_received")?;
        received.attach().context("attach route_received")?;

        let mut directory: Array<_, Row<Place>> = table(&mut ebpf, "DIRECTORY")?;
        for (cgroup, slot) in cgroups.iter().zip(1..=2) {
            use std::os::unix::fs::MetadataExt;
            let cgroup_id = std::fs::metadata(cgroup)?.ino();
            let place = Place {
                cgroup_id,
                slot,
                _zero: 0,
            };
            let mut at = Place::home(cgroup_id);
            while directory.get(&at, 0)?.0.cgroup_id != 0 {
                at = (at + 1) % agentd_ebpf_common::DIRECTORY_LEN as u32;
            }
            directory.set(at, Row(place), 0)?;
        }
        let mut grants: Array<_, Row<Grant>> = table(&mut ebpf, "ROUTE_GRANTS")?;
        for slot in 1..=2u32 {
            let mut grant = Grant {
                address: address(slot, 1),
                credit: CREDIT,
                ..Grant::default()
            };
            grant.to[0] = 0b110;
            grants.set(slot, Row(grant), 0)?;
        }
        Ok(ebpf)
    }

    /// The cgroup of agent `n`.
    pub fn cgroup(&self, n: usize) -> &Path {
        &self.cgroups[n]
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        remove(&self.cgroups);
    }
}

/// A process that was reaped a moment ago may still be leaving.
fn remove(cgroups: &[PathBuf; 3]) {
    for path in cgroups {
        while let Err(error) = std::fs::remove_dir(path) {
            if error.kind() != ErrorKind::ResourceBusy {
                eprintln!("remove {}: {error}", path.display());
                break;
            }
            std::thread::yield_now();
        }
    }
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let found = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no {name}"))?;
    Ok(found.try_into()?)
}

fn table<'a, V: Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, V>> {
    let map = ebpf
        .map_mut(name)
        .with_context(|| format!("the object has no {name}"))?;
    Array::try_from(map).with_context(|| format!("table {name}"))
}

/// Where cgroup2 is mounted.
fn hierarchy() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    });
    match found {
        Some(path) => Ok(path),
        None => bail!("no cgroup2 hierarchy is mounted"),
    }
}
