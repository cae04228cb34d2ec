//! The host outside: one small HTTP server on the loopback that stands for a git host and for
//! package registries.
//!
//! It serves the files below its root (a folder's `index.html` for the folder), and `/git/` through
//! `git http-backend`. One request a connection, one thread each; it ends with the process. Nobody
//! but this run knows its port, and it is no part of the product: a request that it does not
//! understand gets 400 and nothing more.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// An address of the loopback that no `NO_PROXY` names, so that programs do go through the proxy.
pub const ADDRESS: &str = "127.0.0.2";
const MAX_BODY: u64 = 64 << 20;

/// Serves `root` from now on; returns the port.
pub fn serve(root: &Path) -> Result<u16> {
    let listener = TcpListener::bind((ADDRESS, 0)).context("listen for the host's stand-in")?;
    let port = listener
        .local_addr()
        .context("ask for the stand-in's port")?
        .port();
    let root = root.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let root = root.clone();
            std::thread::spawn(move || {
                // A client that goes away in the middle is its own affair.
                if let Err(error) = answer(&root, &stream)
                    && let Err(gone) =
                        respond(&stream, "400 Bad Request", "", error.to_string().as_bytes())
                {
                    eprintln!("  the host's stand-in: {error:#}, and the client: {gone}");
                }
            });
        }
    });
    Ok(port)
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).context("read a request")?;
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            bail!("a request line of two words, not {line:?}");
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).context("read a header")?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            request
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if request
            .header("transfer-encoding")
            .is_some_and(|how| how.eq_ignore_ascii_case("chunked"))
        {
            request.body = chunks(&mut reader)?;
        } else if let Some(length) = request.header("content-length") {
            let length: u64 = length.parse().context("a length")?;
            if length > MAX_BODY {
                bail!("a body of {length} bytes; at most {MAX_BODY}");
            }
            reader
                .take(length)
                .read_to_end(&mut request.body)
                .context("read a body")?;
        }
        Ok(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }
}

fn chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).context("read a chunk's size")?;
        let size = u64::from_str_radix(line.trim(), 16).context("a chunk's size")?;
        let begun = body.len();
        if body.len() as u64 + size > MAX_BODY {
            bail!("a body of more than {MAX_BODY} bytes");
        }
        reader
            .by_ref()
            .take(size + 2)
            .read_to_end(&mut body)
            .context("read a chunk")?;
        body.truncate(begun + usize::try_from(size)?);
        if size == 0 {
            return Ok(body);
        }
    }
}

fn answer(root: &Path, stream: &TcpStream) -> Result<()> {
    let request = Request::read(stream)?;
    if request.path.starts_with("/git/") {
        return git(root, &request, stream);
    }
    let path = Path::new(request.path.trim_start_matches('/'));
    if path
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        bail!("a plain path, not {}", request.path);
    }
    let mut file: PathBuf = root.join(path);
    if file.is_dir() {
        file = file.join("index.html");
    }
    let kind = match file.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html",
        Some(_) => "application/octet-stream",
        None => "application/json",
    };
    match std::fs::read(&file) {
        Ok(content) => {
            let body: &[u8] = if request.method == "HEAD" {
                &[]
            } else {
                &content
            };
            let length = content.len();
            respond(
                stream,
                "200 OK",
                &format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n"),
                body,
            )
        }
        Err(_) => respond(stream, "404 Not Found", "", b"there is no such file\n"),
    }
}

/// git's own server, as any web server runs it (RFC 3875).
fn git(root: &Path, request: &Request, mut stream: &TcpStream) -> Result<()> {
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_ADDR", ADDRESS)
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env(
            "CONTENT_TYPE",
            request.header("content-type").unwrap_or_default(),
        )
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    for (variable, header) in [
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = request.header(header) {
            command.env(variable, value);
        }
    }
    let mut backend = command.spawn().context("start git http-backend")?;
    let mut stdin = backend
        .stdin
        .take()
        .context("its standard input is piped")?;
    let output = std::thread::scope(|scope| {
        // It may answer without having read all; then the rest is not wanted.
        scope.spawn(move || stdin.write_all(&request.body).ok());
        backend.wait_with_output()
    });
    let output = output.context("wait for git http-backend")?.stdout;
    let end = output
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("git http-backend gave no headers")?;
    let headers = String::from_utf8_lossy(&output[..end]);
    let status = headers
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    let body = &output[end + 4..];
    let kept: String = headers
        .lines()
        .filter(|line| !line.starts_with("Status: "))
        .map(|line| format!("{line}\r\n"))
        .collect();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{kept}\r\n",
        body.len()
    )
    .and_then(|()| stream.write_all(body))
    .context("answer a git client")
}

/// `headers` holds a Content-Length of its own, or is empty.
fn respond(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) -> Result<()> {
    let length = if headers.is_empty() {
        format!("Content-Length: {}\r\n", body.len())
    } else {
        String::new()
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n"
    )
    .and_then(|()| stream.write_all(body))
    .context("answer a client")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect((ADDRESS, port)).expect("connect");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    #[test]
    fn it_serves_files_below_its_root_and_no_others() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("folder")).expect("a folder");
        std::fs::write(root.path().join("folder/index.html"), "the index").expect("a file");
        let port = serve(root.path()).expect("it listens");
        let index = ask(port, "GET /folder/ HTTP/1.1\r\n\r\n");
        assert!(
            index.starts_with("HTTP/1.1 200") && index.ends_with("the index"),
            "{index}"
        );
        assert!(ask(port, "GET /none HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(port, "GET /../etc/passwd HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400"));
    }

    #[test]
    fn a_body_comes_whole_in_chunks() {
        let mut body = std::io::Cursor::new("4\r\nbody\r\n1\r\n!\r\n0\r\n\r\n");
        assert_eq!(chunks(&mut body).expect("a body"), b"body!");
    }
}
