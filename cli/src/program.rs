//! The command line: what is parsed, and which noun gets it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::output::Format;
use crate::{bench, cluster, collection, demo, exit, memory, node, task};

/// How long what a node leaves running is waited for.
const NODE_END: Duration = Duration::from_secs(30);

/// Shared memory and task scheduler for fleets of AI agents.
#[derive(Parser)]
#[command(name = "quorate", version, max_term_width = 110)]
struct Arguments {
    /// Client addresses of any nodes, comma separated.
    #[arg(
        long,
        global = true,
        env = "QUORATE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7700"
    )]
    endpoints: Vec<String>,
    /// How data is printed.
    #[arg(short = 'o', long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// A cluster on this machine to develop against.
    Dev(node::Dev),
    /// Runs a node.
    #[command(subcommand)]
    Node(node::Node),
    /// Forms, grows, shrinks and describes a cluster.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Enqueues, shows, waits for and cancels tasks.
    #[command(subcommand)]
    Task(task::Task),
    /// Shows queues.
    #[command(subcommand)]
    Queue(task::Queue),
    /// Shows agents.
    #[command(subcommand)]
    Agent(task::Agents),
    /// Creates, lists and deletes collections.
    #[command(subcommand)]
    Collection(collection::Collection),
    /// Writes, searches, reads and deletes points.
    #[command(subcommand)]
    Memory(memory::Memory),
    /// Measures a cluster.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Three nodes, real text, agents, and a leader that is killed twice.
    Demo(demo::Demo),
}

/// Parses the command line of the process and does what it says. The status is that of the process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("quorate").build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into()),
    };
    // A node takes its time to close; of the rest only a look-up of a name may still go on.
    let patience = if matches!(arguments.command, Noun::Node(_)) { NODE_END } else { Duration::ZERO };
    let outcome = runtime.block_on(run(arguments));
    let code = outcome.unwrap_or_else(|error| exit::report(&error));
    // What a node leaves behind closes its databases as it goes. A process that ended beside that would take from RocksDB what
    // it closes them with, and be aborted.
    runtime.shutdown_timeout(patience);
    code
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { endpoints, output, command } = arguments;
    match command {
        Noun::Dev(dev) => node::dev(dev, output).await,
        Noun::Node(node) => node::run(node, output).await,
        Noun::Cluster(cluster) => cluster::run(cluster, &endpoints, output).await,
        Noun::Task(task) => task::run(task, &endpoints, output).await,
        Noun::Queue(queue) => task::queues(queue, &endpoints, output).await,
        Noun::Agent(agents) => task::agents(agents, &endpoints, output).await,
        Noun::Collection(collection) => collection::run(collection, &endpoints, output).await,
        Noun::Memory(memory) => memory::run(memory, &endpoints, output).await,
        Noun::Bench(bench) => bench::run(bench, &endpoints, output).await,
        Noun::Demo(demo) => demo::run(demo, output).await,
    }
}
