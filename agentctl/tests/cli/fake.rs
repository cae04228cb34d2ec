//! A daemon that speaks the real API and runs scripts in place of sandboxes.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentd_api::attach::MAX_FRAME;
use agentd_api::*;
use zbus::OwnedObjectPath;

/// Long enough for any machine; a test that needs it has failed.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// The daemon; it serves until the test ends.
pub struct FakeDaemon {
    pub dir: tempfile::TempDir,
    pub seen: Arc<Mutex<Seen>>,
}

/// What the daemon was asked.
#[derive(Default)]
pub struct Seen {
    pub launches: Vec<LaunchSpec>,
    pub grants: Vec<(PathBuf, agentd_kernel::grant::Access)>,
    pub calls: Vec<String>,
}

impl FakeDaemon {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let listener = bind(dir.path());
        let for_thread = Arc::clone(&seen);
        std::thread::spawn(move || serve_for_ever(listener, for_thread));
        Self { dir, seen }
    }

    /// agentctl aimed at this daemon, in an empty directory, with a bare environment.
    pub fn agentctl(&self, args: &[&str]) -> Command {
        let mut command = agentctl();
        command.env("AGENTD_RUNTIME_DIR", self.dir.path());
        command.args(args);
        command
    }

    pub fn last_launch(&self) -> LaunchSpec {
        let seen = self.seen.lock().expect("no panic in the daemon");
        seen.launches
            .last()
            .expect("something was launched")
            .clone()
    }
}

pub fn bind(dir: &Path) -> UnixListener {
    let listener = UnixListener::bind(dir.join(CONTROL_SOCKET)).expect("bind");
    listener.set_nonblocking(true).expect("non-blocking");
    listener
}

pub fn serve_for_ever(listener: UnixListener, seen: Arc<Mutex<Seen>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(serve(listener, seen));
}

/// agentctl with an environment that says nothing.
pub fn agentctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentctl"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

async fn serve(listener: UnixListener, seen: Arc<Mutex<Seen>>) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("register");
    let mut connections = Vec::new();
    let guid = zbus::Guid::generate();
    while let Ok((stream, _)) = listener.accept().await {
        let stream = stream.into_std().expect("a plain socket");
        let connection = zbus::connection::Builder::unix_stream(stream)
            .server(guid.clone())
            .p2p()
            .serve_at(
                MANAGER_PATH,
                FakeManager {
                    seen: Arc::clone(&seen),
                },
            )
            .serve_at(
                agent_id().object_path(),
                FakeAgent {
                    seen: Arc::clone(&seen),
                },
            )
            .build()
            .await;
        // A client that went away in the middle is part of the tests.
        connections.extend(connection);
    }
}

pub fn agent_id() -> AgentId {
    "0198c0de-1111-7222-8333-4444feedbeef"
        .parse()
        .expect("valid")
}

struct FakeManager {
    seen: Arc<Mutex<Seen>>,
}

#[zbus::interface(name = "org.agentd1.Manager")]
impl FakeManager {
    async fn launch(
        &self,
        spec: LaunchSpec,
        grants: Vec<zbus::OwnedFd>,
    ) -> Result<LaunchReply, Error> {
        for grant in grants {
            let grant = agentd_kernel::grant::receive(grant.into()).expect("a whole grant");
            let mut seen = self.seen.lock().expect("no panic before");
            seen.grants.push((grant.dst, grant.access));
        }
        self.seen
            .lock()
            .expect("no panic before")
            .launches
            .push(spec.clone());
        let text = || "because the test says so".to_owned();
        match spec.argv[0].as_str() {
            "denied" => return Err(Error::Denied(text())),
            "refused" => return Err(Error::LaunchRefused(text())),
            "no-such-program" => return Err(Error::ProgramNotFound(text())),
            "not-executable" => return Err(Error::ProgramNotExecutable(text())),
            "daemon-fault" => return Err(Error::Internal(text())),
            _ => {}
        }
        let (ours, theirs) = agentd_kernel::fdpass::seqpacket_pair().expect("socketpair");
        std::thread::spawn(move || Program { socket: ours }.run(&spec));
        Ok(LaunchReply {
            id: agent_id(),
            name: "bob".to_owned(),
            path: agent_id().object_path().try_into().expect("valid"),
            attach: Some(theirs.into()),
            layers: Some(vec!["seccomp".to_owned()]),
            degradations: None,
        })
    }

