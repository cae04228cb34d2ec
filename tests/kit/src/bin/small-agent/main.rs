//! A small agent: asks a model what to do, runs the tools it names, and tells it what came of them, until it is done.
//!
//! It knows nothing of sandboxes: the model is at `$ANTHROPIC_BASE_URL`, other agents are on the bus at `$AGENTD_BUS`,
//! files are in the working directory. `--task TEXT` (or standard input) is one conversation, and its last words are
//! the result; `--serve` turns every request from the bus into a conversation and its last words into the answer.
//! Progress goes to standard output, a line for each step; errors to standard error. One thread; exits 0 when the
//! task is done, 1 when it failed.

#![forbid(unsafe_code)]

mod http;
mod model;
mod tools;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::{Value, json};

use model::Model;
use tools::Tools;

/// A small coding agent.
#[derive(Debug, Parser)]
struct Options {
    /// The task; read from standard input when neither this nor --serve is given.
    #[arg(long)]
    task: Option<String>,
    /// Answer requests from other agents, one after the other, after the task if there is one.
    #[arg(long)]
    serve: bool,
    /// The model to ask.
    #[arg(long, env = "SMALL_AGENT_MODEL", default_value = "claude-sonnet-5")]
    model: String,
    /// What the model is told about its part.
    #[arg(long)]
    system: Option<String>,
    /// The most tokens of one answer.
    #[arg(long, default_value_t = 4096)]
    max_tokens: u64,
    /// The most answers in one conversation.
    #[arg(long, default_value_t = 40)]
    max_turns: usize,
    /// Ask for whole answers instead of streams.
    #[arg(long)]
    no_stream: bool,
}

/// Says a line on standard output. A reader that has left is no reason to go on working.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

struct Agent {
    options: Options,
    model: Model,
    tools: Tools,
    name: String,
}

impl Agent {
    /// One conversation; returns the model's last words.
    fn converse(&mut self, task: &str) -> anyhow::Result<String> {
        let system = self.options.system.clone().unwrap_or_else(|| {
            format!(
                "You are {}, a coding agent. You work in the current directory and act only through your tools. \
                 Other agents can be asked with ask_agent. When you are done, say what you did.",
                self.name
            )
        });
        let mut messages = vec![json!({"role": "user", "content": task})];
        for _ in 0..self.options.max_turns {
            let request = json!({
                "model": self.options.model, "max_tokens": self.options.max_tokens, "system": system,
                "stream": !self.options.no_stream, "tools": Tools::definitions(), "messages": messages,
            });
            let answer = self.model.ask(&request)?;
            messages.push(json!({"role": "assistant", "content": answer.content}));
            let mut results = Vec::new();
            for block in &answer.content {
                match block["type"].as_str() {
                    Some("text") => say(block["text"].as_str().unwrap_or_default()),
                    Some("tool_use") => results.push(self.use_tool(block)),
                    _ => {}
                }
            }
            if results.is_empty() {
                if answer.stop_reason == "max_tokens" {
                    bail!(
                        "the model's answer was cut off after {} tokens",
                        answer.output_tokens
                    );
                }
                return Ok(answer.text());
            }
            messages.push(json!({"role": "user", "content": results}));
        }
        bail!(
            "the model did not finish in {} answers",
            self.options.max_turns
        )
    }

    fn use_tool(&mut self, call: &Value) -> Value {
        let name = call["name"].as_str().unwrap_or_default();
        say(&format!("> {name} {}", tools::in_short(&call["input"])));
        let (text, is_error) = match self.tools.run(name, &call["input"]) {
            Ok(text) => (text, false),
            Err(error) => (format!("{error:#}"), true),
        };
        let first = text
            .lines()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("(no output)");
        say(&format!(
            "  {}{first}",
            if is_error { "failed: " } else { "" }
        ));
        json!({"type": "tool_result", "tool_use_id": call["id"], "content": text, "is_error": is_error})
    }

    /// Answers requests until the bus goes away.
    fn serve(&mut self) -> anyhow::Result<()> {
        let requests = self
            .tools
            .bus()?
            .serve(1)
            .context("cannot serve requests from the bus")?;
        say(&format!("{} waits for requests", self.name));
        loop {
            let Some(request) = requests.next(Duration::MAX).context("the bus is gone")? else {
                continue;
            };
            let question = String::from_utf8_lossy(&request.params).into_owned();
            say(&format!(
                "asked: {}",
                question.lines().next().unwrap_or_default()
            ));
            let answer = self.converse(&question);
            let sent = match &answer {
                Ok(text) => request.respond(Ok(text.as_bytes())),
                Err(error) => request.respond(Err(&format!("{error:#}"))),
            };
            sent.context("cannot answer over the bus")?;
            say("answered");
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let task = match (&options.task, options.serve) {
        (Some(task), _) => Some(task.clone()),
        (None, true) => None,
        (None, false) => {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the task from standard input")?;
            if text.trim().is_empty() {
                bail!("no task: give --task TEXT, or the task on standard input, or --serve");
            }
            Some(text)
        }
    };
    let serve = options.serve;
    let name = std::env::var("AGENTD_NAME").unwrap_or_else(|_| "small-agent".into());
    let mut agent = Agent {
        options,
        model: Model::from_env()?,
        tools: Tools::default(),
        name,
    };
    if let Some(task) = task {
        agent.converse(&task)?;
    }
    if serve { agent.serve() } else { Ok(()) }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("small-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
