//! `agentctl bench …` as it is typed.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub verb: LowBenchVerb,
}

const NOTES: &str = "\
Needs a running agentd. Load comes from real agents, launched confined like
those of `agentctl run`, which talk over the bus like any other; they end with
this command. Each message carries its number and contents made from it, which
the receiver checks.

Exit codes: 0 if nothing was lost, broken or hung, 1 otherwise.

Examples:
  agentctl bench throughput --messages 10M --size 48
  agentctl bench latency --duration 10s --rate 100000
  agentctl bench stress --agents 100 --duration 5m --kills --json";

#[derive(Debug, Subcommand)]
pub enum LowBenchVerb {
    /// Send messages from one agent to another as fast as they go, and check that all arrive
    Throughput(ThroughputArgs),
    /// Measure the time from send to receive between two agents
    #[command(after_long_help = LATENCY_NOTES)]
    Latency(LatencyArgs),
    /// Let many agents talk in all patterns at once, kill some, and check that nothing is lost, hangs or leaks
    #[command(after_long_help = STRESS_NOTES)]
    Stress(StressArgs),
    /// Inside a sandbox: do what another agentctl orders
    #[command(hide = true)]
    Agent(AgentArgs),
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A JSON document
    #[arg(value_name = "ORDERS")]
    pub orders: String,
}

/// How both ends of a lane wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LowWaiting {
    /// Look without pause: needs a core for each thread
    Busy,
    /// Look for about as long as a wake-up costs, then sleep
    Adaptive,
    /// Sleep at once
    Blocking,
}

#[derive(Debug, Args)]
pub struct ThroughputArgs {
    /// How many messages in all: 500000, 10M
    #[arg(short = 'm', long, value_name = "COUNT", default_value = "10M")]
    pub messages: String,

    /// Sending threads, each with a lane and a receiving thread of its own
    #[arg(short = 'T', long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub threads: u32,

    /// Bytes of payload, 16 or more; up to 48 fit into one cache line
    #[arg(short, long, value_name = "BYTES", default_value_t = 48, value_parser = clap::value_parser!(u32).range(16..=32_768))]
    pub size: u32,

    /// How both ends wait
    #[arg(short, long, value_name = "MODE", default_value = "adaptive")]
    pub waiting: LowWaiting,
}

const LATENCY_NOTES: &str = "\
With --rate the load is open-loop: each message has a time at which it is due,
and its latency counts from then, however late the sender was. Without, one
message is sent after the answer to the last, and the round trip is measured.";

#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// How long
    #[arg(short, long, value_name = "TIME", default_value = "5s")]
    pub duration: String,

    /// Messages per second; without it, one after the other
    #[arg(short, long, value_name = "PER_SECOND")]
    pub rate: Option<String>,

    /// Bytes of payload, 16 or more
    #[arg(short, long, value_name = "BYTES", default_value_t = 48, value_parser = clap::value_parser!(u32).range(16..=32_768))]
    pub size: u32,

    /// How both ends wait
    #[arg(short, long, value_name = "MODE", default_value = "adaptive")]
    pub waiting: LowWaiting,
}

const STRESS_NOTES: &str = "\
Each agent sends over lanes to two others, writes a log that others follow,
publishes, asks and answers. What lanes and reliable logs carry between agents
that live may not be lost; what topics and lossy logs drop must be told to the
reader; each request has one end. At the end agentd must hold no more
descriptors, connections, channels and requests than before.

With --kills, agents are killed at moments drawn from --seed, and others are
started in their place.";

#[derive(Debug, Args)]
pub struct StressArgs {
    /// How many agents at a time
    #[arg(short = 'a', long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub agents: u32,

    /// How long, after all have started
    #[arg(short, long, value_name = "TIME", default_value = "30s")]
    pub duration: String,

    /// Kill agents at random, and start others
    #[arg(short, long)]
    pub kills: bool,

    /// Bytes of payload, 16 or more
    #[arg(short, long, value_name = "BYTES", default_value_t = 48, value_parser = clap::value_parser!(u32).range(16..=32_768))]
    pub size: u32,

    /// Of what is random [default: made up, and printed]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// How both ends of lanes wait
    #[arg(short, long, value_name = "MODE", default_value = "adaptive")]
    pub waiting: LowWaiting,
}
