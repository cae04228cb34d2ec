//! The first file system of a guest: a static busybox, the kernel's modules, and a script that finds the real root.
//!
//! Written in the "newc" form of cpio that the kernel unpacks (Documentation/driver-api/early-userspace), without a
//! program for it. Pure but for reading the files that go in.

use std::path::Path;

use anyhow::{Context, Result};

use super::kernel::Kernel;

/// The directories that the script needs.
const DIRECTORIES: [&str; 6] = ["bin", "modules", "proc", "sys", "dev", "root"];

/// Loads the modules, waits for both disks, and makes the first one the root.
const INIT: &str = include_str!("initrd.sh");

/// The whole of it, uncompressed: a guest without hardware would only take longer to unpack it.
pub fn build(kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in DIRECTORIES {
        archive.add(name, 0o040_755, &[]);
    }
    let program = std::fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    archive.add("bin/busybox", 0o100_755, &program);
    let mut order = String::new();
    for module in kernel.modules()? {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy()
            .into_owned();
        let bytes = std::fs::read(&module).with_context(|| format!("read {}", module.display()))?;
        archive.add(&format!("modules/{name}"), 0o100_644, &bytes);
        order += &format!("{name}\n");
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    archive.add("init", 0o100_755, INIT.as_bytes());
    Ok(archive.finish())
}

/// A cpio archive being written.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let size = u32::try_from(content.len()).expect("a file below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        // magic, then eight digits each: inode, mode, uid, gid, links, mtime, size, device numbers (4), name size, check
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"abc");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Header of 110 bytes, the name and its zero, to 116; then the content.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..119], b"abc");
        assert_eq!(&bytes[6 + 6 * 8..6 + 7 * 8], b"00000003");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
