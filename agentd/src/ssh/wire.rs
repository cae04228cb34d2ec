//! The ssh-agent protocol (draft-miller-ssh-agent), as far as a filter needs it: framing, the list of keys, and which
//! key a signature is asked of. Bytes from both sides are hostile.

use std::io;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What OpenSSH's own agent takes at most.
pub(super) const MAX_MESSAGE: usize = 256 * 1024;
/// More keys than anybody has.
const MAX_KEYS: u32 = 2048;

pub(super) const FAILURE: u8 = 5;
pub(super) const REQUEST_IDENTITIES: u8 = 11;
pub(super) const IDENTITIES_ANSWER: u8 = 12;
pub(super) const SIGN_REQUEST: u8 = 13;
pub(super) const SIGN_RESPONSE: u8 = 14;

/// Reads one message; `None` at the end of the stream.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(1..=MAX_MESSAGE).contains(&length) {
        let text = format!("a message of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(4 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    to.write_all(&framed).await
}

/// A key that an ssh-agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) blob: Vec<u8>,
    pub(super) comment: Vec<u8>,
}

/// As `ssh-add -l` prints it.
pub(super) fn fingerprint(blob: &[u8]) -> String {
    let digest = base64::engine::general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(blob));
    format!("SHA256:{digest}")
}

/// The keys in an IDENTITIES_ANSWER; `None` if it is none.
pub(super) fn parse_identities(message: &[u8]) -> Option<Vec<Key>> {
    let mut rest = message.strip_prefix(&[IDENTITIES_ANSWER])?;
    let (count, after) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    rest = after;
    if count > MAX_KEYS {
        return None;
    }
    let mut keys = Vec::new();
    for _ in 0..count {
        let blob = string(&mut rest)?.to_vec();
        let comment = string(&mut rest)?.to_vec();
        keys.push(Key { blob, comment });
    }
    rest.is_empty().then_some(keys)
}

/// An IDENTITIES_ANSWER with these keys.
pub(super) fn identities(keys: &[Key]) -> Vec<u8> {
    let mut out = vec![IDENTITIES_ANSWER];
    out.extend_from_slice(&(keys.len() as u32).to_be_bytes());
    for part in keys.iter().flat_map(|k| [&k.blob, &k.comment]) {
        out.extend_from_slice(&(part.len() as u32).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// The key that a SIGN_REQUEST names; `None` if it is none.
pub(super) fn parse_sign_request(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.strip_prefix(&[SIGN_REQUEST])?;
    let key = string(&mut rest)?;
    string(&mut rest)?;
    (rest.len() == 4).then_some(key)
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (text, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_and_nothing_else_does() {
        let keys = vec![
            Key {
                blob: b"one".to_vec(),
                comment: b"c".to_vec(),
            },
            Key {
                blob: b"two".to_vec(),
                comment: Vec::new(),
            },
        ];
        let message = identities(&keys);
        assert_eq!(parse_identities(&message), Some(keys));
        for cut in 0..message.len() {
            assert_eq!(parse_identities(&message[..cut]), None, "{cut}");
        }
        assert_eq!(
            parse_identities(&[IDENTITIES_ANSWER, 0xff, 0xff, 0xff, 0xff]),
            None
        );
    }

    #[test]
    fn the_key_of_a_signature_is_found_only_in_a_whole_request() {
        let mut message = vec![SIGN_REQUEST];
        for part in [&b"key"[..], b"data"] {
            message.extend_from_slice(&(part.len() as u32).to_be_bytes());
            message.extend_from_slice(part);
        }
        message.extend_from_slice(&[0; 4]);
        assert_eq!(parse_sign_request(&message), Some(&b"key"[..]));
        for cut in 0..message.len() {
            assert_eq!(parse_sign_request(&message[..cut]), None, "{cut}");
        }
        message.push(0);
        assert_eq!(parse_sign_request(&message), None);
    }

    #[test]
    fn a_fingerprint_is_what_openssh_prints() {
        // printf '' | openssl dgst -sha256 -binary | base64
        assert_eq!(
            fingerprint(b""),
            "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
        );
    }
}
