//! The verbs. Each takes what was resolved, does one thing, and returns an exit code.

mod agents;
pub mod approvals;
pub mod audit;
pub mod bench;
pub mod bus;
mod completions;
pub mod config;
pub mod control;
mod daemon;
pub mod denials;
mod doctor;
mod inspect;
mod logs;
pub mod policy;
mod records;
pub mod sched;
pub mod selftest;
pub mod tasks;
pub mod units;
pub mod upkeep;

use crate::failure::Failure;
use crate::resolve::{Context, Invocation, Task};

/// Does what was asked.
pub fn perform(invocation: Invocation) -> Result<u8, Failure> {
    let Invocation { context, task } = invocation;
    match task {
        Task::Policy(task) => policy::perform(&context, &task),
        Task::Completions(shell) => completions::print(shell),
        Task::Bench(bench::Task::Agent(orders)) => bench::agent::perform(&orders),
        task => runtime()?.block_on(perform_async(&context, task)),
    }
}

async fn perform_async(context: &Context, task: Task) -> Result<u8, Failure> {
    match task {
        Task::Units(task) => units::perform(context, task).await,
        Task::Config(task) => config::perform(context, task).await,
        Task::Run(request) => crate::run::run(context, &request).await,
        Task::Ps { which, ids_only } => agents::ps(context, which, ids_only).await,
        Task::Inspect { agent } => inspect::inspect(context, &agent).await,
        Task::Logs {
            agent,
            follow,
            tail,
            since,
        } => logs::logs(context, &agent, follow, tail, since).await,
        Task::Attach {
            agent,
            input,
            replay,
            detach_keys,
        } => agents::attach(context, &agent, input, replay, &detach_keys).await,
        Task::Stop { agents, grace } => agents::stop(context, &agents, grace).await,
        Task::Kill { agents } => agents::kill(context, &agents).await,
        Task::Signal { agent, signo } => agents::signal(context, &agent, signo).await,
        Task::Wait { agent } => agents::wait(context, &agent).await,
        Task::Records { limit } => records::records(context, limit).await,
        Task::Approvals(task) => approvals::perform(context, task).await,
        Task::Denials(task) => denials::perform(context, task).await,
        Task::Tasks(task) => tasks::perform(context, task).await,
        Task::Control(task) => control::perform(context, task).await,
        Task::Bus(task) => bus::perform(context, task).await,
        Task::Bench(task) => bench::perform(context, task).await,
        Task::Selftest(task) => selftest::run(context, &task).await,
        Task::Audit(task) => audit::run(context, task).await,
        Task::Sched(task) => sched::run(context, task).await,
        Task::Upkeep(task) => upkeep::run(context, task).await,
        Task::Doctor => doctor::doctor(context).await,
        Task::Version => daemon::version(context).await,
        Task::Shutdown => daemon::shutdown(context).await,
        Task::Policy(_) | Task::Completions(_) => unreachable!("done without a runtime"),
    }
}

/// One thread: agentctl starts, asks, and ends.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::local("can't start", e))
}
