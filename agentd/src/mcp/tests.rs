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
    pair_with("#", "#")
}

/// The same, where the first may publish and subscribe to what these patterns cover only.
fn pair_with(publish: &str, subscribe: &str) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let bus = BusServer::start(Arc::new(Unrecorded));
    let attach = |name: &str, publish: &str, subscribe: &str| {
        let only = |pattern: &str| vec![NamePattern::parse(pattern).unwrap()];
        let rules = IpcRules {
            send: only("#"),
            request: only("#"),
            publish: only(publish),
            subscribe: only(subscribe),
            shared_memory: true,
            tightened: Vec::new(),
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
    let model = attach("model", publish, subscribe);
    let other = attach("other", "#", "#");
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
    assert_eq!(
        names,
        [
            "agents",
            "send",
            "request",
            "inbox",
            "publish",
            "queue_put",
            "queue_take",
            "queue_ack"
        ]
    );
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
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 8);
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
            .contains("agents, send, request, inbox, publish, queue_put, queue_take, queue_ack")
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

/// What a tool gave, over a session like a model's.
async fn structured(server: &InBand, id: u32, name: &str, arguments: Value) -> Value {
    let answer = in_time(server.handle(tool(id, name, arguments))).await;
    let result = answer.unwrap()["result"].clone();
    assert_eq!(result["isError"], false, "{name}: {result}");
    result["structuredContent"].clone()
}

#[tokio::test]
async fn a_model_puts_takes_and_settles_messages_of_a_queue() {
    let pair = pair();
    let (model, other) = (
        InBand::new(pair.model.clone()),
        InBand::new(pair.other.clone()),
    );
    let first = structured(
        &model,
        1,
        "queue_put",
        json!({"queue": "builds", "message": {"n": 1}}),
    );
    assert_eq!(first.await, json!({"queue": "builds", "id": 1}));
    let urgent = json!({"queue": "builds", "message": "now", "priority": 3});
    structured(&model, 2, "queue_put", urgent).await;
    let take = |id, max| {
        structured(
            &other,
            id,
            "queue_take",
            json!({"queue": "builds", "max": max}),
        )
    };
    let taken = take(3, 1).await["messages"].clone();
    assert_eq!(
        (
            &taken[0]["message"],
            &taken[0]["deliveries"],
            taken.as_array().unwrap().len()
        ),
        (&json!("now"), &json!(1), 1),
        "the urgent one first, and no more than was asked for"
    );
    // Given back, it is delivered again; done, it is not; and only who holds it can say so.
    let settle =
        |tag: &Value, outcome: &str| json!({"queue": "builds", "tags": [tag], "outcome": outcome});
    let said = structured(&other, 4, "queue_ack", settle(&taken[0]["tag"], "retry")).await;
    assert_eq!(said, json!({"settled": 1, "too_late": 0}));
    let late = structured(&other, 6, "queue_ack", settle(&taken[0]["tag"], "done")).await;
    assert_eq!(
        late,
        json!({"settled": 0, "too_late": 1}),
        "nobody holds it now"
    );
    let again = take(5, 10).await["messages"].clone();
    assert_eq!(
        (&again[0]["deliveries"], &again[1]["message"]),
        (&json!(2), &json!({"n": 1}))
    );
    let done = json!({"queue": "builds", "tags": [again[0]["tag"]]});
    assert_eq!(structured(&other, 7, "queue_ack", done).await["settled"], 1);
    structured(&other, 8, "queue_ack", settle(&again[1]["tag"], "reject")).await;
    assert_eq!(take(9, 10).await["messages"], json!([]));
}

#[tokio::test]
async fn queue_tools_keep_to_the_policy_and_say_what_is_allowed() {
    let pair = pair_with("queue.in", "queue.out");
    let server = InBand::new(pair.model.clone());
    let failed = async |id: u32, name: &str, arguments: Value| {
        let answer = in_time(server.handle(tool(id, name, arguments))).await;
        let answer = answer.unwrap();
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        let text = answer["result"]["content"][0]["text"].as_str();
        text.unwrap().to_owned()
    };
    structured(
        &server,
        1,
        "queue_put",
        json!({"queue": "in", "message": "x"}),
    )
    .await;
    structured(&server, 2, "queue_take", json!({"queue": "out"})).await;
    let text = failed(3, "queue_put", json!({"queue": "out", "message": "x"})).await;
    assert!(
        text.contains("denied") && text.contains("[ipc] publish list has to name queue.out"),
        "{text}"
    );
    let text = failed(4, "queue_take", json!({"queue": "in"})).await;
    assert!(
        text.contains("[ipc] subscribe list has to name queue.in"),
        "{text}"
    );
    let text = failed(5, "queue_take", json!({"queue": "other"})).await;
    assert!(
        text.contains("neither to produce to queue.other nor to consume from it"),
        "{text}"
    );
    let text = failed(6, "queue_take", json!({"queue": "out", "max": 33})).await;
    assert!(text.contains("allowed are 1 to 32"), "{text}");
    let text = failed(
        7,
        "queue_put",
        json!({"queue": "in", "message": "x", "priority": 4}),
    )
    .await;
    assert!(text.contains("allowed are 0 to 3"), "{text}");
    let text = failed(8, "queue_ack", json!({"queue": "out", "tags": ["first"]})).await;
    assert!(text.contains("\"first\" is no tag"), "{text}");
    let text = failed(9, "queue_ack", json!({"queue": "out", "tags": []})).await;
    assert!(text.contains("number of tags is 0"), "{text}");
    let extend = json!({"queue": "out", "tags": ["1"], "outcome": "extend"});
    assert!(
        failed(10, "queue_ack", extend)
            .await
            .contains("needs delay_seconds")
    );
    let gone = json!({"queue": "out", "tags": ["1"], "outcome": "lost"});
    assert!(
        failed(11, "queue_ack", gone)
            .await
            .contains("`done`, `retry`, `reject`, `extend`")
    );
    let empty = json!({"queue": "a..b", "message": "x"});
    assert!(failed(12, "queue_put", empty).await.contains("empty word"));
}
