//! `assay receipts export`: the receipts of a period, as the gateway on this machine has them.
//!
//! Each is signed by the provider that answered, so whoever gets the export can check it without whoever made it.

use crate::chain::read_network;
use crate::{state, when};
use anyhow::{Context, ensure};
use assay_chain::NetworkAddresses;
use assay_gateway::{Store, StoredReceipt};
use assay_types::{Finish, RECEIPT_FILE_VERSION, ReceiptFile, RequestHash};
use clap::{Args, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `assay receipts`.
#[derive(Args)]
pub struct ReceiptsArgs {
    #[command(subcommand)]
    command: ReceiptsCommand,
}

#[derive(Subcommand)]
enum ReceiptsCommand {
    /// Writes the receipts of a period to standard output
    Export(ExportArgs),
}

#[derive(Args)]
struct ExportArgs {
    /// From when on: a day (2026-11-20) or a moment (2026-11-20T15:04:05Z), UTC [default: the first one]
    #[arg(long, value_name = "TIME", value_parser = when::moment)]
    from: Option<u64>,
    /// Until before when [default: the last one]
    #[arg(long, value_name = "TIME", value_parser = when::moment)]
    to: Option<u64>,
    /// What is written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Folder of the network [default: ~/.assay/local]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One receipt file a line, each as `assay verify` reads it; with the prompts' and answers' tokens
    Jsonl,
    /// One line for each signed receipt, without tokens
    Csv,
}

const CSV_HEAD: &str = "time,receipt,part,provider,channel,model_id,request_hash,response_hash,prompt_tokens,\
                        output_tokens,finish,charged_base_units,charged_total_base_units,issued_at,signature";

/// Runs `assay receipts`.
pub fn run(args: &ReceiptsArgs) -> anyhow::Result<()> {
    let ReceiptsCommand::Export(args) = &args.command;
    if let (Some(from), Some(to)) = (args.from, args.to) {
        ensure!(from < to, "--from is not before --to: nothing is in between");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(export(args))
}

async fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let root = args.dir.clone().map_or_else(state::default_dir, Ok)?;
    let database = state::gateway_database(&root.join("gateway"));
    ensure!(
        database.is_file(),
        "no gateway has run in {}; start one with assay up, or name its folder with --dir",
        root.display()
    );
    let addresses = read_network(&root.join("network.json"))?;
    let (store, writer) = Store::open(&database).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if matches!(args.format, Format::Csv) {
        writeln!(out, "{CSV_HEAD}")?;
    }
    let is_wanted = |time: u64| args.from.is_none_or(|from| time >= from) && args.to.is_none_or(|to| time < to);
    let mut after = 0;
    loop {
        // A page at a time: there may be millions.
        let (rows, last) = store.usage(after).await?;
        if rows.is_empty() {
            break;
        }
        after = last;
        for row in rows.into_iter().filter(|row| is_wanted(row.created_at)) {
            let stored = store.receipt(row.receipt_id).await?;
            let stored = stored.with_context(|| format!("receipt {} is gone", row.receipt_id))?;
            // Nothing was signed for it.
            if stored.parts.is_empty() {
                continue;
            }
            let file = file(row.receipt_id, stored, &addresses);
            match args.format {
                Format::Jsonl => writeln!(out, "{}", serde_json::to_string(&file)?)?,
                Format::Csv => {
                    for line in csv_lines(row.created_at, &file) {
                        writeln!(out, "{line}")?;
                    }
                }
            }
        }
    }
    out.flush()?;
    drop(out);
    store.close().await?;
    writer.await?;
    Ok(())
}

fn file(id: RequestHash, stored: StoredReceipt, addresses: &NetworkAddresses) -> ReceiptFile {
    ReceiptFile {
        version: RECEIPT_FILE_VERSION,
        id,
        chain_id: addresses.chain_id,
        registry: addresses.registry,
        settlement: addresses.settlement,
        manifest: stored.manifest,
        job: stored.job,
        parts: stored.parts,
    }
}

fn csv_lines(time: u64, file: &ReceiptFile) -> Vec<String> {
    let line = |(index, part): (usize, &assay_types::ReceiptPart)| {
        let receipt = &part.signed.receipt;
        let finish = match part.finish {
            Finish::Open => "open",
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        };
        format!(
            "{},{},{index},{},{},{},{},{},{},{},{finish},{},{},{},0x{}",
            when::rfc3339(time),
            file.id,
            part.provider,
            receipt.channel_id,
            receipt.model_id,
            receipt.request_hash,
            receipt.response_hash,
            receipt.prompt_tokens,
            receipt.output_tokens,
            receipt.charged,
            receipt.charged_total,
            when::rfc3339(receipt.issued_at),
            hex::encode(part.signed.signature.0),
        )
    };
    file.parts.iter().enumerate().map(line).collect()
}
