//! Payloads made smaller, and whole again. Pure.

use super::{Compression, NewRecord, Payload, StreamSpec};

/// A smaller form of a payload, if it is to be looked for and there is one.
pub(crate) fn compress(spec: &StreamSpec, payload: &[u8]) -> (Compression, Option<Vec<u8>>) {
    if payload.len() < spec.compress_above as usize {
        return (Compression::None, None);
    }
    let smaller = match spec.compression {
        Compression::None => None,
        Compression::Lz4 => Some(lz4_flex::block::compress(payload)),
        Compression::Zstd => zstd::bulk::compress(payload, 3).ok(),
    };
    match smaller {
        Some(smaller) if smaller.len() < payload.len() => (spec.compression, Some(smaller)),
        _ => (Compression::None, None),
    }
}

/// The payload of `raw_len` bytes as it was handed over. What it says of itself is not believed.
pub(crate) fn expand(
    compression: Compression,
    raw_len: u32,
    stored: &[u8],
) -> Result<Payload, String> {
    let len = raw_len as usize;
    if len > NewRecord::MAX {
        return Err(format!("it says that it has {len} bytes"));
    }
    let bytes = match compression {
        Compression::None => return Ok(stored.into()),
        Compression::Lz4 => {
            lz4_flex::block::decompress(stored, len).map_err(|error| error.to_string())?
        }
        Compression::Zstd => {
            zstd::bulk::decompress(stored, len).map_err(|error| error.to_string())?
        }
    };
    if bytes.len() == len {
        Ok(bytes.into())
    } else {
        Err(format!(
            "{} bytes came out of it instead of {len}",
            bytes.len()
        ))
    }
}
