//! MCP over real HTTP in both protocol eras, its defences, and the same tools in band.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{AgentId, AgentIdentity};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{InBand, serve};
use crate::bus::{AgentPort, BusServer, Unrecorded};

const WATCHDOG: Duration = Duration::from_secs(30);

async fn in_time<T>(act: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, act).await.expect("watchdog")
}

struct Pair {
    model: AgentPort,
    other: AgentPort,
    _dir: tempfile::TempDir,
}

/// Two agents of one user who may do anything with each other.
fn pair() -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let bus = BusServer::start(Arc::new(Unrecorded));
    let attach = |name: &str| {
        let all = || vec![NamePattern::parse("#").unwrap()];
        let rules = IpcRules {
            send: all(),
            request: all(),
            publish: all(),
            subscribe: all(),
            shared_memory: true,
        };
        let identity = AgentIdentity {
            id: AgentId::new(),
            name: name.into(),
            uid: 1000,
            short: 1,
        };
        bus.attach(
            identity,
            rules,
            UnixListener::bind(dir.path().join(name)).unwrap(),
        )
        .unwrap()
    };
    let (model, other) = (attach("model"), attach("other"));
    Pair {
        model,
        other,
        _dir: dir,
    }
}

struct Http {
    address: std::net::SocketAddr,
    cancel: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The JSON-RPC message, be it plain JSON or the data of an event stream.
    fn json(&self) -> Value {
        let text = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .find(|data| data.starts_with('{'));
        let text = text.unwrap_or(&self.body);
        serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl Http {
    async fn start(port: AgentPort) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let server = tokio::spawn(serve(listener, port, cancel.clone()));
        Self {
            address,
            cancel,
            server,
        }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let body = body.to_string();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        let given = |name: &str| headers.iter().any(|(key, _)| *key == name);
        if !given("Host") {
            request += &format!("Host: {}\r\n", self.address);
        }
        request +=
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
        for (key, value) in headers {
            request += &format!("{key}: {value}\r\n");
        }
        request += "\r\n";
        request += &body;
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        in_time(stream.read_to_end(&mut raw)).await.unwrap();
        let text = String::from_utf8(raw).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        let body = if chunked {
            dechunk(body)
        } else {
            body.to_owned()
        };
        Answer {
            status,
            head: head.to_owned(),
            body,
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        in_time(self.server).await.unwrap().unwrap();
    }
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        out += &rest[..size];
        body = &rest[size + 2..];
    }
    out
}

fn rpc(id: u32, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn initialize() -> Value {
    rpc(
        1,
        "initialize",
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}),
    )
}

fn tool(id: u32, name: &str, arguments: Value) -> Value {
    rpc(
        id,
        "tools/call",
        json!({"name": name, "arguments": arguments}),
    )
}

#[tokio::test]
async fn a_session_of_the_older_era_lists_and_calls_tools() {
    let pair = pair();
    let http = Http::start(pair.model.clone()).await;
    let opened = http.post("/mcp", &[], &initialize()).await;
    assert_eq!(opened.status, 200, "{}", opened.body);
    assert_eq!(opened.json()["result"]["protocolVersion"], "2025-11-25");
    assert_eq!(opened.json()["result"]["serverInfo"]["name"], "agentd");
    let session = opened
        .header("mcp-session-id")
        .expect("a session id")
        .to_owned();
    let headers = [
        ("Mcp-Session-Id", session.as_str()),
        ("MCP-Protocol-Version", "2025-11-25"),
    ];
    let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(http.post("/mcp", &headers, &ready).await.status, 202);
    let listed = http
        .post("/mcp", &headers, &rpc(2, "tools/list", json!({})))
        .await
        .json();
    let names: Vec<_> = listed["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].clone())
        .collect();
    assert_eq!(names, ["agents", "send", "request", "inbox", "publish"]);
    let sent = http
        .post(
            "/mcp",
            &headers,
            &tool(3, "send", json!({"to": "other", "message": {"n": 1}})),
        )
        .await
        .json();
    assert_eq!(sent["result"]["isError"], false, "{sent}");
    let inbox = pair.other.inbox(1, Duration::ZERO).await.unwrap();
    assert_eq!(
        (
            inbox.messages[0].from.as_str(),
            inbox.messages[0].payload.as_slice()
        ),
        ("model", &b"{\"n\":1}"[..])
    );
    http.stop().await;
}

#[tokio::test]
async fn the_stateless_era_discovers_and_calls_without_a_session() {
    let pair = pair();
    let http = Http::start(pair.model.clone()).await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    });
    let with_meta = |id, method: &str, mut params: Value| {
        params["_meta"] = meta.clone();
        rpc(id, method, params)
    };
    let version = ("MCP-Protocol-Version", "2026-07-28");
    let discover = with_meta(1, "server/discover", json!({}));
    let found = http
        .post(
            "/mcp",
            &[version, ("Mcp-Method", "server/discover")],
            &discover,
        )
        .await;
    assert_eq!(found.status, 200, "{}", found.body);
    assert_eq!(found.header("mcp-session-id"), None);
    let versions = found.json()["result"]["supportedVersions"].clone();
    assert!(
        versions.as_array().unwrap().contains(&json!("2026-07-28")),
        "{versions}"
    );
    assert!(
        versions.as_array().unwrap().contains(&json!("2025-11-25")),
        "{versions}"
    );
    let call = with_meta(2, "tools/call", json!({"name": "agents", "arguments": {}}));
    let headers = [
        version,
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "agents"),
    ];
    let listed = http.post("/mcp", &headers, &call).await.json();
    assert_eq!(listed["result"]["structuredContent"]["you"], "model");
    assert_eq!(
        listed["result"]["structuredContent"]["agents"][0]["name"],
        "other"
    );
    assert_eq!(listed["result"]["resultType"], "complete");
    http.stop().await;
}

