//! The model gateway between a raw socket (the agent) and the stand-in (the provider).

use std::net::SocketAddr;
use std::sync::Arc;

use agentd::gateway::{
    GatewayContext, ModelConfig, PriceConfig, PriceList, TokenBudget, TokenCounts, Upstreams, serve,
};
use agentd_api::NanoUsd;
use agentd_sandbox::{DenialRules, ModelRules};
use agentd_testkit::standin::{End, Script, Standin};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lab::{Record, WATCHDOG, exchange, read_until};

const KEY: &str = "sk-real-key-0123456789";

struct Lab {
    standin: Standin,
    record: Record,
    budget: Arc<TokenBudget>,
    addr: SocketAddr,
    cancel: CancellationToken,
    serving: JoinHandle<()>,
    // The key lies here, outside the record's directory.
    _keys: tempfile::TempDir,
}

fn rules(ceiling: Option<u64>) -> ModelRules {
    ModelRules {
        enabled: true,
        max_tokens_total: ceiling,
        ..ModelRules::default()
    }
}

/// $1 for a million tokens of input, $10 of output; what no line matches has no price.
fn prices() -> PriceList {
    #[derive(serde::Deserialize)]
    struct File {
        price: Vec<PriceConfig>,
    }
    let text = "[[price]]\nmodel = 'm-*'\ninput = 1\noutput = 10.0\ncache_read = '$0.10'\ncache_write = 1.25\n";
    let file: File = toml::from_str(text).expect("prices");
    PriceList::from_config(&file.price)
}

/// Where the policy of the tests was written.
fn lines() -> DenialRules {
    let line = |line: u32| json!({ "file": "team.toml", "line": line });
    let lines =
        json!({ "model.models": line(2), "limits.tokens": line(3), "limits.cost": line(4) });
    let rules = json!({ "syscalls": null, "ports": null, "paths": [], "lines": lines });
    serde_json::from_value(rules).expect("as they are kept")
}

impl Lab {
    async fn start(script: &str, rules: ModelRules) -> Self {
        let script = Script::from_text(script)
            .expect("the script is valid")
            .requiring_key(KEY);
        Self::with(Standin::local(script).expect("a port is free"), rules).await
    }

    async fn with(standin: Standin, rules: ModelRules) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let key = keys.path().join("key");
        std::fs::write(&key, format!("{KEY}\n")).unwrap();
        let provider = format!(
            "base_url = '{}'\nkey = {{ file = '{}' }}\n",
            standin.url(),
            key.display()
        );
        let config =
            format!("idle_timeout_ms = 20000\n[anthropic]\n{provider}[openai]\n{provider}");
        let config: ModelConfig = toml::from_str(&config).unwrap();
        let record = Record::new().await;
        let budget = TokenBudget::new(&rules);
        let context = GatewayContext {
            identity: record.identity.clone(),
            rules: rules.into(),
            lines: lines(),
            budget: budget.clone(),
            under_way: Arc::default(),
            prices: prices(),
            upstreams: Arc::new(Upstreams::from_config(&config).unwrap()),
            store: record.store.clone(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Arc::new(context), cancel.clone()));
        Self {
            standin,
            record,
            budget,
            addr,
            cancel,
            serving,
            _keys: keys,
        }
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        Answer::parse(&exchange(self.addr, request(method, path, body).as_bytes()).await)
    }

    async fn messages(&self, fields: Value) -> Answer {
        self.send("POST", "/v1/messages", &messages_body(fields))
            .await
    }

    /// Waits until the provider's side of request `number` has ended.
    fn ended(&self, number: usize) -> End {
        let ended = self.standin.wait_until(WATCHDOG, |log| {
            log.get(number).is_some_and(|r| r.end.is_some())
        });
        assert!(
            ended,
            "the provider's side of request {number} goes on for ever"
        );
        self.standin.requests()[number].end.unwrap()
    }

    /// Ends the gateway as the end of its agent does.
    async fn stop(&mut self) {
        self.cancel.cancel();
        tokio::time::timeout(WATCHDOG, &mut self.serving)
            .await
            .expect("the gateway ends")
            .expect("and not by a panic");
    }
}

