//! `agentctl sched` as it is typed.

use clap::Args;

#[derive(Debug, Args)]
#[command(after_long_help = SCHED_NOTES)]
pub struct SchedArgs {
    /// Name, id, or at least four digits from an end of the id [default: all your living agents]
    #[arg(value_name = "AGENT")]
    pub agent: Option<String>,

    /// Go on: what happened in each interval, until the agent has ended
    #[arg(short, long)]
    pub follow: bool,

    /// How long an interval is: 500ms, 1s, 10s
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "follow")]
    pub interval: String,

    /// End after so many intervals
    #[arg(long, value_name = "COUNT", requires = "follow")]
    pub count: Option<u64>,
}

const SCHED_NOTES: &str = "\
Counted by eBPF programs at the scheduler's own tracepoints, since the launch; a
host without them says why. WAIT is time in a run queue: an agent that waits
much competes for processors. P50 and P99 are of single waits, rounded up to
the next power of two. Sleeps and waits count when they end.

Examples:
  agentctl sched
  agentctl sched reviewer
  agentctl --json sched -f --interval 10s";
