//! What memory is made of: page sizes as the kernel reports them, the pool of huge pages, NUMA nodes, and the
//! calls that ask for either.
//!
//! Readers take the root of `/proc` or `/sys`, never block, and need no privilege. The calls change how pages
//! are laid out and never what is in them, so they are safe for any address, which is a number here; they fail
//! with what the kernel says.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::path::Path;

/// Bytes of a huge page of the size that arenas use (x86-64's second level).
pub const HUGE_PAGE: usize = 2 << 20;

/// How the pages of one mapping are made up, as `/proc/self/smaps` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappedPages {
    /// Bytes of the smallest page of this mapping: 2 MiB in a hugetlbfs mapping.
    pub page_bytes: u64,
    /// Bytes of it that one entry of a higher level maps (transparent huge pages).
    pub huge_bytes: u64,
    /// Bytes that are there at all.
    pub resident_bytes: u64,
}

impl MappedPages {
    /// Reads the entry of the mapping that begins at `start`.
    pub fn read(proc: &Path, start: usize) -> io::Result<Self> {
        let text = fs::read_to_string(proc.join("self/smaps"))?;
        Self::parse(&text, start).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("smaps has no mapping that begins at {start:#x}"),
            )
        })
    }

    fn parse(text: &str, start: usize) -> Option<Self> {
        let begins = format!("{start:x}-");
        let mut lines = text.lines();
        lines.find(|line| line.starts_with(&begins))?;
        let mut pages = Self::default();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            let Some(kib) = value.trim().strip_suffix(" kB") else {
                // The next mapping's line has a colon too (device numbers); "VmFlags:" is an entry's last.
                break;
            };
            let bytes = kib.trim().parse::<u64>().ok()?.checked_mul(1024)?;
            match name {
                "KernelPageSize" => pages.page_bytes = bytes,
                "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => pages.huge_bytes += bytes,
                "Rss" | "Shared_Hugetlb" | "Private_Hugetlb" => pages.resident_bytes += bytes,
                _ => {}
            }
        }
        (pages.page_bytes != 0).then_some(pages)
    }
}

/// The pool of reserved 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePool {
    pub total: u64,
    pub free: u64,
    /// Promised to mappings that have not touched them.
    pub promised: u64,
}

impl HugePool {
    /// Reads the pool's counters.
    pub fn read(sys: &Path) -> io::Result<Self> {
        let folder = sys.join("kernel/mm/hugepages/hugepages-2048kB");
        let number = |name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(folder.join(name))?;
            text.trim().parse().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {text:?}"))
            })
        };
        Ok(Self {
            total: number("nr_hugepages")?,
            free: number("free_hugepages")?,
            promised: number("resv_hugepages")?,
        })
    }

    /// How many pages a new mapping can have.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.promised)
    }
}

/// The NUMA nodes that have memory, in rising order. A kernel without NUMA has the node 0.
pub fn memory_nodes(sys: &Path) -> io::Result<Vec<u32>> {
    match fs::read_to_string(sys.join("devices/system/node/has_memory")) {
        Ok(text) => parse_list(text.trim()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("devices/system/node/has_memory: {text:?} is no list of nodes"),
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![0]),
        Err(error) => Err(error),
    }
}

/// `0-2,5` as the kernel prints sets.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= NODES_MAX {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Node numbers are below this (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: u32 = 1024;

/// The node of the CPU that this thread runs on now.
pub fn current_node() -> io::Result<u32> {
    let mut node = 0u32;
    // SAFETY: the kernel writes one u32 to `node`, which outlives the call; the other two arguments may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getcpu,
            std::ptr::null_mut::<u32>(),
            &raw mut node,
            std::ptr::null_mut::<c_void>(),
        )
    };
    answer(result).map(|_| node)
}

