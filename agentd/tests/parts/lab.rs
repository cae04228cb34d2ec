//! What the tests of gateway and proxy share: a record to look into, and raw sockets on the agent's side.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use agentd_api::{AgentId, AgentIdentity};
use agentd_storage::{At, Denial, Event, Fact, Launch, LaunchId, Store, Usage, Viewer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Against hangs only. Some tests run real agents, which are large programs, and the machine may be busy.
pub const WATCHDOG: Duration = Duration::from_secs(180);

/// One agent's record, in a directory of its own.
pub struct Record {
    pub identity: AgentIdentity,
    pub store: Store,
    directory: TempDir,
}

impl Record {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path().join("record.db"))
            .await
            .expect("a new record");
        let identity = AgentIdentity::new(AgentId::from(uuid::Uuid::now_v7()), "finder", 1000);
        let launch = Launch {
            name: "finder".into(),
            uid: 1000,
            ..Launch::default()
        };
        let event = Event::now(identity.id.to_string(), Fact::Launch(launch));
        store
            .record_durable(event)
            .await
            .expect("the launch is on record");
        Self {
            identity,
            store,
            directory,
        }
    }

    fn id(&self) -> LaunchId {
        LaunchId::new(self.identity.id.to_string())
    }

    pub async fn usage(&self) -> Vec<Usage> {
        let rows = self
            .store
            .usage(Viewer::Root, &self.id())
            .await
            .expect("the record can be read");
        rows.into_iter().map(|row: At<Usage>| row.what).collect()
    }

    pub async fn denials(&self) -> Vec<Denial> {
        let rows = self
            .store
            .denials(Viewer::Root, &self.id())
            .await
            .expect("the record can be read");
        rows.into_iter().map(|row: At<Denial>| row.what).collect()
    }

    /// Whether any file of the record holds `needle`.
    pub async fn contains(&self, needle: &[u8]) -> bool {
        self.store.flush().await.expect("the record is written");
        files(self.directory.path())
            .iter()
            .any(|bytes| bytes.windows(needle.len()).any(|w| w == needle))
    }
}

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("the directory can be listed");
    entries
        .map(|e| std::fs::read(e.expect("an entry").path()).expect("a readable file"))
        .collect()
}

/// Sends `bytes` and returns everything that comes back until the other side closes.
pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await.expect("the port accepts");
        stream.write_all(bytes).await.expect("the request goes out");
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .await
            .expect("the answer comes back");
        answer
    };
    tokio::time::timeout(WATCHDOG, talk)
        .await
        .expect("the other side closes")
}

/// Reads until `needle` has arrived; returns everything so far.
pub async fn read_until(stream: &mut TcpStream, needle: &str) -> String {
    let read = async {
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&all).into_owned();
            if text.contains(needle) {
                return text;
            }
            let count = stream
                .read(&mut piece)
                .await
                .expect("the stream can be read");
            assert!(count > 0, "the stream ended before {needle:?}: {text}");
            all.extend_from_slice(&piece[..count]);
        }
    };
    tokio::time::timeout(WATCHDOG, read)
        .await
        .expect("the text arrives")
}