    async fn agents(&self) -> Result<Vec<AgentSummary>, Error> {
        let agent = AgentSummary {
            id: agent_id(),
            name: "bob".to_owned(),
            uid: 1000,
            state: AgentState::Running,
            policy: "coding".to_owned(),
            driver: None,
            pid: Some(4711),
            workspace: Some("/home/alice/src".to_owned()),
            argv: vec![
                "sh".to_owned(),
                "-c".to_owned(),
                "sleep 1\x1b[2J".to_owned(),
            ],
            started_at_ms: 1,
            ended_at_ms: None,
            input_tokens: 12_000,
            output_tokens: 345,
            cost_nano_usd: Some(41_175_000),
            exit_cause: None,
            exit_code: None,
        };
        let ended = AgentSummary {
            name: "eve".to_owned(),
            state: AgentState::Exited,
            pid: None,
            started_at_ms: 0,
            ended_at_ms: Some(2),
            exit_cause: Some(ExitCause::Exited),
            exit_code: Some(3),
            ..agent.clone()
        };
        Ok(vec![ended, agent])
    }

    async fn find(&self, name_or_id: &str) -> Result<OwnedObjectPath, Error> {
        if name_or_id == "bob" || agent_id().is_meant_by(name_or_id) {
            return Ok(agent_id().object_path().try_into().expect("valid"));
        }
        Err(Error::NotFound(format!(
            "no agent of yours is called {name_or_id:?}"
        )))
    }

    async fn record(&self, name_or_id: &str) -> Result<String, Error> {
        match name_or_id {
            "bob" => Ok(RECORD.to_owned()),
            other => Err(Error::NotFound(format!(
                "nothing is on record for {other:?}"
            ))),
        }
    }

    async fn records(&self) -> Result<String, Error> {
        Ok(format!("[{RECORD},{RECORD}]"))
    }

    async fn kernel_plane(&self) -> Result<Vec<PlaneGroup>, Error> {
        let group = |group: &str, why_not: &str| PlaneGroup {
            group: group.to_owned(),
            why_not: why_not.to_owned(),
        };
        Ok(vec![
            group("net", ""),
            group("sched", "sched_switch: the verifier says no"),
        ])
    }

    async fn ping(&self) -> Result<DaemonInfo, Error> {
        Ok(DaemonInfo {
            version: "9.9.9".to_owned(),
            api_version: API_VERSION,
            mode: DaemonMode::User,
            pid: 42,
            uid: 1000,
            agents: 1,
            runtime_dir: Some("/run/user/1000/agentd".to_owned()),
            state_dir: None,
            started_at_ms: None,
            bus_gateway: None,
        })
    }
}

struct FakeAgent {
    seen: Arc<Mutex<Seen>>,
}

impl FakeAgent {
    fn note(&self, call: String) {
        self.seen.lock().expect("no panic before").calls.push(call);
    }
}

#[zbus::interface(name = "org.agentd1.Agent")]
impl FakeAgent {
    async fn attach(&self, options: AttachOptions) -> Result<zbus::OwnedFd, Error> {
        self.note(format!("attach stdin={:?}", options.stdin));
        let (ours, theirs) = agentd_kernel::fdpass::seqpacket_pair().expect("socketpair");
        let spec = LaunchSpec::new(vec!["cat".to_owned()]);
        std::thread::spawn(move || Program { socket: ours }.run(&spec));
        Ok(theirs.into())
    }

    async fn stop(&self, grace_ms: u32) -> Result<(), Error> {
        self.note(format!("stop {grace_ms}"));
        if grace_ms == 1 {
            return Err(Error::Unavailable("it has already ended".to_owned()));
        }
        Ok(())
    }

    async fn kill(&self) -> Result<(), Error> {
        Err(Error::Denied("it belongs to uid 0".to_owned()))
    }

    async fn revoke(&self, rights: Vec<Revocable>) -> Result<Restrictions, Error> {
        self.note(format!("revoke {rights:?}"));
        if rights.contains(&Revocable::Exec) {
            return Err(Error::Unavailable("no BPF LSM here".to_owned()));
        }
        Ok(Restrictions {
            revoked: rights.into_iter().map(|right| (right, (1000, 7))).collect(),
            shut: Some(1),
            ..Restrictions::default()
        })
    }

    async fn tighten(&self, spec: TightenSpec) -> Result<Restrictions, Error> {
        let set = spec.settings.unwrap_or_default();
        let (policy, text) = (spec.policy, spec.policy_text);
        self.note(format!("tighten {policy:?} {text:?} {set:?}"));
        if let Some((key, _)) = set.iter().find(|(key, _)| key == "fs.write") {
            return Err(Error::InvalidPolicy(format!("--set {key}: not changed")));
        }
        let unchanged = ("fs.write".into(), "f.toml:2".into(), "revoke write".into());
        Ok(Restrictions {
            tightened: Some(vec![("f".into(), (1000, 7))]),
            closed: Some(2),
            unchanged: text.map(|_| vec![unchanged]),
            ..Restrictions::default()
        })
    }

