//! The only binary: command line and wiring. What the commands do is in the crates below; here is what a user types,
//! reads and gets as an exit status.

mod bench;
mod children;
mod load;
mod provide;
mod run;
mod shipped;
mod state;
mod stop;
mod up;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Open network for AI inference whose answers anyone can re-derive, bit for bit.
#[derive(Parser)]
#[command(name = "assay", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole network on this machine: chain, providers, gateway
    Up(up::UpArgs),
    /// One answer from a model on this machine, without any network
    Run(run::RunArgs),
    /// Checks a receipt: hashes, signature; with --model the answer itself; with --rpc the stake
    Verify(verify::VerifyArgs),
    /// How fast a model runs on this machine
    Bench(bench::BenchArgs),
    /// One provider, from a configuration file
    Provide(provide::ProvideArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::run(args),
        Command::Run(args) => run::run(args),
        Command::Verify(args) => return verify::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Provide(args) => provide::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what happened, in what, because of what.
            eprintln!("assay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error, `warn` and above unless ASSAY_LOG says otherwise (`ASSAY_LOG=debug`, or per crate).
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASSAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // A second call in one process keeps the first subscriber.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// One line on standard output. That nobody reads it (any more) is no reason to stop: a provider whose parent was
/// killed still has to claim.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}
