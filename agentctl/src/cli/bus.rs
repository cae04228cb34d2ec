//! `agentctl bus …` as it is typed.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct BusArgs {
    #[command(subcommand)]
    pub verb: LowBusVerb,
}

const NOTES: &str = "\
You see the agents of your own, root those of everybody. What you publish, send
or ask comes from a peer called `user`, which your agents see on the bus while
one of these verbs runs.

Examples:
  agentctl bus peers
  agentctl bus top --sort p99
  agentctl bus tap --agent reviewer --json | jq .what
  agentctl bus subscribe 'build.#'
  agentctl bus queue dead builds
  agentctl bus queue requeue builds 17 18
  agentctl bus request fixer fix '{\"test\":\"adds\"}' --timeout 5m
  agentctl bus revoke crawler publish 'send=build.#'";

#[derive(Debug, Subcommand)]
pub enum LowBusVerb {
    /// List who is on the bus: how each reaches others and why, what waits for it, what it sent and received
    Peers,
    /// List lanes and logs in shared memory with everything that is counted about them
    Channels(ChannelsArgs),
    /// Show rates and latencies of lanes, logs and peers, refreshed in place
    #[command(after_long_help = TOP_NOTES)]
    Top(TopArgs),
    /// Print who sends what to whom, as the daemon routes it; never the contents
    #[command(after_long_help = TAP_NOTES)]
    Tap(TapArgs),
    /// Print what becomes of one request, until it is answered, or of one message of a work queue, until it is done with
    #[command(after_long_help = TRACE_NOTES)]
    Trace(TraceArgs),
    /// List topics: what was published, delivered, dropped and retained
    Topics,
    /// Look at work queues, their messages and dead letters
    Queue(QueueArgs),
    /// Print stored messages of a durable topic or queue, from an offset or a time on
    Replay(ReplayArgs),
    /// Publish to a topic, and print how many queues it was put in
    Publish(PublishArgs),
    /// Print messages to a topic as they come
    #[command(after_long_help = SUBSCRIBE_NOTES)]
    Subscribe(SubscribeArgs),
    /// Ask an agent and print its answer
    Request(RequestArgs),
    /// Put a message into an agent's inbox
    Send(SendArgs),
    /// Take rights on the bus from a running agent; what it holds by them closes at once
    Revoke(RevokeArgs),
    /// Give an agent back what its policy lets it do on the bus
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub struct ChannelsArgs {
    /// Only those that this agent has a part in
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,
}

const TOP_NOTES: &str = "\
Rates and latencies are those of the last interval. Latency is the time from
send to receive of one message in 64, as the receivers measured it, to an
eighth. On a terminal it is refreshed until q or Ctrl-C; otherwise a block is
printed for each interval. With --json, one object per interval.";

/// By what the lines of `top` are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    /// Messages per second
    Rate,
    /// Payload per second
    Bytes,
    /// What waits unread
    Depth,
    /// Dropped and lost messages
    Loss,
    /// Median latency
    P50,
    /// Latency that 99 of 100 messages don't exceed
    P99,
    /// Sender, then receiver
    Name,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Time between two looks
    #[arg(short, long, value_name = "TIME", default_value = "1s")]
    pub interval: String,

    /// End after one interval
    #[arg(long, conflicts_with = "count")]
    pub once: bool,

    /// End after so many intervals
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// What comes first
    #[arg(short, long, value_name = "KEY", default_value = "rate")]
    pub sort: SortKey,

    /// Only what this agent has a part in
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,

    /// Show idle lanes, logs and peers too
    #[arg(short, long)]
    pub all: bool,
}

const TAP_NOTES: &str = "\
Lanes and logs go past the daemon, so only their opening and closing is seen
here; `agentctl bus top` counts what goes through them. A line that can't be
read in time is left out, and the next one says how many were.";

#[derive(Debug, Args)]
pub struct TapArgs {
    /// Only what this agent sends or receives
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,

    /// Only what is published to a topic that this pattern covers
    #[arg(long, value_name = "PATTERN")]
    pub topic: Option<String>,

    /// What happens to the messages of this work queue, step by step, instead of messages as they are routed
    #[arg(long, value_name = "NAME", conflicts_with = "topic")]
    pub queue: Option<String>,

    /// End after so many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

const TRACE_NOTES: &str = "\
A request and its answer have one number, which `agentctl bus tap --json` shows
as `correlation`. Without a number, the next request that AGENT sends or gets
is followed. A message of a work queue has the id that `agentctl bus queue peek`
and `dead` show; without one, the message to which something happens next is
followed until it is acknowledged, dead or dropped. Contents are never shown.

Exit code 124: --timeout passed before the end.";

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The request's number, or the message's id [default: the next one]
    #[arg(value_name = "NUMBER")]
    pub number: Option<u64>,