    async fn restore(&self, rights: Vec<Revocable>) -> Result<Restrictions, Error> {
        self.note(format!("restore {rights:?}"));
        Ok(Restrictions::default())
    }

    async fn freeze(&self) -> Result<Restrictions, Error> {
        self.note("freeze".to_owned());
        Ok(Restrictions {
            frozen: Some((1000, 7)),
            ..Restrictions::default()
        })
    }

    async fn thaw(&self) -> Result<Restrictions, Error> {
        Err(Error::Denied("uid 0 took it".to_owned()))
    }

    async fn signal(&self, signo: i32) -> Result<(), Error> {
        self.note(format!("signal {signo}"));
        Ok(())
    }

    async fn logs(&self, options: LogOptions) -> Result<zbus::OwnedFd, Error> {
        let (reader, writer) = std::io::pipe().expect("pipe");
        let text = format!("tail={:?}\nfollow={:?}\n", options.tail, options.follow);
        std::io::Write::write_all(&mut &writer, text.as_bytes()).expect("fits");
        Ok(OwnedFd::from(reader).into())
    }

    async fn wait(&self) -> Result<ExitInfo, Error> {
        Ok(ExitInfo::from_wait_status(9).because(ExitCause::TimedOut, "1s"))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn stdio(&self) -> String {
        "pipes".to_owned()
    }
}

/// The end of an attach socket that a daemon has, and a script for it.
struct Program {
    socket: OwnedFd,
}

impl Program {
    fn send(&self, frame: &AttachFrame<'_>) -> bool {
        let flags = rustix::net::SendFlags::NOSIGNAL;
        rustix::net::send(&self.socket, &frame.to_vec(), flags).is_ok()
    }

    fn say(&self, text: &str) -> bool {
        self.send(&AttachFrame::Stdout(text.as_bytes()))
    }

    fn exit(&self, code: i32) {
        self.send(&AttachFrame::Exit(Box::new(ExitInfo::from_wait_status(
            code << 8,
        ))));
    }