#[tokio::test]
async fn foreign_origins_hosts_paths_and_floods_of_sessions_are_refused() {
    let pair = pair();
    let http = Http::start(pair.model.clone()).await;
    for origin in ["https://evil.example", "http://127.0.0.1:8765", "null"] {
        assert_eq!(
            http.post("/mcp", &[("Origin", origin)], &initialize())
                .await
                .status,
            403,
            "{origin}"
        );
    }
    assert_eq!(
        http.post("/mcp", &[("Host", "rebound.example")], &initialize())
            .await
            .status,
        403
    );
    assert_eq!(http.post("/", &[], &initialize()).await.status, 404);
    let large = tool(
        1,
        "send",
        json!({"to": "other", "message": "x".repeat(5 << 20)}),
    );
    let headers = [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "send"),
    ];
    assert_eq!(http.post("/mcp", &headers, &large).await.status, 413);
    let mut statuses = Vec::new();
    for _ in 0..33 {
        statuses.push(http.post("/mcp", &[], &initialize()).await.status);
    }
    assert_eq!(statuses[..32], [200; 32]);
    assert_eq!(statuses[32], 503);
    http.stop().await;
}

#[tokio::test]
async fn in_band_calls_reach_the_bus_and_come_back() {
    let pair = pair();
    let server = InBand::new(pair.model.clone());
    let opened = server.handle(initialize()).await.unwrap();
    assert_eq!(
        (&opened["id"], &opened["result"]["protocolVersion"]),
        (&json!(1), &json!("2025-11-25"))
    );
    assert_eq!(
        server
            .handle(json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await,
        None
    );
    let listed = server
        .handle(rpc(2, "tools/list", json!({})))
        .await
        .unwrap();
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 5);
    let mut requests = pair.other.serve_requests(1).unwrap();
    let asking = tokio::spawn({
        let server = server.clone();
        async move {
            server
                .handle(tool(
                    3,
                    "request",
                    json!({"to": "other", "message": "fix it"}),
                ))
                .await
        }
    });
    let request = in_time(requests.next()).await.unwrap();
    assert_eq!(
        (request.from.as_str(), request.payload.as_slice()),
        ("model", &b"fix it"[..])
    );
    // A slow call holds up no other.
    let agents = server.handle(tool(4, "agents", json!({}))).await.unwrap();
    assert_eq!(
        agents["result"]["structuredContent"]["agents"][0]["serving"],
        true
    );
    request.respond(Ok(b"done".to_vec())).await.unwrap();
    let answer = in_time(asking).await.unwrap().unwrap();
    assert_eq!(
        answer["result"]["structuredContent"],
        json!({"from": "other", "answer": "done"})
    );
}