    /// Only requests that this agent sends or gets
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,

    /// A message of this work queue instead of a request
    #[arg(long, value_name = "NAME", conflicts_with = "agent")]
    pub queue: Option<String>,

    /// How long to wait for the end
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: String,
}

#[derive(Debug, Args)]
pub struct QueueArgs {
    #[command(subcommand)]
    pub verb: LowQueueVerb,
}

#[derive(Debug, Subcommand)]
pub enum LowQueueVerb {
    /// List work queues with what is in them
    List,
    /// Show one queue: bounds, consumers, everything that is counted
    Show {
        /// Name of the queue
        #[arg(value_name = "QUEUE")]
        queue: String,
    },
    /// Print messages that wait or are in hand, without taking them
    Peek(PeekArgs),
    /// Print dead letters, and why they are
    Dead(PeekArgs),
    /// Put dead letters back into their queue
    Requeue(LetterArgs),
    /// Drop dead letters, or with --queue-too the queue and all that it holds
    Drop(DropArgs),
}

#[derive(Debug, Args)]
pub struct PeekArgs {
    /// Name of the queue
    #[arg(value_name = "QUEUE")]
    pub queue: String,

    /// From this id on
    #[arg(long, value_name = "ID")]
    pub from: Option<u64>,

    /// At most so many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub count: u32,

    /// Of this user; for root
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
}

#[derive(Debug, Args)]
pub struct LetterArgs {
    /// Name of the queue
    #[arg(value_name = "QUEUE")]
    pub queue: String,

    /// Ids, as `dead` lists them [default: all]
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,

    /// Of this user; for root
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
}

#[derive(Debug, Args)]
pub struct DropArgs {
    #[command(flatten)]
    pub letters: LetterArgs,

    /// The whole queue, live messages and all
    #[arg(long, conflicts_with = "ids")]
    pub queue_too: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A durable topic, or with --queue a queue
    #[arg(value_name = "NAME")]
    pub name: String,

    /// NAME is a queue
    #[arg(long)]
    pub queue: bool,

    /// From this offset on
    #[arg(long, value_name = "OFFSET", conflicts_with = "since")]
    pub offset: Option<u64>,

    /// What was stored in this time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// At most so many
    #[arg(
        short = 'n',
        long,
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub count: u32,

    /// Of this user; for root
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Words separated by dots
    #[arg(value_name = "TOPIC")]
    pub topic: String,

    /// What to publish [default: read from stdin]
    #[arg(value_name = "DATA")]
    pub data: Option<String>,

    /// What receivers tell messages apart by
    #[arg(
        short = 't',
        long = "type",
        value_name = "TYPE",
        default_value = "message"
    )]
    pub kind: String,

    /// On the bus of this user; for root
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
}

const SUBSCRIBE_NOTES: &str = "\
A pattern is a topic in which `*` stands for one word and `#` for any number of
them. Contents are printed as they are, a message a line; with --json, one
object per message. If messages came faster than they were read, a line on
stderr says how many were lost.

Exit code 124: --timeout passed before --count messages had come.";

#[derive(Debug, Args)]
pub struct SubscribeArgs {
    /// A topic or pattern: build.linux, build.*, build.#
    #[arg(value_name = "PATTERN")]
    pub pattern: String,

    /// End after so many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,

    /// On the bus of this user; for root
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// Name or id of the agent
    #[arg(value_name = "AGENT")]
    pub agent: String,

    /// What is asked for, as the agent names it
    #[arg(value_name = "METHOD")]
    pub method: String,

    /// Parameters [default: read from stdin, unless that is a terminal]
    #[arg(value_name = "DATA")]
    pub data: Option<String>,

    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: String,
}

#[derive(Debug, Args)]
pub struct SendArgs {
    /// Name or id of the agent
    #[arg(value_name = "AGENT")]
    pub agent: String,

    /// What to send [default: read from stdin]
    #[arg(value_name = "DATA")]
    pub data: Option<String>,

    /// What receivers tell messages apart by
    #[arg(
        short = 't',
        long = "type",
        value_name = "TYPE",
        default_value = "message"
    )]
    pub kind: String,
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Name or id of the agent
    #[arg(value_name = "AGENT")]
    pub agent: String,

    /// send, request, publish or subscribe, for all names or topics or those of a pattern [default: all four]
    #[arg(value_name = "RIGHT[=PATTERN]")]
    pub rights: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name or id of the agent
    #[arg(value_name = "AGENT")]
    pub agent: String,
}
