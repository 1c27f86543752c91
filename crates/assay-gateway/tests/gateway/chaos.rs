//! Streams while providers are killed, stalled, slowed, busy and restarted at random, by a seed. A client gets exactly the
//! undisturbed bytes or an error that says so; nobody pays for a token that nobody signed for; nothing is left over.
//!
//! `ASSAY_CHAOS_STREAMS` and `ASSAY_CHAOS_SEED` make it longer, or another one.

use crate::world::{PATIENCE, Reply, World, story, text_of};
use assay_gateway::GatewayConfig;
use assay_net::RefusedCode;
use assay_testkit::fake_provider::Trick;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const PROVIDERS: u8 = 4;
const AT_ONCE: usize = 8;
/// About 190 tokens: two checkpoints.
const WORDS: usize = 50;
const TOKENS: u64 = 190;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn trick(&mut self) -> Trick {
        let at = usize::try_from(self.below(TOKENS)).unwrap();
        match self.below(8) {
            0 => Trick::DieAt(at),
            1 => Trick::HoldAt(at),
            2 => Trick::QuitAt(at),
            3 => Trick::Refuse(RefusedCode::Busy),
            _ => Trick::Honest,
        }
    }
}

fn impatient(config: &mut GatewayConfig) {
    config.timeouts.first_token = Duration::from_millis(400);
    config.timeouts.next_token = Duration::from_millis(400);
}

/// Something happens to one provider, who may be dead: then it is restarted.
async fn disturb(world: &World, random: &mut Random) {
    let provider = &world.providers[usize::try_from(random.below(PROVIDERS.into())).unwrap()];
    if provider.is_dead() {
        provider.revive().await;
    } else if random.below(4) == 0 {
        // What was stalled was only slow.
        provider.release();
    } else {
        provider.set(random.trick());
    }
}

/// How the streams ended.
#[derive(Default, Debug)]
struct Tally {
    whole: usize,
    broken: usize,
    refused: usize,
    /// Of whole answers: others cost nothing.
    receipts: Vec<String>,
}

impl Tally {
    fn add(&mut self, is_stream: bool, reply: &Reply) {
        let whole = self.whole;
        if reply.status != 200 {
            let error = &reply.json()["error"];
            assert!(matches!(reply.status.as_u16(), 429 | 502 | 503) && error["code"].is_string(), "{}", reply.text());
            self.refused += 1;
        } else if !is_stream {
            assert_eq!(reply.content(), story(WORDS));
            self.whole += 1;
        } else {
            let events = reply.events();
            let (text, last) = (text_of(&events), events.last().unwrap());
            if last == "[DONE]" {
                assert_eq!(text, story(WORDS));
                self.whole += 1;
            } else {
                assert_eq!(last["error"]["code"], "stream_broken", "{last}");
                assert!(story(WORDS).starts_with(&text), "{text:?} is no beginning");
                self.broken += 1;
            }
        }
        if self.whole > whole {
            self.receipts.push(reply.receipt_id());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_all_bytes_or_an_error_while_providers_come_and_go() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (streams, seed) = (number("ASSAY_CHAOS_STREAMS", 80), number("ASSAY_CHAOS_SEED", 7));
    let world = Arc::new(World::start_with(PROVIDERS, &story(WORDS), impatient).await);
    let mut random = Random(seed);
    let mut tally = Tally::default();
    let mut clients = JoinSet::new();
    for n in 0..streams {
        if clients.len() == AT_ONCE {
            let (is_stream, reply) = clients.join_next().await.unwrap().unwrap();
            tally.add(is_stream, &reply);
        }
        disturb(&world, &mut random).await;
        // With nobody there, every answer is the same error.
        if world.gateway.routable().is_empty() {
            restart_dead(&world).await;
            assert!(world.gateway.ready(1, PATIENCE).await, "a provider comes back in time");
        }
        let (world, is_stream) = (Arc::clone(&world), n % 4 != 3);
        clients.spawn(async move { (is_stream, world.chat(json!({"stream": is_stream, "seed": 1})).await) });
    }
    while let Some(ended) = clients.join_next().await {
        let (is_stream, reply) = ended.unwrap();
        tally.add(is_stream, &reply);
    }
    println!("{} whole, {} broken, {} refused", tally.whole, tally.broken, tally.refused);
    assert!(tally.whole as u64 > streams / 2, "{tally:?}");
    let metrics = world.send(axum::http::Method::GET, "/metrics", None, "").await.text();
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("assay_gateway_failovers_total") > 0 && count("assay_gateway_retries_total") > 0, "{metrics}");
    assert!(
        !metrics.contains("assay_gateway_provider_faults_total{"),
        "an honest provider is not called a liar: {metrics}"
    );
    restart_dead(&world).await;
    check_bills(&world, &tally.receipts).await;
}

/// Everybody is there, and what was stalled goes on.
async fn restart_dead(world: &World) {
    for provider in &world.providers {
        if provider.is_dead() {
            provider.revive().await;
        }
        provider.set(Trick::Honest);
    }
}

/// The key has paid exactly for what its answers' receipts say, and each of them covers tokens of the one right answer.
async fn check_bills(world: &World, receipts: &[String]) {
    let mut charged = 0;
    for id in receipts {
        let reply = world.get(&format!("/v1/receipts/{id}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let file = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(world.text_of(&file), story(WORDS));
        charged += file.parts.iter().map(|part| part.signed.receipt.charged.0).sum::<u128>();
    }
    let keys = world.gateway.keys().list().await.unwrap();
    assert_eq!(keys[0].spent.0, charged);
    // Gateway and providers agree on every unit, once the lost streams were asked for.
    assert!(world.settled().await >= charged);
}
