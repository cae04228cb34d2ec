//! NATS JetStream with `sync_interval: always`: each message is on the disk before its acknowledgement, as with us.
//!
//! The server runs on the loopback with its store in the same file system. A batch is 64 publishes in one write, then 64
//! acknowledgements: what its clients call asynchronous publishing. The protocol is a few lines of text.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use bench_kit::helper::Helper;

use crate::{BATCH, Contender, MESSAGE, noise, rate};

/// What names the server's binary; xtask sets it.
const PROGRAM: &str = "BENCH_NATS_SERVER";

struct JetStream {
    socket: TcpStream,
    answers: BufReader<TcpStream>,
    /// The bytes of one batch.
    batch: Vec<u8>,
    _server: Helper,
}

pub fn start(directory: &Path) -> Result<Box<dyn Contender>> {
    let program = std::env::var_os(PROGRAM).map_or("nats-server".into(), PathBuf::from);
    let configuration = directory.join("nats.conf");
    let store = directory.join("store");
    let text = format!(
        "listen: \"127.0.0.1:-1\"\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n"
    );
    std::fs::write(&configuration, text).context("write the server's configuration")?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&configuration);
    let server = Helper::start_by_stderr(&mut command, "Server is ready").context("nats-server")?;
    let said = server.said();
    let address = said
        .lines()
        .find_map(|line| line.split_once("Listening for client connections on "))
        .context("the server named no address")?;
    let address: SocketAddr = address.1.trim().parse().context("the server's address")?;
    let socket = TcpStream::connect(address).context("connect to nats-server")?;
    socket.set_nodelay(true).context("TCP_NODELAY")?;
    let answers = BufReader::new(socket.try_clone().context("dup")?);
    let mut it = JetStream {
        socket,
        answers,
        batch: Vec::new(),
        _server: server,
    };
    it.line()?;
    it.socket.write_all(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\nSUB answers 1\r\n",
    )?;
    let stream = br#"{"name":"work","subjects":["work"],"storage":"file","retention":"workqueue"}"#;
    let head = format!(
        "PUB $JS.API.STREAM.CREATE.work answers {}\r\n",
        stream.len()
    );
    it.socket
        .write_all(&[head.as_bytes(), stream, b"\r\n"].concat())?;
    let made = it.message()?;
    if made.contains("\"error\"") {
        bail!("JetStream made no stream: {made}");
    }
    let message = noise(5, MESSAGE);
    let one = [
        format!("PUB work answers {MESSAGE}\r\n").as_bytes(),
        &message,
        b"\r\n",
    ]
    .concat();
    it.batch = one.repeat(BATCH);
    Ok(Box::new(it))
}

impl JetStream {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("read")? == 0 {
            bail!("the server closed the connection");
        }
        Ok(line)
    }

    /// The next message's text; answers pings on the way.
    fn message(&mut self) -> Result<String> {
        loop {
            let line = self.line()?;
            let mut words = line.split_whitespace();
            match words.next() {
                Some("MSG") => {
                    let len: usize = words.last().context("a length")?.parse()?;
                    let mut text = vec![0; len + 2];
                    self.answers.read_exact(&mut text).context("read")?;
                    return Ok(String::from_utf8_lossy(&text[..len]).into_owned());
                }
                Some("PING") => self.socket.write_all(b"PONG\r\n").context("write")?,
                Some("-ERR") => bail!("nats-server: {}", line.trim()),
                _ => {}
            }
        }
    }
}

impl Contender for JetStream {
    fn enqueue(&mut self, batches: usize) -> Result<f64> {
        rate(batches * BATCH, || {
            for _ in 0..batches {
                self.socket.write_all(&self.batch).context("write")?;
                for _ in 0..BATCH {
                    let answer = self.message()?;
                    if !answer.contains("\"seq\"") {
                        bail!("not acknowledged: {answer}");
                    }
                }
            }
            Ok(())
        })
    }
}
