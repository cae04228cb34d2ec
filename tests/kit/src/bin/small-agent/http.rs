//! Just enough HTTP/1.1 for a model gateway on loopback: one POST per connection, chunked or sized answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};

/// A model may think for a while before its first byte.
const READ_TIMEOUT: Duration = Duration::from_secs(600);

/// An answer whose body is still to be read.
pub struct Answer {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    body: BufReader<Body>,
}

impl Answer {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The body, as it comes.
    pub fn body(&mut self) -> &mut impl BufRead {
        &mut self.body
    }
}

/// Posts `json` to `http://AUTHORITY/PATH`.
pub fn post(
    authority: &str,
    path: &str,
    headers: &[(&str, &str)],
    json: &str,
) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(authority)
        .with_context(|| format!("cannot reach the model at {authority}"))?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!(
        "content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        json.len()
    ));
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(json.as_bytes()))
        .context("cannot ask the model")?;

    let mut reader = BufReader::new(stream);
    let status_line = line(&mut reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("the model answered {status_line:?}, which is not HTTP/1.1"))?;
    let mut headers = Vec::new();
    loop {
        let text = line(&mut reader)?;
        if text.is_empty() {
            break;
        }
        let Some((name, value)) = text.split_once(':') else {
            bail!("the model sent a header without a name: {text:?}")
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let value = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    let left = if value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        Left::Chunk(None)
    } else {
        match value("content-length") {
            Some(length) => Left::Bytes(
                length
                    .parse()
                    .context("the model sent a bad content-length")?,
            ),
            None => Left::UntilClose,
        }
    };
    Ok(Answer {
        status,
        headers,
        body: BufReader::new(Body { reader, left }),
    })
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if reader.take(16 << 10).read_line(&mut text)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the model closed the connection",
        ));
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

enum Left {
    /// So many bytes of the body.
    Bytes(u64),
    /// So many bytes of this chunk; `None` before the first.
    Chunk(Option<u64>),
    UntilClose,
    Nothing,
}

struct Body {
    reader: BufReader<TcpStream>,
    left: Left,
}

impl Body {
    /// Goes on to the next chunk when this one is used up.
    fn next_chunk(&mut self) -> io::Result<()> {
        if let Left::Chunk(before @ (None | Some(0))) = &self.left {
            if before.is_some() {
                line(&mut self.reader)?;
            }
            let size = line(&mut self.reader)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the model sent a bad chunk size",
                )
            })?;
            self.left = if size == 0 {
                Left::Nothing
            } else {
                Left::Chunk(Some(size))
            };
        }
        Ok(())
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next_chunk()?;
        let limit = match self.left {
            Left::Nothing | Left::Bytes(0) => return Ok(0),
            Left::UntilClose | Left::Chunk(None) => u64::MAX,
            Left::Bytes(left) | Left::Chunk(Some(left)) => left,
        };
        let room = buffer
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..room])?;
        match &mut self.left {
            Left::Bytes(left) | Left::Chunk(Some(left)) if read > 0 => *left -= read as u64,
            Left::UntilClose => {}
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the model's answer broke off",
                ));
            }
        }
        Ok(read)
    }
}
