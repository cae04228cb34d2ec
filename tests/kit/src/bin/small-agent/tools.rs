//! The tools the model may call, done for real in the working directory and on the bus.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use agentd_bus::client::Client;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// The most bytes of output that go back to the model.
const MAX_OUTPUT: usize = 32 << 10;
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// The bus method of a question in plain text.
const ASK: &str = "ask";

/// What the tools need; the bus is joined at its first use.
#[derive(Default)]
pub struct Tools {
    bus: Option<Client>,
}

impl Tools {
    /// What the model is told about them.
    pub fn definitions() -> Value {
        let tool = |name: &str, description: &str, fields: &[(&str, &str)]| {
            let properties: serde_json::Map<String, Value> = fields
                .iter()
                .map(|(name, text)| {
                    (
                        (*name).to_owned(),
                        json!({"type": "string", "description": text}),
                    )
                })
                .collect();
            let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            json!({"name": name, "description": description, "input_schema":
                {"type": "object", "properties": properties, "required": required}})
        };
        json!([
            tool(
                "bash",
                "Run a shell command; gives its output and exit code.",
                &[("command", "the command")]
            ),
            tool("read_file", "Read a text file.", &[("path", "the file")]),
            tool(
                "write_file",
                "Write a whole text file.",
                &[("path", "the file"), ("content", "its new content")]
            ),
            tool(
                "edit_file",
                "Replace a piece of text that occurs exactly once in a file.",
                &[
                    ("path", "the file"),
                    ("old", "the text to replace"),
                    ("new", "the text in its place")
                ]
            ),
            tool("agents", "List the other agents.", &[]),
            tool(
                "ask_agent",
                "Ask another agent and wait for its answer.",
                &[("agent", "its name"), ("question", "what to ask")]
            ),
            tool(
                "send_message",
                "Leave a message in another agent's inbox.",
                &[("agent", "its name"), ("message", "the text")]
            ),
            tool("read_inbox", "Take the messages out of the own inbox.", &[]),
        ])
    }

    /// The bus.
    pub fn bus(&mut self) -> anyhow::Result<&Client> {
        if self.bus.is_none() {
            self.bus = Some(Client::connect().context("cannot join the bus")?);
        }
        self.bus.as_ref().context("the bus was joined a line above")
    }

    /// Runs one tool.
    pub fn run(&mut self, name: &str, input: &Value) -> anyhow::Result<String> {
        let arg = |key: &str| {
            input[key]
                .as_str()
                .with_context(|| format!("{name} needs {key:?}, a string"))
        };
        match name {
            "bash" => bash(arg("command")?),
            "read_file" => {
                let path = arg("path")?;
                fs::read_to_string(path)
                    .map(shorten)
                    .with_context(|| format!("cannot read {path}"))
            }
            "write_file" => write(arg("path")?, arg("content")?),
            "edit_file" => edit(arg("path")?, arg("old")?, arg("new")?),
            "agents" => {
                let agents = self.bus()?.agents()?;
                let lines = agents.iter().map(|a| {
                    let serves = if a.serving {
                        "answers requests"
                    } else {
                        "reads its inbox"
                    };
                    format!("{}: {serves}", a.name)
                });
                Ok(lines.collect::<Vec<_>>().join("\n"))
            }
            "ask_agent" => {
                let (agent, question) = (arg("agent")?, arg("question")?);
                let reply = self
                    .bus()?
                    .request(agent, ASK, question.as_bytes(), ANSWER_LIMIT)
                    .with_context(|| format!("{agent} did not answer"))?;
                Ok(shorten(String::from_utf8_lossy(&reply.result).into_owned()))
            }
            "send_message" => {
                let (agent, message) = (arg("agent")?, arg("message")?);
                self.bus()?.send(agent, "text", message.as_bytes())?;
                Ok(format!("{agent} has it"))
            }
            "read_inbox" => {
                let batch = self.bus()?.inbox(16, Duration::ZERO)?;
                let lines = batch.messages.iter().map(|(from, frame)| {
                    let event = agentd_bus::message::Event::parse(&frame.payload);
                    event.map(|e| format!("{from}: {}", String::from_utf8_lossy(e.data)))
                });
                Ok(lines.collect::<Result<Vec<_>, _>>()?.join("\n"))
            }
            _ => bail!("there is no tool {name:?}"),
        }
    }
}

/// Runs a command in a process group of its own, which is killed when its time is up.
fn bash(command: &str) -> anyhow::Result<String> {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 2>&1\n{command}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start a shell")?;
    let group = Pid::from_child(&child);
    let mut stdout = child.stdout.take().context("the shell's output is piped")?;
    let (done, finished) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.read_to_end(&mut output).map(|_| output);
        // After the time-out nobody waits for the word any more, only for this thread.
        if done.send(()).is_err() {
            return Ok(Vec::new());
        }
        read
    });
    let in_time = finished.recv_timeout(COMMAND_LIMIT).is_ok();
    if !in_time {
        kill_process_group(group, Signal::KILL).context("cannot stop the command")?;
    }
    let status = child.wait().context("cannot wait for the command")?;
    let output = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the output reader panicked"))?;
    let mut text = shorten(
        String::from_utf8_lossy(&output.context("cannot read the command's output")?).into_owned(),
    );
    if !in_time {
        text.push_str(&format!("\n(killed after {COMMAND_LIMIT:?})"));
    } else if !status.success() {
        text.push_str(&format!("\n({status})"));
    }
    Ok(text)
}

fn write(path: &str, content: &str) -> anyhow::Result<String> {
    fs::write(path, content).with_context(|| format!("cannot write {path}"))?;
    Ok(format!("{path} has {} bytes now", content.len()))
}

fn edit(path: &str, old: &str, new: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    match text.matches(old).count() {
        1 => write(path, &text.replacen(old, new, 1)),
        n => bail!("the text to replace occurs {n} times in {path}; it must occur exactly once"),
    }
}

/// Cuts the middle out of long output.
fn shorten(text: String) -> String {
    if text.len() <= MAX_OUTPUT {
        return text;
    }
    let head = text.floor_char_boundary(MAX_OUTPUT / 2);
    let tail = text.ceil_char_boundary(text.len() - MAX_OUTPUT / 2);
    format!(
        "{}\n… {} bytes left out …\n{}",
        &text[..head],
        tail - head,
        &text[tail..]
    )
}

/// Arguments in one line, for the progress display.
pub fn in_short(input: &Value) -> String {
    let words: Vec<String> = match input {
        Value::Object(map) => map
            .values()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect(),
        other => vec![other.to_string()],
    };
    let line = words.join(" | ").replace('\n', " ");
    match line.char_indices().nth(120) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}
