//! What Landlock tells the kernel's audit, as text: parsed, decoded, bounded.
//!
//! Pure. The kernel writes the text, and puts names from programs and file systems into it: in
//! quotes, or in hexadecimal where a name has a quote, a space or a control character. What does
//! not look like that is no record. Field names and order are those of `security/landlock/audit.c`
//! and `security/lsm_audit.c`.

/// Netlink message types of the records that are parsed here.
#[doc(alias = "AUDIT_LANDLOCK_ACCESS")]
#[doc(alias = "AUDIT_LANDLOCK_DOMAIN")]
pub const KINDS: [u16; 2] = [1423, 1424];
/// Longest list of rights; the kernel's whole vocabulary is shorter.
const MAX_BLOCKERS: usize = 512;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Something was refused.
    Access(Access),
    /// A domain has gone: the last process in it has ended. All that it refused, told or not.
    Gone { domain: u64, denials: u64 },
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whose rules refused. The number is never used again.
    pub domain: u64,
    /// Rights that were missing, in the kernel's words, with commas: `fs.write_file,fs.truncate`.
    pub blockers: String,
    pub target: Target,
}

/// At what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file, as the process that was refused sees it, or the address of a unix socket. Any bytes.
    Path(Vec<u8>),
    /// A TCP port, with the address where it was told.
    Port { address: String, port: u16 },
    /// A process, by its number on the host and the name it gave itself.
    Process { pid: u32, comm: Vec<u8> },
    /// The record does not say.
    Unknown,
}

impl Access {
    /// Whether a signal to a process was refused, which is how a launcher makes its domain known.
    pub fn signalled(&self) -> Option<u32> {
        match &self.target {
            Target::Process { pid, .. } if self.blockers == "scope.signal" => Some(*pid),
            _ => None,
        }
    }
}

/// A netlink message with its header. `None` for whatever is no record of these kinds, or of a domain's beginning.
pub fn parse_message(message: &[u8]) -> Option<Record> {
    let (header, text) = message.split_at_checked(super::HEADER_LEN)?;
    parse(u16::from_ne_bytes([header[4], header[5]]), text)
}

/// The text of a message of type `kind`.
pub fn parse(kind: u16, text: &[u8]) -> Option<Record> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    // The stamp: time and number, in brackets.
    let stamp = text.strip_prefix(b"audit(")?;
    let end = stamp.iter().position(|byte| *byte == b':')?;
    let end = end + stamp[end..].windows(3).position(|three| three == b"): ")?;
    let fields = Fields(&stamp[end + 3..]);
    let domain = number(fields.find("domain")?, 16)?;
    let [access, state] = KINDS;
    if kind == access {
        let blockers = fields.find("blockers")?;
        let word = |byte: &u8| byte.is_ascii_lowercase() || b"._,".contains(byte);
        if blockers.is_empty() || blockers.len() > MAX_BLOCKERS || !blockers.iter().all(word) {
            return None;
        }
        return Some(Record::Access(Access {
            domain,
            blockers: String::from_utf8_lossy(blockers).into_owned(),
            target: target(&fields),
        }));
    }
    if kind != state || fields.find("status")? != b"deallocated" {
        return None;
    }
    Some(Record::Gone {
        domain,
        denials: number(fields.find("denials")?, 10)?,
    })
}

fn target(fields: &Fields<'_>) -> Target {
    if let Some(path) = fields.find("path").and_then(decoded) {
        return Target::Path(path);
    }
    // What is bound has a source, what is connected to a destination.
    for (port, addresses) in [("dest", ["daddr", "faddr"]), ("src", ["saddr", "laddr"])] {
        let Some(port) = fields.find(port).and_then(|port| number(port, 10)) else {
            continue;
        };
        let Ok(port) = u16::try_from(port) else {
            continue;
        };
        let address = addresses.into_iter().find_map(|key| fields.find(key));
        let address = address.and_then(|address| std::str::from_utf8(address).ok());
        // Not a name: it is parsed to be sure of that.
        let address = address.and_then(|address| address.parse::<std::net::IpAddr>().ok());
        return Target::Port {
            address: address.map_or_else(String::new, |address| address.to_string()),
            port,
        };
    }
    let pid = fields.find("opid").and_then(|pid| number(pid, 10));
    if let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) {
        let comm = fields.find("ocomm").and_then(decoded).unwrap_or_default();
        return Target::Process { pid, comm };
    }
    Target::Unknown
}

