//! The programs: the object that was built from `agentd-ebpf` and committed, so that a plain build needs no eBPF tools.

/// `agentd-ebpf/agentd.bpf.o`, stripped. `cargo xtask ebpf` makes it anew.
pub static EMBEDDED: &[u8] = aya::include_bytes_aligned!("../../../agentd-ebpf/agentd.bpf.o");

/// Names an object in the directory of its pins: FNV-1a, which tells builds apart and protects nothing.
pub fn hash(object: &[u8]) -> u64 {
    object.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_object_has_another_name() {
        assert_eq!(super::hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_ne!(super::hash(b"a"), super::hash(b"b"));
        assert!(super::EMBEDDED.starts_with(b"\x7fELF"));
    }
}