#[tokio::test]
async fn a_request_from_the_inbox_is_answered_by_send() {
    let pair = pair();
    let server = InBand::new(pair.model.clone());
    let asking = tokio::spawn({
        let other = pair.other.clone();
        async move { other.request("model", "review", "the diff", WATCHDOG).await }
    });
    let read = in_time(server.handle(tool(
        1,
        "inbox",
        json!({"wait_seconds": 20, "topics": ["build.#"]}),
    )))
    .await;
    let message = read.unwrap()["result"]["structuredContent"]["messages"][0].clone();
    assert_eq!(
        (&message["from"], &message["method"], &message["message"]),
        (&json!("other"), &json!("review"), &json!("the diff"))
    );
    let reply = json!({"in_reply_to": message["request_id"], "message": "fine"});
    let sent = server.handle(tool(2, "send", reply.clone())).await.unwrap();
    assert_eq!(sent["result"]["isError"], false, "{sent}");
    assert_eq!(in_time(asking).await.unwrap().unwrap().payload, b"fine");
    let again = server.handle(tool(3, "send", reply)).await.unwrap();
    assert_eq!(again["result"]["isError"], true);
    assert_eq!(
        pair.other
            .publish("build.done", "ok", "green")
            .await
            .unwrap(),
        1,
        "the inbox call followed build.#"
    );
}

#[tokio::test]
async fn errors_say_what_would_have_worked() {
    let pair = pair();
    let server = InBand::new(pair.model.clone());
    let mut id = 10;
    let mut failed = async |name: &str, arguments: Value| {
        id += 1;
        let answer = server.handle(tool(id, name, arguments)).await.unwrap();
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        answer["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let text = failed("send", json!({"to": "otter", "message": "x"})).await;
    assert!(
        text.contains("no agent called \"otter\"") && text.contains("There are: other."),
        "{text}"
    );
    let text = failed("send", json!({"to": "other", "text": "x"})).await;
    assert!(
        text.contains("unknown field `text`") && text.contains("`message`"),
        "{text}"
    );
    let text = failed("send", json!({"message": "x"})).await;
    assert!(text.contains("`to` is missing"), "{text}");
    let text = failed(
        "request",
        json!({"to": "other", "message": "x", "timeout_seconds": 9999}),
    )
    .await;
    assert!(text.contains("allowed are 1 to 3600"), "{text}");
    let text = failed("publish", json!({"topic": "a..b", "message": "x"})).await;
    assert!(text.contains("empty word"), "{text}");
    let text = failed(
        "request",
        json!({"to": "other", "message": "x", "timeout_seconds": 1}),
    )
    .await;
    assert!(
        text.contains("deadline passed") && text.contains("longer timeout_seconds"),
        "{text}"
    );
    let unknown = server.handle(tool(1, "sing", json!({}))).await.unwrap();
    assert_eq!(unknown["error"]["code"], -32602);
    assert!(
        unknown["error"]["message"]
            .as_str()
            .unwrap()
            .contains("agents, send, request, inbox, publish")
    );
}

#[tokio::test]
async fn malformed_messages_get_an_error_or_nothing_but_never_hang() {
    let pair = pair();
    let server = InBand::new(pair.model.clone());
    assert_eq!(
        in_time(server.handle(json!({"jsonrpc": "2.0", "id": 1, "method": 5})))
            .await
            .unwrap()["error"]["code"],
        -32600
    );
    for silent in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"jsonrpc": "2.0", "method": "notifications/unheard"}),
    ] {
        assert_eq!(in_time(server.handle(silent)).await, None);
    }
    let unknown = in_time(server.handle(rpc(2, "no/such", json!({}))))
        .await
        .unwrap();
    assert_eq!(unknown["error"]["code"], -32601, "{unknown}");
}

#[tokio::test]
async fn a_cancelled_call_withdraws_its_request() {
    let pair = pair();
    let server = InBand::new(pair.model.clone());
    let mut requests = pair.other.serve_requests(1).unwrap();
    let asking = tokio::spawn({
        let server = server.clone();
        async move {
            server
                .handle(tool(7, "request", json!({"to": "other", "message": "x"})))
                .await
        }
    });
    let request = in_time(requests.next()).await.unwrap();
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    assert_eq!(server.handle(cancel).await, None);
    in_time(request.cancelled()).await;
    let answer = in_time(asking).await.unwrap().unwrap();
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(7), &json!(-32800))
    );
}
