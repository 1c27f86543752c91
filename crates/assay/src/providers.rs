//! `assay providers`: who answers for the gateway on this machine, at which price, and what each one's past is worth and
//! why.

use crate::key::{PlaceArgs, columns};
use crate::{control, print, state, when};
use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;
use std::io::Read;

/// Arguments of `assay providers`.
#[derive(Args)]
pub struct ProvidersArgs {
    /// One provider, by the beginning of its id: its score's components and the events behind them
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs `assay providers`.
pub fn run(args: &ProvidersArgs) -> anyhow::Result<()> {
    let gateway = args.place.gateway()?;
    let Some(mut reply) = control::ask(&state::control_socket(&gateway), "GET", "/providers")? else {
        bail!("no gateway runs on {}; start it with assay up", gateway.display());
    };
    let mut text = String::new();
    reply.read_to_string(&mut text).context("the gateway's answer broke off")?;
    let mut list: Value = serde_json::from_str(&text).context("the gateway's answer is no list")?;
    if let Some(wanted) = &args.id {
        let is_wanted = |provider: &Value| {
            provider["id"].as_str().is_some_and(|id| id.to_ascii_lowercase().starts_with(&wanted.to_ascii_lowercase()))
        };
        let found = list["data"].as_array_mut().context("the gateway's answer is no list")?;
        found.retain(is_wanted);
        ensure!(!found.is_empty(), "no provider's id begins with {wanted}; assay providers lists them");
    }
    if args.place.json {
        return print(&list["data"].to_string());
    }
    let providers = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    if args.id.is_none() {
        return print(&table(providers));
    }
    for provider in providers {
        print(&table(std::slice::from_ref(provider)))?;
        print(&story(provider))?;
    }
    Ok(())
}

/// One line for each model of each provider.
fn table(providers: &[Value]) -> String {
    let head = ["PROVIDER", "CLASS", "MODEL", "IN/OUT PER M", "LOAD", "SCORE", "STATE"].map(str::to_owned);
    let mut rows = vec![head];
    for provider in providers {
        let offer = &provider["offer"];
        let load = match offer["capacity"].as_u64() {
            Some(capacity) => format!("{}+{}/{capacity}", word(&offer["running"]), word(&offer["queued"])),
            None => "-".into(),
        };
        let models = offer["models"].as_array().map(Vec::as_slice).unwrap_or_default();
        let nothing = [Value::Null];
        for model in if models.is_empty() { &nothing[..] } else { models } {
            rows.push([
                word(&provider["id"]),
                word(&model["class"]),
                word(&model["name"]),
                match model {
                    Value::Null => "-".into(),
                    model => format!("{}/{}", word(&model["input_per_million"]), word(&model["output_per_million"])),
                },
                load.clone(),
                share(&provider["score_ppm"]),
                condition(provider).into(),
            ]);
        }
    }
    columns(&rows)
}

/// Why a provider is or is not asked.
fn condition(provider: &Value) -> &'static str {
    if provider["convictions"].as_u64() > Some(0) {
        "convicted"
    } else if provider["score_ppm"] == 0 {
        "deviates"
    } else if provider["offer"]["draining"] == true {
        "draining"
    } else if provider["ready"] == true {
        "ready"
    } else if provider["offer"].is_null() {
        "away"
    } else {
        "waiting"
    }
}

/// What a score is made of, and the events that it follows from, the latest first.
fn story(provider: &Value) -> String {
    let mut lines = vec![
        String::new(),
        format!(
            "score {} = floor {} + earned {} - offences {}{}",
            share(&provider["score_ppm"]),
            share(&provider["floor_ppm"]),
            share(&provider["earned_ppm"]),
            share(&provider["offences_ppm"]),
            if provider["score_ppm"] == 0 { "; it is 0 while the provider is shut out" } else { "" }
        ),
        format!(
            "proven {} tokens, matched {} tokens, fees that count {} units, convictions {}, deviations {}",
            word(&provider["proven_tokens"]),
            word(&provider["matched_tokens"]),
            word(&provider["proven_fees"]),
            word(&provider["convictions"]),
            share(&provider["deviations_ppm"]),
        ),
        format!("{} of its answers are looked at", share(&provider["audit_rate_ppm"])),
        String::new(),
    ];
    let events = provider["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |event: &Value| {
        [
            when::rfc3339(event["at"].as_u64().unwrap_or_default()),
            word(&event["deed"]),
            word(&event["tokens"]),
            word(&event["odd"]),
            word(&event["fees"]),
            match (event["first_millis"].as_u64(), event["millis"].as_u64()) {
                (Some(first), Some(rest)) => format!("{first}+{rest} ms"),
                _ => "-".into(),
            },
            word(&event["receipt"]),
        ]
    };
    let head = ["WHEN", "DEED", "TOKENS", "ODD", "FEES", "TIME", "RECEIPT"].map(str::to_owned);
    lines.push(columns(&std::iter::once(head).chain(events.iter().map(row)).collect::<Vec<_>>()));
    lines.join("\n")
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Millionths as a percentage.
fn share(ppm: &Value) -> String {
    ppm.as_u64().map_or_else(|| "-".into(), |ppm| format!("{}.{} %", ppm / 10_000, ppm % 10_000 / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_provider_is_a_line_for_each_model_and_its_story_has_every_component() {
        let model = json!({"name": "m", "class": "tolerant", "input_per_million": "4", "output_per_million": "8"});
        let provider = json!({
            "id": "0x01", "ready": true, "score_ppm": 550_000, "floor_ppm": 100_000, "earned_ppm": 450_000,
            "offences_ppm": 0, "convictions": 0, "proven_fees": "7", "proven_tokens": 11, "matched_tokens": 13,
            "deviations_ppm": 0, "audit_rate_ppm": 20_000,
            "offer": {"models": [model], "capacity": 16, "running": 2, "queued": 1, "draining": false},
            "events": [{"at": 0, "deed": "answered", "tokens": 9, "fees": null, "receipt": "0xab", "first_millis": 5, "millis": 70}],
        });
        let shown = table(std::slice::from_ref(&provider));
        for expect in ["0x01", "tolerant", "4/8", "2+1/16", "55.0 %", "ready"] {
            assert!(shown.contains(expect), "{expect} in {shown}");
        }
        let told = story(&provider);
        for expect in ["floor 10.0 %", "earned 45.0 %", "matched 13 tokens", "2.0 % of", "answered", "5+70 ms", "0xab"]
        {
            assert!(told.contains(expect), "{expect} in {told}");
        }
        let gone = json!({"id": "0x02", "ready": false, "score_ppm": 0, "convictions": 1});
        assert!(table(&[gone]).contains("convicted"));
    }
}
