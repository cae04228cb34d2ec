//! Landlock's records in the kernel's audit, with names of any bytes in them.

use agentd_kernel::audit::record::{KINDS, Record, Target, parse, parse_message};

/// Any message parses to bounded parts or to nothing; and a path of any bytes, written as the
/// kernel writes it, comes back as it was and changes nothing else of the record.
pub fn records(data: &[u8]) {
    if let Some(Record::Access(access)) = parse_message(data) {
        assert!(!access.blockers.is_empty() && access.blockers.len() <= data.len());
        assert!(access.blockers.bytes().all(|byte| byte.is_ascii_graphic()));
        if let Target::Port { address, .. } = &access.target {
            assert!(address.is_empty() || address.parse::<std::net::IpAddr>().is_ok());
        }
    }
    let [kind, _] = KINDS;
    let told = [
        &b"audit(1732186800.349:44): domain=195ba459b blockers=fs.write_file path="[..],
        &written(data),
        b" dev=\"vda2\" ino=351",
    ];
    let Some(Record::Access(access)) = parse(kind, &told.concat()) else {
        panic!("a record of the kernel's form");
    };
    assert_eq!(access.domain, 0x1_95ba_459b);
    let path = match data {
        // The kernel never writes an empty name.
        [] => Target::Unknown,
        path => Target::Path(path.to_vec()),
    };
    assert_eq!(access.target, path);
}

/// As `audit_log_untrustedstring` does.
fn written(name: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| (0x21..=0x7e).contains(byte) && *byte != b'"';
    if !name.is_empty() && name.iter().all(plain) {
        return [b"\"", name, b"\""].concat();
    }
    let hex = name.iter().map(|byte| format!("{byte:02X}"));
    hex.collect::<String>().into_bytes()
}