    /// Hands each frame to `act` until it says stop or the client is gone.
    fn each(&self, mut act: impl FnMut(&AttachFrame<'_>) -> bool) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let flags = rustix::net::RecvFlags::empty();
            match rustix::net::recv(&self.socket, &mut buffer[..], flags) {
                Ok((_, length)) if length > 0 => {
                    let frame = AttachFrame::decode(&buffer[..length]).expect("a frame");
                    if !act(&frame) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    fn run(self, spec: &LaunchSpec) {
        let number = |i: usize| spec.argv[i].parse::<i32>().expect("a number");
        match spec.argv[0].as_str() {
            "exit" => self.exit(number(1)),
            "greets" => {
                self.say("hello\r\n");
                self.each(|frame| match frame {
                    AttachFrame::Stdin(bytes) => self.send(&AttachFrame::Stdout(bytes)),
                    _ => true,
                });
            }
            "cat" => self.each(|frame| match frame {
                AttachFrame::Stdin(bytes) => self.send(&AttachFrame::Stdout(bytes)),
                AttachFrame::StdinEof => {
                    self.exit(0);
                    false
                }
                _ => true,
            }),
            "count" => {
                let mut piece = Vec::new();
                for i in 0..number(1) {
                    piece.extend_from_slice(format!("{i}\n").as_bytes());
                    if piece.len() > 32_000 {
                        self.send(&AttachFrame::Stdout(&piece));
                        piece.clear();
                    }
                }
                self.send(&AttachFrame::Stdout(&piece));
                self.exit(0);
            }
            "both" => {
                self.say("one\n");
                self.send(&AttachFrame::Stderr(b"two\n"));
                self.say("three\n");
                self.exit(0);
            }
            "pipe-victim" => {
                self.each(|frame| match frame {
                    AttachFrame::Signal(signo) => {
                        let info = ExitInfo::from_wait_status(*signo);
                        self.send(&AttachFrame::Exit(Box::new(info)));
                        false
                    }
                    _ => self.say("more\n"),
                });
            }
            "signals" => {
                self.say("ready\n");
                self.each(|frame| match frame {
                    AttachFrame::Signal(libc::SIGTERM) => {
                        let info = ExitInfo::from_wait_status(libc::SIGTERM);
                        self.send(&AttachFrame::Exit(Box::new(info)));
                        false
                    }
                    AttachFrame::Signal(signo) => self.say(&format!("signal {signo}\n")),
                    _ => true,
                });
            }
            "sizes" => {
                self.each(|frame| match frame {
                    AttachFrame::Resize { rows, cols } => self.say(&format!("{rows}x{cols}\r\n")),
                    AttachFrame::Stdin(b"q") => {
                        self.exit(0);
                        false
                    }
                    _ => true,
                });
            }
            "stops" => {
                self.say("stopping\r\n");
                self.send(&AttachFrame::Stopped(libc::SIGTSTP));
                self.each(|frame| match frame {
                    AttachFrame::Signal(libc::SIGCONT) => {
                        self.send(&AttachFrame::Continued);
                        self.say("continued\r\n");
                        self.exit(0);
                        false
                    }
                    _ => true,
                });
            }
            "messy" => {
                self.say("\x1b[?1049h\x1b[?25l\x1b[?1000h");
                let info = ExitInfo::from_wait_status(9).because(ExitCause::TimedOut, "1s is over");
                self.send(&AttachFrame::Exit(Box::new(info)));
            }
            "times-out" => {
                let info = ExitInfo::from_wait_status(9).because(ExitCause::TimedOut, "1s is over");
                self.send(&AttachFrame::Exit(Box::new(info)));
            }
            "exec-fails" => {
                let info = ExitInfo::new(ExitCause::NotFound).because(ExitCause::NotFound, "gone");
                self.send(&AttachFrame::Exit(Box::new(info)));
            }
            "loses-output" => {
                self.send(&AttachFrame::Lost(77));
                self.exit(0);
            }
            "vanishes" => {
                self.say("then ");
            }
            "talks-nonsense" => {
                rustix::net::send(&self.socket, b"?", rustix::net::SendFlags::empty())
                    .expect("send");
                self.each(|_| true);
            }
            "refuses-input" => {
                // Ends without reading: the client's input is still in the queue then.
                self.say("enough\n");
                self.exit(5);
                self.each(|_| false);
            }
            other => panic!("no script is called {other:?}"),
        }
    }
}

const RECORD: &str = r#"{"schema":1,"id":"0198c0de-1111-7222-8333-4444feedbeef","name":"bob","uid":1000,
"policy":"coding","policy_hash":"abcdef0123456789","argv":["claude","-p","fix it"],"workspace":"/w",
"driver":"claude","mode":"root","kernel":"6.1.0","details":null,"state":"exited","started_at_ms":1795258387123,
"ready_at_ms":1795258387130,"ended_at_ms":1795258400000,"pid":77,"host_uid":2046820353,
"layers":["user-ns","seccomp"],"landlock_abi":4,"degradations":[{"property":"cgroup-limits","why":"no delegation"}],
"failure":null,"exit":{"kind":"exited","code":0,"signal":null,"cause":"program ended",
"resources":{"user_us":1500,"system_us":20,"max_rss_kib":2048,"memory_peak_bytes":null,
"scheduled":{"run_ns":1520000,"wait_ns":90000,"wait_p99_ns":8191,"io_ns":0,"voluntary":1200,"involuntary":34,"migrations":5},
"counted":{"packets_in":40,"packets_out":2000,"bytes_in":4096,"bytes_out":1048576,"refused":7,"untold":1}}},
"tokens":{"requests":2,"input":1200,"output":34,"cache_read":0,"cache_write":0,"aborted":0,"cost_nano_usd":4110000},
"usage":[{"seq":3,"at_ms":1795258388000,"source":"gateway","provider":"anthropic","model":"claude-x",
"request_id":null,"input":1200,"output":34,"cache_read":0,"cache_write":0,"aborted":true,"estimated":false,"cost_nano_usd":4110000}],
"messages":[{"seq":4,"at_ms":1795258389000,"id":"1","from":"bob","to":"eve","to_launch":null,"kind":"request",
"subject":"review","correlation":null,"bytes":2048,"outcome":"delivered"}],
"denials":[{"seq":5,"at_ms":1795258390000,"layer":"egress","what":"connect","target":"evil.example:443",
"rule":"default","origin":null}],"approvals":[],
"timeline":[{"seq":1,"at_ms":1795258387123,"kind":"launch","text":"claude -p 'fix it'"},
{"seq":5,"at_ms":1795258390000,"kind":"denial","text":"egress: connect evil.example:443"}]}"#;
