//! `assay ps` and `assay logs`: what a running gateway is doing, and what it did. No text of questions or answers.

use crate::key::{PlaceArgs, columns};
use crate::{control, print, state, when};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// Arguments of `assay ps`.
#[derive(Args)]
pub struct PsArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `assay logs`.
#[derive(Args)]
pub struct LogsArgs {
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last answers; the gateway keeps 1024
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs `assay ps`.
pub fn ps(args: &PsArgs) -> anyhow::Result<()> {
    let mut text = String::new();
    ask(&args.place, "/running")?.read_to_string(&mut text).context("the gateway's answer broke off")?;
    if args.place.json {
        return print(&text);
    }
    let list: Vec<Value> = serde_json::from_str(&text).context("the gateway's answer is no list")?;
    let head = ["RECEIPT", "KEY", "MODEL", "PROVIDER", "PROMPT", "OUTPUT", "SECONDS"].map(str::to_owned);
    let row = |process: &Value| {
        [
            word(&process["receipt"]),
            word(&process["keyId"]),
            word(&process["model"]),
            word(&process["provider"]),
            word(&process["promptTokens"]),
            word(&process["outputTokens"]),
            seconds(&process["millis"]),
        ]
    };
    print(&columns(&std::iter::once(head).chain(list.iter().map(row)).collect::<Vec<_>>()))
}

/// Runs `assay logs`.
pub fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let follow = if args.follow { ",follow" } else { "" };
    let reply = ask(&args.place, &format!("/log?{}{follow}", args.lines))?;
    let mut out = std::io::stdout().lock();
    for line in reply.lines() {
        let line = line.context("the gateway is gone")?;
        if args.place.json {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{}", shown(&serde_json::from_str(&line).context("the gateway sent no JSON")?))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn ask(place: &PlaceArgs, path: &str) -> anyhow::Result<BufReader<UnixStream>> {
    let gateway = place.gateway()?;
    let Some(reply) = control::ask(&state::control_socket(&gateway), "GET", path)? else {
        bail!("no gateway runs on {}; start it with assay up", gateway.display());
    };
    Ok(reply)
}

/// A line for a person.
fn shown(line: &Value) -> String {
    if let Some(lost) = line["lost"].as_u64() {
        return format!("({lost} lines were lost: they came faster than they were read)");
    }
    let providers: Vec<String> =
        line["providers"].as_array().into_iter().flatten().map(|id| word(id).chars().take(10).collect()).collect();
    format!(
        "{} {} key {} {} {} {} + {} tokens, {} units, first {} s, all {} s {}",
        when::rfc3339(line["time"].as_u64().unwrap_or_default()),
        word(&line["receipt"]),
        word(&line["keyId"]),
        word(&line["model"]),
        word(&line["end"]),
        word(&line["promptTokens"]),
        word(&line["outputTokens"]),
        word(&line["charged"]),
        seconds(&line["firstTokenMillis"]),
        seconds(&line["millis"]),
        providers.join(","),
    )
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn seconds(millis: &Value) -> String {
    millis.as_u64().map_or_else(|| "-".into(), |millis| format!("{}.{:03}", millis / 1000, millis % 1000))
}