fn messages_body(fields: Value) -> String {
    let mut body =
        json!({"model": "m-1", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nconnection: close\r\nanthropic-version: 2023-06-01\r\n\
         x-api-key: agentd-gateway\r\nauthorization: Bearer agents-own-token\r\ncookie: c=agents-cookie\r\n\
         accept-encoding: gzip, br\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// Head and body as they came, chunk sizes included.
    all: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let all = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = all
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {all:?}"));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| panic!("{head:?}"));
        Self {
            status,
            body: body.to_owned(),
            all,
        }
    }

    fn error(&self) -> (String, String) {
        let value: Value =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.all));
        let error = &value["error"];
        (
            error["type"].as_str().unwrap().to_owned(),
            error["message"].as_str().unwrap().to_owned(),
        )
    }
}

fn spent(input: u64, output: u64) -> TokenCounts {
    TokenCounts {
        input,
        output,
        ..TokenCounts::default()
    }
}

const HELLO: &str =
    "[[rule]]\nreply = { text = 'hello from the model', usage = { input = 12, output = 5 } }";

#[tokio::test(flavor = "multi_thread")]
async fn the_key_goes_to_the_provider_and_to_nobody_else() {
    let script = format!(
        "[[rule]]\nwhen.user = 'quote'\nreply = {{ error = 'invalid_request_error', status = 400, text = 'bad key {KEY}' }}\n\
         [[rule]]\nwhen.user = 'leak'\nreply = {{ raw = '{{\"content\":[],\"note\":\"{KEY}\"}}' }}\n{HELLO}"
    );
    let mut lab = Lab::start(&script, rules(None)).await;
    let chat =
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true})
            .to_string();
    let response = json!({"model": "m", "input": "hi", "stream": true}).to_string();
    let answers = [
        lab.messages(json!({})).await,
        lab.messages(json!({"stream": true})).await,
        lab.messages(json!({"messages": [{"role": "user", "content": "quote"}]}))
            .await,
        lab.messages(json!({"messages": [{"role": "user", "content": "leak"}]}))
            .await,
        lab.send(
            "POST",
            "/v1/messages/count_tokens",
            &messages_body(json!({})),
        )
        .await,
        lab.send("POST", "/v1/chat/completions", &chat).await,
        lab.send("POST", "/v1/responses", &response).await,
        lab.send("GET", "/v1/models", "").await,
        lab.send("POST", "/v1/files", "{}").await,
    ];
    let statuses: Vec<u16> = answers.iter().map(|a| a.status).collect();
    assert_eq!(statuses, [200, 200, 400, 200, 200, 200, 200, 200, 404]);
    for answer in &answers {
        assert!(!answer.all.contains(KEY), "{}", answer.all);
    }
    assert!(answers[2].body.contains("[redacted]") && answers[3].body.contains("[redacted]"));
    let asked = lab.standin.requests();
    assert_eq!(asked.len(), 8);
    for request in &asked {
        let seen = serde_json::to_string(&request.headers).unwrap();
        assert!(seen.contains(KEY), "{seen}");
        for own in [
            "agents-own-token",
            "agentd-gateway",
            "agents-cookie",
            "accept-encoding",
        ] {
            assert!(!seen.contains(own), "{own} in {seen}");
        }
    }
    lab.stop().await;
    assert!(
        lab.record.contains(b"m-1").await,
        "the search finds what is on record"
    );
    assert!(
        !lab.record.contains(KEY.as_bytes()).await,
        "the key is on record"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_the_provider_refuses_is_told_without_it() {
    let script = Script::always("never").requiring_key("another key");
    let lab = Lab::with(Standin::local(script).unwrap(), rules(None)).await;
    let answer = lab.messages(json!({})).await;
    assert_eq!(
        (answer.status, answer.error().0.as_str()),
        (401, "authentication_error")
    );
    assert!(
        answer.error().1.contains("refuses agentd's key"),
        "{answer:?}"
    );
    assert_eq!(lab.budget.snapshot().spent, TokenCounts::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_is_metered_and_on_record_before_its_end_is_seen() {
    let script = "[[rule]]\nreply = { text = 'hello', usage = { input = 12, output = 5, cache_read = 30, cache_write = 7 } }";
    let lab = Lab::start(script, rules(None)).await;
    let mut total = 0;
    for stream in [false, true] {
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).to_string();
        let response = json!({"model": "m", "input": "hi", "stream": stream}).to_string();
        for (path, body) in [
            ("/v1/messages", messages_body(json!({"stream": stream}))),
            ("/v1/chat/completions", chat),
            ("/v1/responses", response),
        ] {
            let answer = lab.send("POST", path, &body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let usage = lab.record.usage().await;
            total += 1;
            assert_eq!(usage.len(), total, "{path} stream={stream}");
            let last = usage.last().unwrap();
            // OpenAI has no word for tokens written to a cache: they are input there.
            let want = if path == "/v1/messages" {
                (12, 5, 30, 7)
            } else {
                (19, 5, 30, 0)
            };
            assert_eq!(
                (last.input, last.output, last.cache_read, last.cache_write),
                want,
                "{path} stream={stream}"
            );
            assert!(
                !last.estimated && !last.aborted && last.request_id.is_some(),
                "{last:?}"
            );
            if path == "/v1/chat/completions" && stream {
                assert_eq!(
                    lab.standin.requests().last().unwrap().body["stream_options"]["include_usage"],
                    true
                );
                assert!(
                    !answer.body.contains("\"prompt_tokens\""),
                    "the agent did not ask for usage: {answer:?}"
                );
                assert!(answer.body.contains("[DONE]"), "{answer:?}");
            }
        }
    }
    let snapshot = lab.budget.snapshot();
    assert_eq!(
        (
            snapshot.spent.total(),
            snapshot.reserved,
            snapshot.requests,
            snapshot.in_flight
        ),
        (6 * 54, 0, 6, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ceiling_clamps_and_then_refuses() {
    let lab = Lab::start(
        "[[rule]]\nreply = { text = 'x', usage = { input = 60, output = 200 } }",
        rules(Some(300)),
    )
    .await;
    let answer = lab.messages(json!({"max_tokens": 5000})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let asked = lab.standin.requests()[0].body["max_tokens"]
        .as_u64()
        .unwrap();
    assert!((1..300).contains(&asked), "{asked}");
    assert_eq!(lab.budget.snapshot().spent, spent(60, 200));

    let long = "word ".repeat(60);
    let refused = lab
        .messages(json!({"messages": [{"role": "user", "content": long}]}))
        .await;
    assert_eq!(
        (refused.status, refused.error().0.as_str()),
        (403, "permission_error")
    );
    assert!(refused.error().1.contains("260 of 300"), "{refused:?}");
    assert!(refused.all.contains("x-should-retry: false"), "{refused:?}");
    assert_eq!(lab.standin.requests().len(), 1);
    let denied = &lab.record.denials().await[0];
    assert_eq!(denied.what, "tokens");
    assert_eq!(denied.origin.as_deref(), Some("team.toml:3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reaches_the_ceiling_is_cut_with_a_clear_error() {
    // More input than anybody could guess; and a provider that doesn't keep to its limit.
    for reply in [
        "{ text = 'abcdefgh ', repeat = 400, usage = { input = 5000, output = 1 } }",
        "{ text = 'abcdefgh ', repeat = 400, ignore_limit = true, usage = { input = 1, output = 1 } }",
    ] {
        let lab = Lab::start(
            &format!("[[rule]]\nreply = {{ event_delay_ms = 1, {}", &reply[1..]),
            rules(Some(300)),
        )
        .await;
        let answer = lab.messages(json!({"stream": true})).await;
        assert_eq!(answer.status, 200);
        let last = answer.body.rsplit("event: ").next().unwrap();
        assert!(
            last.starts_with("error\n") && last.contains("token ceiling"),
            "{reply}: {}",
            answer.body
        );
        assert!(!answer.body.contains("message_stop"));
        assert_eq!(lab.ended(0), End::Aborted);
        let usage = lab.record.usage().await;
        assert!(
            usage[0].aborted && usage[0].input + usage[0].output > 100,
            "{usage:?}"
        );
        assert_eq!(lab.record.denials().await[0].what, "tokens");
        assert_eq!(lab.budget.snapshot().reserved, 0);
    }
}

fn dollars(nano: u64) -> ModelRules {
    ModelRules {
        max_cost_nano_usd: Some(nano),
        ..rules(None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_of_dollars_clamps_refuses_and_is_on_record() {
    let lab = Lab::start(
        "[[rule]]\nreply = { text = 'x', usage = { input = 60, output = 100, cache_read = 1000, cache_write = 8 } }",
        dollars(3_000_000),
    )
    .await;
    let answer = lab.messages(json!({"max_tokens": 5000})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let asked = lab.standin.requests()[0].body["max_tokens"]
        .as_u64()
        .unwrap();
    assert!((1..300).contains(&asked), "{asked}");
    // 60 µ$ of input, 1000 of output, 100 read from the cache, 10 written to it.
    let cost = 1_170_000;
    assert_eq!(lab.budget.snapshot().cost, Some(NanoUsd(cost)));
    assert_eq!(lab.record.usage().await[0].cost_nano_usd, Some(cost));

    let long = "word ".repeat(1500);
    let refused = lab
        .messages(json!({"messages": [{"role": "user", "content": long}]}))
        .await;
    assert_eq!(refused.status, 403);
    let (_, text) = refused.error();
    assert!(
        text.contains("cost ceiling") && text.contains("$0.00117 of $0.003"),
        "{text}"
    );
    assert!(text.contains("limits.cost"), "{text}");
    assert_eq!(lab.standin.requests().len(), 1);
    let denied = &lab.record.denials().await[0];
    assert_eq!(denied.what, "cost");
    assert_eq!(denied.origin.as_deref(), Some("team.toml:4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_ceiling_of_dollars_a_model_without_a_price_is_refused_and_otherwise_not() {
    let lab = Lab::start(HELLO, dollars(1_000_000_000)).await;
    let refused = lab.messages(json!({"model": "unknown"})).await;
    assert_eq!(refused.status, 403);
    let (_, text) = refused.error();
    assert!(
        text.contains("\"unknown\" has no price") && text.contains("[[price]]"),
        "{text}"
    );
    assert!(lab.standin.requests().is_empty());
    assert_eq!(lab.record.denials().await[0].what, "price");

    let lab = Lab::start(HELLO, rules(Some(100_000))).await;
    assert_eq!(lab.messages(json!({"model": "unknown"})).await.status, 200);
    assert_eq!(lab.record.usage().await[0].cost_nano_usd, None);
    assert_eq!(lab.budget.snapshot().cost, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reaches_the_ceiling_of_dollars_is_cut_and_billed() {
    for reply in [
        "{ text = 'abcdefgh ', repeat = 400, usage = { input = 5000, output = 1 } }",
        "{ text = 'abcdefgh ', repeat = 400, ignore_limit = true, usage = { input = 1, output = 1 } }",
    ] {
        let script = format!("[[rule]]\nreply = {{ event_delay_ms = 1, {}", &reply[1..]);
        let lab = Lab::start(&script, dollars(2_000_000)).await;
        let answer = lab.messages(json!({"stream": true})).await;
        let last = answer.body.rsplit("event: ").next().unwrap();
        assert!(
            last.starts_with("error\n") && last.contains("cost ceiling"),
            "{reply}: {}",
            answer.body
        );
        assert_eq!(lab.ended(0), End::Aborted);
        let usage = lab.record.usage().await;
        assert!(
            usage[0].aborted && usage[0].cost_nano_usd > Some(1_000_000),
            "{usage:?}"
        );
        let snapshot = lab.budget.snapshot();
        assert_eq!(snapshot.cost, usage[0].cost_nano_usd.map(NanoUsd));
        assert_eq!(snapshot.cost_reserved, NanoUsd(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_up_stops_the_provider_and_is_billed_for_what_it_saw() {
    let script = "[[rule]]\nreply = { text = 'abcdefgh', repeat = 100, chunk_chars = 8, hang = true, usage = { input = 40, output = 999 } }";
    let lab = Lab::start(script, rules(Some(100_000))).await;
    let mut agent = TcpStream::connect(lab.addr).await.unwrap();
    let body = messages_body(json!({"stream": true, "max_tokens": 5000}));
    agent
        .write_all(request("POST", "/v1/messages", &body).as_bytes())
        .await
        .unwrap();
    read_until(&mut agent, "content_block_stop").await;
    drop(agent);
    assert_eq!(lab.ended(0), End::Aborted);
    let mut lab = lab;
    lab.stop().await;
    let usage = lab.record.usage().await;
    assert_eq!(
        (
            usage[0].input,
            usage[0].output,
            usage[0].aborted,
            usage[0].estimated
        ),
        (40, 200, true, true)
    );
    let snapshot = lab.budget.snapshot();
    assert_eq!(
        (snapshot.spent, snapshot.reserved, snapshot.in_flight),
        (spent(40, 200), 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_agent_settles_its_running_streams() {
    let script = "[[rule]]\nreply = { text = 'abcdefgh', hang = true, usage = { input = 40, output = 999 } }";
    let mut lab = Lab::start(script, rules(None)).await;
    let mut agent = TcpStream::connect(lab.addr).await.unwrap();
    let body = messages_body(json!({"stream": true}));
    agent
        .write_all(request("POST", "/v1/messages", &body).as_bytes())
        .await
        .unwrap();
    read_until(&mut agent, "abcdefgh").await;
    lab.stop().await;
    assert_eq!(lab.ended(0), End::Aborted);
    assert_eq!(lab.record.usage().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answers_become_clear_errors_and_bills() {
    for (reply, stream, needle) in [
        ("{ raw = 'so sorry' }", false, "it is no JSON"),
        ("{ raw = '[1]' }", false, "no JSON object"),
        (
            "{ raw = 'data: {\"type\"', content_type = 'text/event-stream' }",
            true,
            "ended before the answer did",
        ),
        (
            "{ raw = \"data: {oops}\\n\\n\", content_type = 'text/event-stream' }",
            true,
            "carries no JSON",
        ),
        (
            "{ raw = \"data: 3\\n\\n\", content_type = 'text/event-stream' }",
            true,
            "no JSON object",
        ),
        (
            "{ raw = '<html>', content_type = 'text/html' }",
            true,
            "it is no JSON",
        ),
        (
            "{ text = 'abcd', chunk_chars = 1, truncate_after = 5 }",
            true,
            "stream broke off",
        ),
    ] {
        let lab = Lab::start(&format!("[[rule]]\nreply = {reply}"), rules(Some(10_000))).await;
        let answer = lab.messages(json!({"stream": stream})).await;
        assert!(answer.body.contains(needle), "{reply}: {}", answer.all);
        assert!(
            answer.body.contains("\"type\":\"error\""),
            "{reply}: {}",
            answer.all
        );
        if !answer.all.contains("text/event-stream") {
            assert_eq!(
                (answer.status, answer.error().0.as_str()),
                (502, "api_error"),
                "{reply}"
            );
        }
        let usage = lab.record.usage().await;
        assert!(
            usage[0].aborted && usage[0].estimated && usage[0].input > 0,
            "{reply}: {usage:?}"
        );
        assert_eq!(lab.budget.snapshot().reserved, 0, "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_usage_is_billed_by_estimate() {
    let lab = Lab::start(
        "[[rule]]\nreply = { text = 'abcdefgh', omit_usage = true }",
        rules(None),
    )
    .await;
    for stream in [false, true] {
        let answer = lab.messages(json!({"stream": stream})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for usage in lab.record.usage().await {
        assert!(
            usage.estimated && !usage.aborted && usage.output >= 2,
            "{usage:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_provider_keep_their_status_and_cost_nothing() {
    let script =
        "[[rule]]\nreply = { error = 'overloaded_error', status = 529, text = 'too much' }";
    let lab = Lab::start(script, rules(Some(1000))).await;
    for stream in [false, true] {
        let answer = lab.messages(json!({"stream": stream})).await;
        assert_eq!(
            (answer.status, answer.error()),
            (529, ("overloaded_error".into(), "too much".into()))
        );
    }
    assert!(lab.record.usage().await.is_empty());
    let snapshot = lab.budget.snapshot();
    assert_eq!(
        (snapshot.spent.total(), snapshot.reserved, snapshot.requests),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_reaches_the_provider_is_refused_in_its_own_shape() {
    let policy = ModelRules {
        models: vec!["m-*".into()],
        ..rules(None)
    };
    let lab = Lab::start(HELLO, policy).await;
    let hosted = json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]});
    for (path, body, status, needle) in [
        ("/v1/messages", "{".into(), 400, "malformed"),
        ("/v1/messages", "\u{feff}{}".into(), 400, "malformed"),
        ("/v1/chat/completions", "[]".into(), 400, "JSON object"),
        ("/v1/responses", "{\"model\":\"m-1\"}".into(), 400, "input"),
        (
            "/v1/messages",
            messages_body(json!({"model": "other"})),
            403,
            "[m-*]",
        ),
        (
            "/v1/messages/count_tokens",
            messages_body(json!({"model": "other"})),
            403,
            "[m-*]",
        ),
        (
            "/v1/messages",
            messages_body(hosted),
            403,
            "web_search_20250305",
        ),
        (
            "/v1/messages/batches",
            "{}".into(),
            404,
            "POST /v1/messages",
        ),
        ("/v1/../v1/messages", "{}".into(), 404, "offers"),
    ] {
        let answer = lab.send("POST", path, &body).await;
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
        assert!(
            answer.error().1.contains(needle),
            "{path} {body}: {answer:?}"
        );
    }
    assert_eq!(lab.send("GET", "/v1/messages", "").await.status, 405);
    assert!(lab.standin.requests().is_empty());
    let denied: Vec<String> = lab
        .record
        .denials()
        .await
        .into_iter()
        .map(|d| d.what)
        .collect();
    assert!(
        denied.contains(&"model".into()) && denied.contains(&"hosted tool".into()),
        "{denied:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_limit_is_refused_whole() {
    let lab = Lab::start(HELLO, rules(None)).await;
    let mut agent = TcpStream::connect(lab.addr).await.unwrap();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        33 << 20
    );
    agent.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = agent.split();
    let send = async {
        let zeros = vec![b' '; 1 << 20];
        // The gateway may stop reading as soon as it knows.
        for _ in 0..33 {
            if write.write_all(&zeros).await.is_err() {
                break;
            }
        }
    };
    let mut answer = Vec::new();
    let receive = async {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut read, &mut piece).await {
            answer.extend_from_slice(&piece[..count]);
            if String::from_utf8_lossy(&answer).contains("bytes\"") {
                break;
            }
        }
    };
    tokio::time::timeout(WATCHDOG, async { tokio::join!(send, receive) })
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(
        text.starts_with("HTTP/1.1 413 ") && text.contains("33554432"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn side_by_side_requests_never_spend_more_than_the_ceiling() {
    let script =
        "[[rule]]\nreply = { text = 'x', delay_ms = 5, usage = { input = 10, output = 50 } }";
    let lab = Arc::new(Lab::start(script, rules(Some(1000))).await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let lab = lab.clone();
        asking.spawn(async move { lab.messages(json!({"max_tokens": 50})).await.status });
    }
    let statuses = asking.join_all().await;
    let answered = statuses.iter().filter(|s| **s == 200).count();
    assert!(
        statuses.iter().all(|s| [200, 403].contains(s)),
        "{statuses:?}"
    );
    let snapshot = lab.budget.snapshot();
    let recorded = lab.record.usage().await;
    assert_eq!(recorded.len(), answered);
    assert_eq!(
        snapshot.spent.total(),
        recorded.iter().map(|u| u.input + u.output).sum::<u64>()
    );
    // Sixteen whole answers fit; whoever comes then gets what is left, or a refusal.
    assert!(
        snapshot.spent.total() <= 1000 && answered >= 16,
        "{answered}: {snapshot:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_or_missing_provider_is_named() {
    let mut lab = Lab::start(HELLO, rules(Some(1000))).await;
    // Its stand-in ends, and nobody listens there any more.
    lab.standin = Standin::local(Script::always("x")).unwrap();
    let answer = lab.messages(json!({})).await;
    assert_eq!(
        (answer.status, answer.error().0.as_str()),
        (502, "api_error"),
        "{answer:?}"
    );
    assert!(answer.error().1.contains("can't reach the model provider"));
    assert_eq!(lab.budget.snapshot().spent.total(), 0);

    let record = Record::new().await;
    let config: ModelConfig =
        toml::from_str("[anthropic]\nkey = 'none'\nbase_url = 'http://127.0.0.1:9'").unwrap();
    let context = GatewayContext {
        identity: record.identity.clone(),
        rules: ModelRules::default().into(),
        lines: DenialRules::default(),
        budget: TokenBudget::new(None),
        under_way: Arc::default(),
        prices: PriceList::default(),
        upstreams: Arc::new(Upstreams::from_config(&config).unwrap()),
        store: record.store.clone(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, Arc::new(context), cancel.clone()));
    let answer =
        Answer::parse(&exchange(addr, request("POST", "/v1/messages", "{}").as_bytes()).await);
    assert_eq!(answer.status, 403);
    assert!(answer.error().1.contains("[model] access"), "{answer:?}");
    cancel.cancel();
    serving.await.unwrap();
}