/// The set of one node, as the kernel takes sets.
fn mask_of(node: u32) -> io::Result<[u64; NODES_MAX as usize / 64]> {
    if node >= NODES_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut mask = [0; NODES_MAX as usize / 64];
    mask[node as usize / 64] |= 1 << (node % 64);
    Ok(mask)
}

/// Asks that pages of this range come from `node` where it has room. For pages that don't exist yet.
#[doc(alias = "MPOL_PREFERRED")]
pub fn prefer_node(start: usize, bytes: usize, node: u32) -> io::Result<()> {
    const MPOL_PREFERRED: usize = 1;
    let mask = mask_of(node)?;
    // SAFETY: the kernel reads `NODES_MAX` bits of `mask`, which outlives the call. The range need not be ours to be
    // safe: the call sets where future pages come from and touches none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start,
            bytes,
            MPOL_PREFERRED,
            mask.as_ptr(),
            // One more than the bits: the kernel subtracts one.
            NODES_MAX as usize + 1,
            0usize,
        )
    };
    answer(result).map(drop)
}

/// The node on which the page at `address` lies.
#[doc(alias = "get_mempolicy")]
pub fn node_of(address: usize) -> io::Result<u32> {
    const MPOL_F_NODE: usize = 1;
    const MPOL_F_ADDR: usize = 2;
    let mut node = 0i32;
    // SAFETY: the kernel writes one int to `node`, which outlives the call; without a mask its length is 0. The
    // address is only looked up.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut node,
            std::ptr::null_mut::<u64>(),
            0usize,
            address,
            MPOL_F_NODE | MPOL_F_ADDR,
        )
    };
    answer(result)?;
    u32::try_from(node).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Asks for huge pages in place of the small ones of a range, now (Linux 6.1). Both ends are multiples of
/// [`HUGE_PAGE`].
#[doc(alias = "MADV_COLLAPSE")]
pub fn collapse(start: usize, bytes: usize) -> io::Result<()> {
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: this advice moves pages and keeps their contents, so it changes no memory that anybody can see; a
    // range that is not mapped is an error.
    let result = unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(start),
            bytes,
            MADV_COLLAPSE,
        )
    };
    answer(libc::c_long::from(result)).map(drop)
}

