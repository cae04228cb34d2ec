//! The egress proxy between a raw socket (the agent) and servers on this machine (the network).
//!
//! Loopback stands for the network, so rules that are to let something through say `private`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentd::egress::{EgressContext, EgressCounters, Resolve, serve};
use agentd_sandbox::rules::egress::{EgressRule, HostPattern};
use agentd_sandbox::{EgressRules, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lab::{Record, WATCHDOG, exchange, read_until};

fn rule(host: HostPattern, port: u16, private: bool) -> EgressRule {
    EgressRule {
        text: "as written".into(),
        host,
        port: Some(port),
        private,
        origin: Origin::new("coding.toml", 7),
    }
}

fn exact(name: &str) -> HostPattern {
    HostPattern::Exact(name.into())
}

/// Says the first address once and the second ever after, as a rebinding name server does.
#[derive(Debug)]
struct Rebinding {
    answers: [Vec<IpAddr>; 2],
    asked: AtomicUsize,
}

impl Rebinding {
    fn new(first: &[&str], then: &[&str]) -> Arc<Self> {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        Arc::new(Self {
            answers: [parse(first), parse(then)],
            asked: AtomicUsize::new(0),
        })
    }
}

impl Resolve for Rebinding {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send + 'a>> {
        assert!(!host.is_empty());
        let nth = self.asked.fetch_add(1, Ordering::Relaxed).min(1);
        Box::pin(async move { Ok(self.answers[nth].clone()) })
    }
}

struct Lab {
    record: Record,
    addr: SocketAddr,
    counters: Arc<EgressCounters>,
    cancel: CancellationToken,
    serving: JoinHandle<()>,
}

impl Lab {
    async fn start(rules: Vec<EgressRule>) -> Self {
        Self::with(rules, |context| context).await
    }

    async fn with(
        rules: Vec<EgressRule>,
        change: impl FnOnce(EgressContext) -> EgressContext,
    ) -> Self {
        let record = Record::new().await;
        let rules = EgressRules {
            enabled: true,
            rules,
            ..EgressRules::default()
        };
        let context = change(EgressContext::new(
            record.identity.clone(),
            rules,
            record.store.clone(),
        ));
        let counters = context.counters();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Arc::new(context), cancel.clone()));
        Self {
            record,
            addr,
            counters,
            cancel,
            serving,
        }
    }

    async fn connect(&self, target: &str) -> (TcpStream, String) {
        let mut agent = TcpStream::connect(self.addr).await.unwrap();
        let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        agent.write_all(head.as_bytes()).await.unwrap();
        let head = read_until(&mut agent, "\r\n\r\n").await;
        (agent, head)
    }

    /// The answer to a CONNECT that is refused.
    async fn refused(&self, target: &str) -> String {
        let head =
            format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
        let answer = exchange(self.addr, head.as_bytes()).await;
        String::from_utf8(answer).unwrap()
    }

    async fn stop(mut self) -> Record {
        self.cancel.cancel();
        tokio::time::timeout(WATCHDOG, &mut self.serving)
            .await
            .expect("the proxy ends")
            .expect("and not by a panic");
        self.record
    }
}

/// A server that sends back what it gets, in capitals, until the end of its input, and then `BYE`.
async fn shouting(addr: &str) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    stream
                        .write_all(&piece[..count].to_ascii_uppercase())
                        .await
                        .unwrap();
                }
                stream.write_all(b"BYE").await.unwrap();
            });
        }
    });
    addr
}

/// A web server that answers each request with its own head, and counts connections.
async fn echoing_web() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let head = read_until(&mut stream, "\r\n\r\n").await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nproxy-authenticate: x\r\ncontent-length: {}\r\n\r\n{head}",
                    head.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    (addr, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_an_allowed_host_carries_bytes_both_ways_and_half_closes() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let server = shouting(bind).await;
        let lab = Lab::start(vec![rule(
            exact(&server.ip().to_string()),
            server.port(),
            true,
        )])
        .await;
        let (mut agent, head) = lab.connect(&server.to_string()).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        agent.write_all(b"hello").await.unwrap();
        assert_eq!(read_until(&mut agent, "HELLO").await, "HELLO");
        agent.shutdown().await.unwrap();
        assert_eq!(read_until(&mut agent, "BYE").await, "BYE");
        let counters = lab.counters.clone();
        lab.stop().await;
        let seen = counters.snapshot();
        assert_eq!(
            (
                seen.sent_bytes,
                seen.received_bytes,
                seen.connections,
                seen.open
            ),
            (5, 8, 1, 0)
        );
    }
}

