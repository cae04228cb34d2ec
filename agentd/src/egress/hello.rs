//! The first bytes of a tunnel: a TLS client says in the clear which server it wants (RFC 8446, 4.1.2; RFC 6066, 3).
//!
//! Read to hold a tunnel to the host that was asked for: one front serves many names, so a `CONNECT` to an allowed one could
//! carry a conversation with any other. Pure, and the bytes are the agent's: whatever is malformed is [`Opening::Broken`],
//! never a panic. What is not TLS is not looked at: the rule named a host and a port, and no protocol.

/// The longest opening that is waited for: several times what clients send with post-quantum keys.
pub const MAX_BYTES: usize = 64 << 10;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 16 << 10;

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The beginning of something that a server's name may be in.
    Unfinished,
    /// Another protocol, or TLS without a server's name.
    Nameless,
    /// TLS with this server.
    Server(String),
    /// It begins like TLS and isn't.
    Broken,
}

/// Reads what a client has sent so far.
pub fn read(bytes: &[u8]) -> Opening {
    if bytes.first().is_some_and(|first| *first != HANDSHAKE) {
        return Opening::Nameless;
    }
    match handshake(bytes) {
        Ok(Some(hello)) => match server_name(&hello) {
            Some(Some(name)) => Opening::Server(name),
            Some(None) => Opening::Nameless,
            None => Opening::Broken,
        },
        Ok(None) if bytes.len() < MAX_BYTES => Opening::Unfinished,
        _ => Opening::Broken,
    }
}

#[derive(Debug)]
struct NoTls;

/// The body of the first handshake message, which may be spread over records; nothing while it is not all there.
fn handshake(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, NoTls> {
    let mut message = Vec::new();
    loop {
        if let Some([kind, a, b, c]) = message.first_chunk() {
            if *kind != CLIENT_HELLO {
                return Err(NoTls);
            }
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if let Some(body) = message[4..].get(..length) {
                return Ok(Some(body.to_vec()));
            }
        }
        let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
            return Ok(None);
        };
        let [kind, major, _, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != HANDSHAKE || major != 3 || length == 0 || length > MAX_RECORD {
            return Err(NoTls);
        }
        let (fragment, after) = rest.split_at(length.min(rest.len()));
        message.extend_from_slice(fragment);
        bytes = after;
    }
}

/// The name in a ClientHello; `Some(None)` where there is none, `None` where the message is malformed.
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 34;
    const SERVER_NAME: u16 = 0;
    const HOST: u8 = 0;
    let mut rest = hello.get(VERSION_AND_RANDOM..)?;
    let _session = vector::<1>(&mut rest)?;
    let _suites = vector::<2>(&mut rest)?;
    let _compressions = vector::<1>(&mut rest)?;
    if rest.is_empty() {
        return Some(None);
    }
    let mut extensions = vector::<2>(&mut rest)?;
    let mut found = None;
    while !extensions.is_empty() {
        let kind = u16::from_be_bytes(*take::<2>(&mut extensions)?);
        let mut content = vector::<2>(&mut extensions)?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = vector::<2>(&mut content)?;
        let [kind] = *take::<1>(&mut names)?;
        let name = std::str::from_utf8(vector::<2>(&mut names)?).ok()?;
        // One list, and in it one name: readers that disagree about which one counts are the attack.
        if kind != HOST || !names.is_empty() || found.is_some() {
            return None;
        }
        found = Some(name.to_owned());
    }
    Some(found)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(head)
}

/// Bytes behind their length of N bytes.
fn vector<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take::<N>(rest)?
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes()[..], bytes].concat()
    }

    fn extension(names: &[&str]) -> Vec<u8> {
        let entry = |name: &&str| [&[0][..], &length(name.as_bytes())].concat();
        let list: Vec<u8> = names.iter().flat_map(entry).collect();
        [&[0, 0][..], &length(&length(&list))].concat()
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let fixed = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
        let body = [&fixed[..], &length(extensions)].concat();
        [&[CLIENT_HELLO, 0][..], &length(&body)].concat()
    }

    fn record(fragment: &[u8]) -> Vec<u8> {
        [&[HANDSHAKE, 3, 1][..], &length(fragment)].concat()
    }

    #[test]
    fn the_name_is_read_however_the_message_is_cut() {
        let message = hello(&extension(&["example.com"]));
        let named = Opening::Server("example.com".to_owned());
        assert_eq!(read(&record(&message)), named);
        let pieces: Vec<u8> = message.chunks(3).flat_map(record).collect();
        for end in 0..pieces.len() {
            assert_eq!(read(&pieces[..end]), Opening::Unfinished, "{end}");
        }
        assert_eq!(read(&pieces), named);
    }

    #[test]
    fn what_names_nobody_is_nameless() {
        for bytes in [
            &b"SSH-2.0-x\r\n"[..],
            b"GET / HTTP/1.1\r\n",
            &record(&hello(&[])),
        ] {
            assert_eq!(read(bytes), Opening::Nameless, "{bytes:?}");
        }
    }

    #[test]
    fn two_names_another_message_and_any_cut_inside_are_broken() {
        let twice = [extension(&["a.example"]), extension(&["b.example"])].concat();
        let mut cut = hello(&extension(&["example.com"]));
        // The list of extensions says that it is longer than the message.
        cut[46] += 1;
        for bytes in [
            record(&hello(&extension(&["a.example", "b.example"]))),
            record(&hello(&twice)),
            record(&cut),
            record(&[2, 0, 0, 0]),
            vec![HANDSHAKE, 2, 0, 0, 1, 0],
            vec![HANDSHAKE, 3, 1, 0xff, 0xff],
            record(&[CLIENT_HELLO, 0xff, 0xff, 0xff])
                .into_iter()
                .chain(record(&[0; 16 << 10]).repeat(4))
                .collect(),
        ] {
            assert_eq!(
                read(&bytes),
                Opening::Broken,
                "{:?}",
                &bytes[..bytes.len().min(60)]
            );
        }
    }
}