fn answer(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-s 00000000 00:0f 77 /memfd:agentd-arena (deleted)
Size:               2048 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                2048 kB
ShmemPmdMapped:     2048 kB
THPeligible:           1
VmFlags: rd wr sh mr mw me ms
7f0000200000-7f0000600000 rw-s 00000000 00:0f 78 /anon_hugepage (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
Rss:                   0 kB
Shared_Hugetlb:     2048 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr sh mr mw me ms de ht
";

    #[test]
    fn page_sizes_are_those_of_the_mapping_that_was_asked_for() {
        let of = |start| MappedPages::parse(SMAPS, start);
        let collapsed = MappedPages {
            page_bytes: 4096,
            huge_bytes: 2 << 20,
            resident_bytes: 2 << 20,
        };
        assert_eq!(of(0x7f00_0000_0000), Some(collapsed));
        let hugetlb = MappedPages {
            page_bytes: 2 << 20,
            huge_bytes: 0,
            resident_bytes: 4 << 20,
        };
        assert_eq!(of(0x7f00_0020_0000), Some(hugetlb));
        assert_eq!(of(0x7f00_0010_0000), None, "not the start of a mapping");
        assert_eq!(
            MappedPages::parse("7f0000000000-7f0000200000 rw\n", 0x7f00_0000_0000),
            None
        );
    }

    #[test]
    fn the_own_stack_guard_is_no_mapping_but_the_programs_first_page_is() {
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        let start =
            usize::from_str_radix(maps.split('-').next().expect("a range"), 16).expect("hex");
        let pages = MappedPages::read(Path::new("/proc"), start).expect("smaps");
        assert!(pages.page_bytes >= 4096 && pages.resident_bytes > 0);
        let error = MappedPages::read(Path::new("/proc"), 1).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_pool_and_the_nodes_are_read_below_the_given_root() {
        let sys = tempfile::tempdir().expect("folder");
        assert_eq!(memory_nodes(sys.path()).expect("no NUMA"), [0]);
        assert!(HugePool::read(sys.path()).is_err());
        let pool = sys.path().join("kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&pool).expect("folder");
        for (name, value) in [
            ("nr_hugepages", "8\n"),
            ("free_hugepages", "5\n"),
            ("resv_hugepages", "6\n"),
        ] {
            fs::write(pool.join(name), value).expect("file");
        }
        let read = HugePool::read(sys.path()).expect("pool");
        assert_eq!((read.total, read.free, read.available()), (8, 5, 0));
        let nodes = sys.path().join("devices/system/node");
        fs::create_dir_all(&nodes).expect("folder");
        for (text, expected) in [
            ("0-1,3\n", Some(vec![0, 1, 3])),
            ("0\n", Some(vec![0])),
            ("x", None),
            ("3-1", None),
            ("0-9999999", None),
        ] {
            fs::write(nodes.join("has_memory"), text).expect("file");
            assert_eq!(memory_nodes(sys.path()).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_set_of_one_node_has_its_bit_alone() {
        for node in [0, 1, 63, 64, 65, 127, 1023] {
            let mask = mask_of(node).expect("a node");
            let bits: u32 = mask.iter().map(|word| word.count_ones()).sum();
            let at = mask.iter().position(|word| *word != 0).expect("a bit");
            assert_eq!(bits, 1);
            assert_eq!(at as u32 * 64 + mask[at].trailing_zeros(), node);
        }
        assert!(mask_of(NODES_MAX).is_err());
    }

    /// What the kernel remembers of a range that has no page yet: its policy and the set of nodes.
    fn policy_of(address: usize) -> io::Result<(i32, Vec<u64>)> {
        const MPOL_F_ADDR: usize = 2;
        let (mut policy, mut mask) = (0i32, vec![0u64; NODES_MAX as usize / 64]);
        // SAFETY: the kernel writes one int and at most `NODES_MAX` bits, both of which outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut policy,
                mask.as_mut_ptr(),
                NODES_MAX as usize + 1,
                address,
                MPOL_F_ADDR,
            )
        };
        answer(result).map(|_| (policy, mask))
    }

    #[test]
    fn the_kernel_remembers_the_node_that_was_asked_for() {
        const MPOL_PREFERRED: i32 = 1;
        const BYTES: usize = 1 << 16;
        // SAFETY: a null hint maps fresh addresses, which this test alone uses and unmaps.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let address = start.addr();
        let nodes = memory_nodes(Path::new("/sys")).expect("nodes");
        for node in &nodes {
            match prefer_node(address, BYTES, *node) {
                Ok(()) => {
                    let (policy, mask) = policy_of(address + BYTES / 2).expect("a policy");
                    assert_eq!(policy, MPOL_PREFERRED);
                    assert_eq!(mask, mask_of(*node).expect("a node"));
                }
                // A kernel without NUMA.
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
            }
        }
        let absent = (0..NODES_MAX).find(|node| !nodes.contains(node));
        let refused = prefer_node(address, BYTES, absent.expect("no host has them all"));
        assert!(refused.is_err(), "a node that is not there");
        // SAFETY: the range that was mapped above, of which nothing is used any more.
        assert_eq!(unsafe { libc::munmap(start, BYTES) }, 0);
    }

    #[test]
    fn a_page_is_on_a_node_that_has_memory() {
        let nodes = memory_nodes(Path::new("/sys")).expect("nodes");
        assert!(current_node().is_ok());
        let page = vec![1u8; 1 << 16];
        match node_of(page.as_ptr() as usize) {
            Ok(node) => assert!(nodes.contains(&node)),
            // A kernel without NUMA.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        }
        assert!(prefer_node(page.as_ptr() as usize, 4096, NODES_MAX).is_err());
    }
}