/// `key=value` pairs with a space between them. A value in quotes has no quote and no space in it.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The first with this key. Values are in hexadecimal where they could look like a key, so no name can pose as a field.
    fn find(&self, key: &str) -> Option<&'a [u8]> {
        self.0.split(|byte| *byte == b' ').find_map(|field| {
            let value = field.strip_prefix(key.as_bytes())?;
            value.strip_prefix(b"=")
        })
    }
}

/// A name as it was: between quotes as it stands, otherwise in hexadecimal.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    if let Some(quoted) = value.strip_prefix(b"\"") {
        return quoted.strip_suffix(b"\"").map(<[u8]>::to_vec);
    }
    let (pairs, rest) = value.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    pairs.iter().map(byte).collect()
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    // Signs are no digits.
    let plain = digits.iter().all(u8::is_ascii_alphanumeric);
    let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: u16 = KINDS[0];
    const DOMAIN: u16 = KINDS[1];

    fn access(text: &str) -> Access {
        match parse(ACCESS, text.as_bytes()) {
            Some(Record::Access(access)) => access,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_refused_file_has_its_rights_and_its_path() {
        let told = access(
            "audit(1732186800.349:44): domain=195ba459b blockers=fs.write_file,fs.truncate path=\"/etc/passwd\" dev=\"vda2\" ino=351",
        );
        assert_eq!(told.domain, 0x1_95ba_459b);
        assert_eq!(told.blockers, "fs.write_file,fs.truncate");
        assert_eq!(told.target, Target::Path(b"/etc/passwd".to_vec()));
        assert_eq!(told.signalled(), None);
    }

    #[test]
    fn a_name_with_spaces_quotes_or_controls_is_decoded_and_poses_as_nothing() {
        let name = b"/w/a\" domain=1 \n\x1b[2J\xff";
        let hex: String = name.iter().map(|byte| format!("{byte:02X}")).collect();
        let told = access(&format!(
            "audit(1.000:1): domain=2a blockers=fs.make_reg path={hex} dev=\"vda\" ino=2"
        ));
        assert_eq!(told.domain, 0x2a);
        assert_eq!(told.target, Target::Path(name.to_vec()));
    }

    #[test]
    fn ports_have_the_address_where_one_was_told() {
        let connect =
            access("audit(1.000:1): domain=1 blockers=net.connect_tcp daddr=127.0.0.1 dest=443");
        let port = |address: &str, port| Target::Port {
            address: address.into(),
            port,
        };
        assert_eq!(connect.target, port("127.0.0.1", 443));
        let six = access("audit(1.000:1): domain=1 blockers=net.connect_tcp daddr=::1 dest=80");
        assert_eq!(six.target, port("::1", 80));
        let bind = access("audit(1.000:1): domain=1 blockers=net.bind_tcp src=1024");
        assert_eq!(bind.target, port("", 1024));
        let huge = access("audit(1.000:1): domain=1 blockers=net.bind_tcp src=70000");
        assert_eq!(huge.target, Target::Unknown);
    }

    #[test]
    fn a_refused_signal_names_the_process() {
        let told = access(
            "audit(1729738800.268:30): domain=1a6fdc66f blockers=scope.signal opid=1 ocomm=\"systemd\"",
        );
        assert_eq!(told.signalled(), Some(1));
        let trace = access("audit(1.0:3): domain=1 blockers=ptrace opid=7 ocomm=\"x\"");
        assert_eq!(trace.signalled(), None);
    }

    #[test]
    fn the_end_of_a_domain_counts_what_it_refused_and_its_beginning_is_passed_over() {
        let gone = "audit(1732186800.393:46): domain=195ba459b status=deallocated denials=2";
        let record = Record::Gone {
            domain: 0x1_95ba_459b,
            denials: 2,
        };
        assert_eq!(parse(DOMAIN, gone.as_bytes()), Some(record));
        let begun = "audit(1732186800.349:44): domain=195ba459b status=allocated mode=enforcing pid=286 uid=0 exe=\"/sandboxer\" comm=\"sandboxer\"";
        assert_eq!(parse(DOMAIN, begun.as_bytes()), None);
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            "",
            "audit(",
            "audit(1.0:1)",
            "audit(1.0:1): ",
            "audit(1.0:1): domain= blockers=fs.execute",
            "audit(1.0:1): domain=+1 blockers=fs.execute",
            "audit(1.0:1): domain=1 blockers=",
            "audit(1.0:1): domain=1 blockers=\x1b[2J",
            "domain=1 blockers=fs.execute",
        ] {
            assert_eq!(parse(ACCESS, text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(1300, b"audit(1.0:1): domain=1 blockers=ptrace"), None);
        assert_eq!(parse_message(&[0; super::super::HEADER_LEN - 1]), None);
    }
}
