//! The real Codex and the real opencode (`AGENTD_TEST_CODEX` and `AGENTD_TEST_OPENCODE` name their binaries) in seeded
//! HOMEs, against the stand-in model, with the bus over MCP: each serves requests under a policy. Without a binary a
//! test is a counted skip.

use std::process::Stdio;
use std::time::Duration;

use agentd::driver::{Outcome, acp, codex};
use agentd::mcp;
use agentd_orchestrator::driver::Machine;
use agentd_orchestrator::driver::acp::{Acp, Setting};
use agentd_orchestrator::driver::codex::Codex;
use agentd_sandbox::{HomeFile, ports};
use agentd_storage::UsageSource;
use agentd_testkit::skip;
use agentd_testkit::standin::{Script, Standin};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::driver::{Guest, House};

/// Against hangs only. These programs are large, and the machine may be busy.
const WATCHDOG: Duration = Duration::from_secs(180);

/// The rules that both agents' models follow, with their own names for the tools.
fn script(shell: &str, command: &str, bus: &str) -> Script {
    let text = format!(
        r#"
[[rule]]
when = {{ system = "title generator" }}
reply = {{ text = "A title" }}
[[rule]]
when = {{ user = "was refused: (.*)" }}
reply = {{ text = "I was told: {{{{1}}}}" }}
[[rule]]
when = {{ tool_result = "(?s)(.*)" }}
reply = {{ text = "the tool said: {{{{1}}}}" }}
[[rule]]
when = {{ user = "run: (.*)", tool = "{shell}" }}
reply = {{ tools = [{{ name = "{shell}", input = {{ {command} = "{{{{1}}}}", description = "as told" }} }}] }}
[[rule]]
when = {{ user = "who is there", tool = "{bus}" }}
reply = {{ tools = [{{ name = "{bus}", input = {{}} }}] }}
[[rule]]
reply = {{ text = "hello" }}
"#
    );
    Script::from_text(&text).expect("the rules are well formed")
}

/// A program with a HOME of its own.
struct Real {
    model: Standin,
    home: TempDir,
    bus: CancellationToken,
    mcp_url: String,
}

impl Real {
    /// Serves the bus of `guest` and seeds a HOME; what stands in the files for the sandbox's ports becomes the test's.
    async fn new(guest: &Guest, script: Script, files: Vec<HomeFile>) -> Self {
        let model = Standin::local(script).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mcp_url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let bus = CancellationToken::new();
        tokio::spawn(mcp::serve(listener, guest.port.clone(), bus.clone()));
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("repo")).unwrap();
        for file in files {
            let path = home.path().join(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = String::from_utf8(file.content).unwrap();
            let text = text
                .replace(ports::GATEWAY_URL, &model.url())
                .replace(ports::MCP_URL, &mcp_url);
            std::fs::write(path, text).unwrap();
        }
        Self {
            model,
            home,
            bus,
            mcp_url,
        }
    }

    fn repo(&self) -> std::path::PathBuf {
        self.home.path().join("repo")
    }

    fn spawn(
        &self,
        line: &[String],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> tokio::process::Child {
        tokio::process::Command::new(&line[0])
            .args(&line[1..])
            .current_dir(self.repo())
            .env_clear()
            .envs(environment)
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", self.home.path())
            .env("ANTHROPIC_API_KEY", ports::PLACEHOLDER_KEY)
            .env("OPENAI_API_KEY", ports::PLACEHOLDER_KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.bus.cancel();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future)
        .await
        .expect("something hangs")
}

/// Asks the agent for a refused command, an allowed one, and what it sees of the bus.
async fn serves_under_the_policy(
    house: &House,
    guest: &Guest,
    real: &Real,
    machine: impl Machine + 'static,
    mut program: tokio::process::Child,
    refusal: &str,
) {
    let asker = house.guest("asker").await;
    std::fs::write(real.repo().join("precious"), "x").unwrap();
    let (conversation, mut words) = house.conversation(guest, machine, None);
    let running = tokio::spawn(conversation.run(
        program.stdout.take().unwrap(),
        program.stdin.take().unwrap(),
    ));
    let drain = tokio::spawn(async move { while words.recv().await.is_some() {} });
    let ask = async |text: &str| {
        let reply = asker
            .port
            .request("worker", "ask", text, WATCHDOG)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}; {:?}", real.model.requests().last()));
        String::from_utf8(reply.payload).unwrap()
    };
    let denied = within(ask("run: rm precious")).await;
    assert!(denied.contains(refusal), "{denied}");
    assert!(real.repo().join("precious").exists());
    let allowed = within(ask("run: echo hi")).await;
    assert!(
        allowed.contains("the tool said") && allowed.contains("hi"),
        "{allowed}"
    );
    let seen = within(ask("who is there")).await;
    assert!(seen.contains("asker"), "{seen}");

    let record = house.record(guest).await;
    let decided: Vec<_> = record
        .approvals
        .iter()
        .map(|it| (it.what.tool.as_str(), it.what.decision.as_str()))
        .collect();
    assert_eq!(
        decided,
        [
            ("Bash", "deny"),
            ("Bash", "allow"),
            ("mcp__agentd__agents", "allow")
        ]
    );
    assert_eq!(record.denials.len(), 1);
    assert!(
        record
            .usage
            .iter()
            .any(|it| it.what.source == UsageSource::Protocol && it.what.input > 0)
    );
    program.start_kill().unwrap();
    assert_eq!(within(running).await.unwrap(), Outcome::AgentClosed);
    within(drain).await.unwrap();
}

#[tokio::test]
async fn the_real_codex_serves_requests_under_the_policy() {
    let Ok(binary) = std::env::var("AGENTD_TEST_CODEX") else {
        return skip("codex", "AGENTD_TEST_CODEX does not name a Codex binary");
    };
    let house = House::new().await;
    let guest = house.guest("worker").await;
    let script = script("exec_command", "cmd", "mcp__agentd__agents");
    let real = Real::new(&guest, script, codex::home_files()).await;
    let given = [binary, "-c".to_owned(), "model=stand-in-1".to_owned()];
    let program = real.spawn(&codex::command_line(&given).unwrap(), codex::environment());
    let refusal = "I was told: denied by the agent's policy: Bash(rm *)";
    serves_under_the_policy(&house, &guest, &real, Codex::new(), program, refusal).await;
}

#[tokio::test]
async fn the_real_opencode_serves_requests_under_the_policy() {
    let Ok(binary) = std::env::var("AGENTD_TEST_OPENCODE") else {
        return skip(
            "opencode",
            "AGENTD_TEST_OPENCODE does not name an opencode binary",
        );
    };
    let house = House::new().await;
    let guest = house.guest("worker").await;
    let given = [binary];
    let script = script("bash", "command", "agentd_agents");
    let real = Real::new(&guest, script, acp::home_files(&given)).await;
    // What the workspace says about permissions counts for nothing.
    std::fs::write(
        real.repo().join("opencode.json"),
        r#"{"permission": {"*": "allow", "bash": "allow"}}"#,
    )
    .unwrap();
    let machine = Acp::new(Setting {
        cwd: real.repo().to_str().unwrap().to_owned(),
        mcp_url: real.mcp_url.clone(),
    });
    let line = acp::command_line(&given).unwrap();
    let program = real.spawn(&line, acp::environment(&given));
    serves_under_the_policy(
        &house,
        &guest,
        &real,
        machine,
        program,
        "rejected permission",
    )
    .await;
}
