//! The only binary: command line and wiring. What the commands do is in the crates below; here is what a user types,
//! reads and gets as an exit status.

mod audit;
mod bench;
mod chain;
mod children;
mod cid;
mod control;
mod demo;
mod dispute;
mod disputes;
mod doctor;
mod earnings;
mod economics;
mod embed;
mod import;
mod inventory;
mod key;
mod load;
mod memory;
mod models;
mod prosecutor;
mod provide;
mod providers;
mod ps;
mod publish;
mod pull;
mod receipts;
mod referee;
mod run;
mod shipped;
mod state;
mod stop;
mod store;
mod up;
mod upstream;
mod usage;
mod verify;
mod when;

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
    /// Vectors of texts from an encoder on this machine
    Embed(embed::EmbedArgs),
    /// A published model folder (safetensors) to a GGUF file
    Import(import::ImportArgs),
    /// A model from anywhere: CID, hf:OWNER/NAME, URL, file
    Pull(pull::PullArgs),
    /// What a model is, for others: its ids, a manifest, an entry in a chain's registry
    Publish(publish::PublishArgs),
    /// Gives the models of this machine to others
    Store(store::StoreArgs),
    /// The models on this machine
    List(inventory::ListArgs),
    /// What a model is and what it needs
    Show(inventory::ShowArgs),
    /// Removes a model, or prepared weights
    Rm(inventory::RmArgs),
    /// The content address (CID) of a file, as IPFS names it
    Cid(cid::CidArgs),
    /// Whether everything here is in order, and what to do if not
    Doctor(doctor::DoctorArgs),
    /// API keys of the gateway on this machine: create, list, set, revoke
    Key(key::KeyArgs),
    /// What was answered for which key, and what it cost
    Usage(usage::UsageArgs),
    /// What the gateway on this machine is answering right now
    Ps(ps::PsArgs),
    /// What it answered: one line each, no text
    Logs(ps::LogsArgs),
    /// Replays answers of a gateway's providers and says which are wrong
    Audit(audit::AuditArgs),
    /// One provider: from a configuration file, or with an engine of your own (--upstream)
    Provide(provide::ProvideArgs),
    /// The receipts of a period, to keep or to check
    Receipts(receipts::ReceiptsArgs),
    /// What the providers on this machine have earned: claimed, claimable, in flight
    Earnings(earnings::EarningsArgs),
    /// Claims what the providers on this machine have earned and sends it to an address
    Withdraw(earnings::WithdrawArgs),
    /// Who answers for the gateway on this machine: class, price, load, and what each one's past is worth and why
    Providers(providers::ProvidersArgs),
    /// A network of its own on this machine that shows what happens to a cheat
    Demo(demo::DemoArgs),
    /// Takes the provider of a wrong answer to court, and plays until it is judged
    Dispute(dispute::DisputeArgs),
    /// The disputes that a network on this machine has begun by itself, and how they ended
    Disputes(disputes::DisputesArgs),
    /// The contracts of a network on any EVM chain: deploy them, look at them
    Chain(chain::ChainArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::run(args),
        Command::Run(args) => run::run(args),
        Command::Verify(args) => return verify::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Embed(args) => embed::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Publish(args) => publish::run(&args),
        Command::Store(args) => store::run(&args),
        Command::List(args) => inventory::list(&args),
        Command::Show(args) => inventory::show(&args),
        Command::Rm(args) => inventory::rm(&args),
        Command::Cid(args) => cid::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Key(args) => key::run(args),
        Command::Usage(args) => usage::run(&args),
        Command::Ps(args) => ps::ps(&args),
        Command::Logs(args) => ps::logs(&args),
        Command::Audit(args) => audit::run(args),
        Command::Provide(args) => provide::run(&args),
        Command::Receipts(args) => receipts::run(&args),
        Command::Earnings(args) => earnings::run(&args),
        Command::Withdraw(args) => earnings::withdraw(&args),
        Command::Providers(args) => providers::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Dispute(args) => return dispute::run(&args),
        Command::Disputes(args) => disputes::run(&args),
        Command::Chain(args) => chain::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Who piped us into `head` has what they wanted.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("assay: {}\n", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// What happened, in what, because of what, in one line. Many errors say their cause themselves; it is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Logs go to standard error, `warn` and above unless ASSAY_LOG says otherwise (`ASSAY_LOG=debug`, or per crate); as
/// JSON, one object a line, with ASSAY_LOG_FORMAT=json. They hold no text of questions or answers.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASSAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // A log that cannot be written must not stop what logs: reporting that on standard error would panic there.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let is_json = std::env::var_os("ASSAY_LOG_FORMAT").is_some_and(|format| format == "json");
    // A second call in one process keeps the first subscriber.
    let _ = if is_json { log.json().try_init() } else { log.try_init() };
}

/// A command's result on standard output, of which the user must get to know if it cannot be written.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Text for a person on standard error. That it cannot be written stops nothing.
fn tell(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = std::io::stderr().write_fmt(text);
}

/// One line on standard output. That nobody reads it (any more) is no reason to stop: a provider whose parent was
/// killed still has to claim.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::one_line;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_one_line_and_no_cause_is_said_twice() {
        let error = anyhow!("no such file").context("x.gguf: no such file").context("cannot open x.gguf");
        assert_eq!(one_line(&error), "cannot open x.gguf: x.gguf: no such file");
        assert_eq!(one_line(&anyhow!("a\nb").context("c")), "c: a b");
    }
}