/// A TLS 1.2 ClientHello that names a server.
fn client_hello(name: &str) -> Vec<u8> {
    let counted = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap();
        [&length.to_be_bytes()[..], bytes].concat()
    };
    let entry = [&[0][..], &counted(name.as_bytes())].concat();
    let extension = [&[0, 0][..], &counted(&counted(&entry))].concat();
    let fixed = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
    let body = [&fixed[..], &counted(&extension)].concat();
    let message = [&[1, 0][..], &counted(&body)].concat();
    [&[22, 3, 1][..], &counted(&message)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_carries_tls_with_no_other_host_than_its_own_or_an_allowed_one() {
    let server = shouting("127.0.0.1:0").await;
    let port = server.port();
    let resolver = Rebinding::new(&["127.0.0.1"], &["127.0.0.1"]);
    let rules = ["front.example", "also.example"].map(|name| rule(exact(name), port, true));
    let lab = Lab::with(rules.to_vec(), |c| c.with_resolver(resolver)).await;
    let front = format!("front.example:{port}");
    // Counted a moment after the server has it, so the counter itself is looked at when all have ended.
    let mut passed = 0;
    for name in ["front.example", "FRONT.example", "also.example"] {
        let (mut agent, _) = lab.connect(&front).await;
        let hello = client_hello(name);
        // In pieces: nothing is passed on before the name is clear.
        agent.write_all(&hello[..20]).await.unwrap();
        agent.write_all(&hello[20..]).await.unwrap();
        let mut answer = vec![0; hello.len()];
        agent.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, hello.to_ascii_uppercase(), "{name}");
        passed += hello.len() as u64;
    }
    for hello in [client_hello("other.example"), vec![22, 2, 0, 0, 0]] {
        let (mut agent, head) = lab.connect(&front).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        agent.write_all(&hello).await.unwrap();
        let mut rest = Vec::new();
        // An end or a reset, and no answer.
        agent.read_to_end(&mut rest).await.ok();
        assert_eq!(rest, b"");
    }
    let counters = lab.counters.clone();
    let record = lab.stop().await;
    let seen = counters.snapshot();
    assert_eq!((seen.sent_bytes, seen.denied), (passed, 2));
    let targets: Vec<String> = record
        .denials()
        .await
        .into_iter()
        .map(|d| d.target)
        .collect();
    assert_eq!(targets, [format!("other.example:{port}"), front]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_list_is_refused_with_the_line_to_add_and_recorded_once() {
    let lab = Lab::start(vec![rule(exact("packages.example"), 443, false)]).await;
    for _ in 0..3 {
        let answer = lab.refused("evil.example:443").await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(
            answer.contains("allow = [\"evil.example:443\"]"),
            "{answer}"
        );
        assert!(answer.contains("not in [net] allow"), "{answer}");
    }
    let wrong_port = lab.refused("packages.example:22").await;
    assert!(
        wrong_port.contains("coding.toml:7") && wrong_port.contains("443"),
        "{wrong_port}"
    );
    assert_eq!(lab.counters.snapshot().denied, 4);
    let record = lab.stop().await;
    let targets: Vec<String> = record
        .denials()
        .await
        .into_iter()
        .map(|d| d.target)
        .collect();
    assert_eq!(targets, ["evil.example:443", "packages.example:22"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_private_and_disguised_addresses_are_refused_even_when_the_host_is_allowed() {
    let any = rule(HostPattern::Any, 80, false);
    let lab = Lab::start(vec![any]).await;
    for target in [
        "169.254.169.254:80",
        "127.0.0.1:80",
        "10.0.0.1:80",
        "192.168.1.1:80",
        "0.0.0.0:80",
        "[::1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:7f00:1]:80",
        "[fe80::1]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "localhost:80",
    ] {
        let answer = lab.refused(target).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
        assert!(answer.contains("private = true"), "{target}: {answer}");
    }
    let record = lab.stop().await;
    let denials = record.denials().await;
    assert!(
        denials
            .iter()
            .all(|d| d.origin.as_deref() == Some("coding.toml:7")),
        "{denials:?}"
    );
    assert!(denials[0].rule.contains("metadata"), "{denials:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_spellings_of_an_address_are_not_addresses() {
    let lab = Lab::start(vec![rule(HostPattern::Any, 80, false)]).await;
    // Some resolvers take these for 127.0.0.1: wherever they lead, it must not be there.
    for target in [
        "2130706433:80",
        "0x7f000001:80",
        "0177.0.0.1:80",
        "127.1:80",
    ] {
        let answer = lab.refused(target).await;
        assert!(
            answer.starts_with("HTTP/1.1 403 ") || answer.starts_with("HTTP/1.1 502 "),
            "{target}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_inside_is_refused_whatever_it_said_before() {
    let server = shouting("127.0.0.1:0").await;
    let port = server.port();
    let resolver = Rebinding::new(&["198.51.100.1", "10.0.0.1"], &["127.0.0.1"]);
    let asked = resolver.clone();
    let lab = Lab::with(vec![rule(exact("rebind.example"), port, false)], |c| {
        c.with_resolver(resolver)
    })
    .await;
    let answer = lab.refused(&format!("rebind.example:{port}")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(
        asked.asked.load(Ordering::Relaxed),
        1,
        "a name is resolved once for each request"
    );
    let answer = lab.refused(&format!("rebind.example:{port}")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("127.0.0.1, a loopback address"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_goes_to_the_address_that_was_judged() {
    let server = shouting("127.0.0.1:0").await;
    let resolver = Rebinding::new(&["127.0.0.1"], &["192.0.2.1"]);
    let asked = resolver.clone();
    let port = server.port();
    let lab = Lab::with(vec![rule(exact("inside.example"), port, true)], |c| {
        c.with_resolver(resolver)
    })
    .await;
    let (mut agent, head) = lab.connect(&format!("inside.example:{port}")).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    agent.write_all(b"x").await.unwrap();
    read_until(&mut agent, "X").await;
    assert_eq!(asked.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_are_written_anew_with_the_host_of_their_address() {
    let (web, _) = echoing_web().await;
    let lab = Lab::start(vec![rule(exact("127.0.0.1"), web.port(), true)]).await;
    let request = format!(
        "GET http://{web}/a?b=c HTTP/1.1\r\nhost: other.example\r\nproxy-authorization: Basic secret\r\n\
         proxy-connection: keep-alive\r\nconnection: close, x-hop\r\nx-hop: 1\r\nx-kept: 1\r\n\r\n"
    );
    let answer = String::from_utf8(exchange(lab.addr, request.as_bytes()).await).unwrap();
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("proxy-authenticate"),
        "{answer}"
    );
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains(&format!("host: {web}")) && seen.contains("x-kept: 1"),
        "{seen}"
    );
    for gone in ["other.example", "secret", "proxy-connection", "x-hop"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_hidden_behind_another_is_judged_by_itself() {
    let (web, connections) = echoing_web().await;
    let lab = Lab::start(vec![rule(exact("127.0.0.1"), web.port(), true)]).await;
    // Two lengths: whoever believes the wrong one sees a second request inside the first.
    let smuggle = format!(
        "POST http://{web}/ HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         0\r\n\r\nGET http://169.254.169.254/ HTTP/1.1\r\nhost: h\r\n\r\n"
    );
    let answer = String::from_utf8(exchange(lab.addr, smuggle.as_bytes()).await).unwrap();
    assert!(!answer.contains("GET /"), "{answer}");
    // Pipelined openly, the second is refused by its own address.
    let pipelined = format!(
        "GET http://{web}/1 HTTP/1.1\r\nhost: h\r\n\r\nGET http://169.254.169.254/ HTTP/1.1\r\nhost: {web}\r\nconnection: close\r\n\r\n"
    );
    let answer = String::from_utf8(exchange(lab.addr, pipelined.as_bytes()).await).unwrap();
    assert!(
        answer.contains("GET /1 HTTP/1.1") && answer.contains("HTTP/1.1 403 "),
        "{answer}"
    );
    assert!(connections.load(Ordering::Relaxed) <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_refused_connect_opens_nothing() {
    let server = shouting("127.0.0.1:0").await;
    let lab = Lab::start(vec![rule(exact("127.0.0.1"), server.port(), true)]).await;
    let bytes = "CONNECT 10.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\nhello";
    let answer = String::from_utf8(exchange(lab.addr, bytes.as_bytes()).await).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && !answer.contains("HELLO"),
        "{answer}"
    );
    assert_eq!(lab.counters.snapshot().connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_foreign_requests_are_turned_away_with_a_word() {
    let lab = Lab::start(vec![rule(HostPattern::Any, 443, false)]).await;
    let long = format!(
        "GET http://e.org/ HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    for (bytes, status) in [
        (
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "GET https://e.org/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "GET ftp://e.org/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "GET http://u:p@e.org/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "CONNECT e.org HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "CONNECT u@e.org:443 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "CONNECT e.org:443:80 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "400",
        ),
        ("\x16\x03\x01 not http\r\n\r\n", "400"),
        (&long, "431"),
    ] {
        let answer = exchange(lab.addr, bytes.as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        let shown: String = bytes.chars().take(60).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown:?}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_the_end_of_the_agent_close_tunnels() {
    let server = shouting("127.0.0.1:0").await;
    let rules = || vec![rule(exact("127.0.0.1"), server.port(), true)];
    let lab = Lab::with(rules(), |c| c.with_idle_timeout(Duration::from_millis(50))).await;
    let (mut agent, _) = lab.connect(&server.to_string()).await;
    let mut rest = Vec::new();
    tokio::time::timeout(WATCHDOG, agent.read_to_end(&mut rest))
        .await
        .expect("a silent tunnel is closed")
        .unwrap();

    let lab = Lab::start(rules()).await;
    let (mut agent, _) = lab.connect(&server.to_string()).await;
    assert_eq!(lab.counters.snapshot().connections, 1);
    lab.stop().await;
    tokio::time::timeout(WATCHDOG, agent.read_to_end(&mut rest))
        .await
        .expect("the tunnel is closed")
        .unwrap();
}
