//! Subscriptions over WebSocket (`GET /`): new blocks, logs and pending transactions as they come.
//!
//! Like a filter, a subscription is a position and collects nothing: when the chain has moved, each connection reads from
//! the blocks what its client has not had. So a slow client costs no memory; it is told later, and cut off when it does
//! not read at all. Every other method is answered as over HTTP.

use super::{
    EmbeddedChain,
    filters::logs_between,
    rpc::{self, Params, RpcError},
    sealer::Shared,
    views,
};
use alloy_primitives::U64;
use alloy_rpc_types_eth::Filter;
use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use serde_json::{Value, json};

/// Largest message either way that a client may send.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: usize = 64;
/// Blocks that are told in one go, between looks at what the client sends.
const BLOCKS_AT_ONCE: u64 = 256;

/// What a client wants to hear, and from where on.
enum Topic {
    Heads,
    Logs(Box<Filter>),
    Pending { next: u64 },
}

struct Subscription {
    id: u64,
    topic: Topic,
}

/// One connection's subscriptions.
#[derive(Default)]
struct Desk {
    subscriptions: Vec<Subscription>,
    last_id: u64,
    /// The next block to tell of; those before the first subscription are not.
    next_block: u64,
}

pub(super) async fn upgrade(State(chain): State<EmbeddedChain>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX).on_upgrade(move |socket| async move {
        if let Err(error) = converse(&chain, socket).await {
            tracing::debug!(%error, "a WebSocket ended");
        }
    })
}

async fn converse(chain: &EmbeddedChain, mut socket: WebSocket) -> Result<(), axum::Error> {
    let mut moved = chain.0.shared.moved.subscribe();
    let mut desk = Desk::default();
    // Quiet subscribers are not cut off as idle: they answer pings.
    let mut pings = tokio::time::interval(chain.0.shared.options.idle_timeout / 3);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = socket.recv() => {
                let body = match message.transpose()? {
                    Some(Message::Text(text)) => text.as_bytes().to_vec(),
                    Some(Message::Binary(bytes)) => bytes.to_vec(),
                    Some(Message::Ping(_) | Message::Pong(_)) => continue,
                    Some(Message::Close(_)) | None => return Ok(()),
                };
                if let Some(answer) = answer(chain, &mut desk, body).await {
                    socket.send(Message::Text(answer.into())).await?;
                }
            }
            changed = moved.changed(), if !desk.subscriptions.is_empty() => {
                if changed.is_err() {
                    return Ok(());
                }
                while let Some(news) = desk.news(chain).await {
                    for text in news {
                        socket.send(Message::Text(text.into())).await?;
                    }
                }
            }
            _ = pings.tick() => socket.send(Message::Ping(Default::default())).await?,
        }
    }
}

/// The answer to one message, if it wants one.
async fn answer(chain: &EmbeddedChain, desk: &mut Desk, body: Vec<u8>) -> Option<String> {
    let request: Option<Value> = serde_json::from_slice(&body).ok();
    let method = request.as_ref().and_then(|request| request.get("method")).and_then(Value::as_str);
    let own = match (method, &request) {
        (Some(method @ ("eth_subscribe" | "eth_unsubscribe")), Some(request)) => {
            let params = request.get("params").cloned().unwrap_or(Value::Null);
            let id = request.get("id").cloned().unwrap_or(Value::Null);
            Some((id, desk.dispatch(&chain.0.shared, method, params)))
        }
        _ => None,
    };
    if let Some((id, result)) = own {
        return Some(rpc::envelope(id, result).to_string());
    }
    let answered = chain.run_blocking(move |chain| rpc::answer_body(chain, &body)).await;
    match answered {
        Ok(answer) => answer.and_then(|bytes| String::from_utf8(bytes).ok()),
        Err(error) => Some(rpc::envelope(Value::Null, Err(error)).to_string()),
    }
}

impl Desk {
    fn dispatch(&mut self, shared: &Shared, method: &str, params: Value) -> Result<Value, RpcError> {
        let params = Params::new(params)?;
        if method == "eth_unsubscribe" {
            let id: u64 = params.get::<U64>(0, "subscription")?.to();
            let before = self.subscriptions.len();
            self.subscriptions.retain(|subscription| subscription.id != id);
            return Ok(json!(self.subscriptions.len() < before));
        }
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return Err(RpcError::limit(format!("more than {SUBSCRIPTIONS_MAX} subscriptions on a connection")));
        }
        let topic = match params.get::<String>(0, "subscription")?.as_str() {
            "newHeads" => Topic::Heads,
            "logs" => {
                let filter: Filter = params.opt(1, "filter")?.unwrap_or_default();
                Topic::Logs(Box::new(filter))
            }
            "newPendingTransactions" => Topic::Pending { next: shared.filters.pending_since(u64::MAX).1 },
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(RpcError::invalid_params(format!("no subscription {shown:?}")));
            }
        };
        if self.subscriptions.is_empty() {
            self.next_block = shared.store.snapshot()?.head()?.header.number + 1;
        }
        self.last_id += 1;
        self.subscriptions.push(Subscription { id: self.last_id, topic });
        Ok(json!(U64::from(self.last_id)))
    }

    /// What there is to tell now; `None` if nothing.
    async fn news(&mut self, chain: &EmbeddedChain) -> Option<Vec<String>> {
        let mut desk = std::mem::take(self);
        let read = chain.run_blocking(move |chain| {
            let news = desk.read(&chain.0.shared);
            (desk, news)
        });
        match read.await {
            Ok((desk, news)) => {
                *self = desk;
                match news {
                    Ok(news) => (!news.is_empty()).then_some(news),
                    Err(error) => {
                        tracing::warn!(%error, "subscribers were not told of a block");
                        None
                    }
                }
            }
            // Logged where it failed; the subscriptions went with it.
            Err(_) => None,
        }
    }

    fn read(&mut self, shared: &Shared) -> Result<Vec<String>, RpcError> {
        let snapshot = shared.store.snapshot()?;
        let head = snapshot.head()?.header.number;
        let last = head.min(self.next_block.saturating_add(BLOCKS_AT_ONCE - 1));
        let mut news = Vec::new();
        let mut tell = |id: u64, result: Value| {
            let params = json!({"subscription": U64::from(id), "result": result});
            news.push(json!({"jsonrpc": "2.0", "method": "eth_subscription", "params": params}).to_string());
        };
        for Subscription { id, topic } in &mut self.subscriptions {
            match topic {
                Topic::Pending { next } => {
                    let (hashes, after) = shared.filters.pending_since(*next);
                    *next = after;
                    hashes.into_iter().for_each(|hash| tell(*id, json!(hash)));
                }
                Topic::Heads => {
                    for number in self.next_block..=last {
                        tell(*id, views::head(&snapshot, number)?);
                    }
                }
                Topic::Logs(filter) if self.next_block <= last => {
                    for log in logs_between(&snapshot, filter, self.next_block, last)? {
                        tell(*id, json!(log));
                    }
                }
                Topic::Logs(_) => {}
            }
        }
        self.next_block = self.next_block.max(last + 1);
        Ok(news)
    }
}
