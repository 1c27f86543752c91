//! Whole disputes on the embedded chain with the deployed contracts: every kind of lie is convicted, no truth is, and
//! who is silent loses.

mod courtroom;

use assay_chain::{Bytes, bindings::trial::Trial, client::Phase};
use assay_graph::{Kind, Lie, Site, Tree};
use assay_testkit::models::{Family, Format, TinyLlama};
use assay_types::{Amount, Finish};
use assay_verify::dispute::provider;
use assay_verify::dispute::watch::{Role, Turn, Watch};
use courtroom::{BOND, Courtroom, Model, PENALTY, REWARD, Request, STAKE};

use alloy_sol_types::{SolCall, SolInterface};

fn q8() -> TinyLlama {
    TinyLlama { format: Format::Q8_0, layers: 1, ..TinyLlama::default() }
}

/// A lie in the first operation of a kind, at the last position, somewhere in its numbers.
fn lie_in(model: &Model, request: &Request, kind: Kind, seed: u64) -> Option<Lie> {
    let ops = model.traced.graph().ops();
    let op = ops.iter().position(|op| op.kind == kind)?;
    let position = request.positions() - 1;
    let honest = model.trace(request, None);
    let leaves = honest.count(Tree::Leaves { position, op: op as u16 }).unwrap();
    let leaf = seed % leaves;
    // Behind the last number there are zeros: a lie there is another case.
    let numbers = ops[op].count_at(position.into(), request.input.len() as u64);
    let slots = match ops[op].block() {
        Some(values) => values as u64 + 1,
        None => (numbers - 32 * leaf).min(32),
    };
    let site = Site { position, op: op as u16, leaf: leaf as u32, slot: (seed / 7 % slots) as u16 };
    let is_byte = ops[op].block().is_some_and(|values| usize::from(site.slot) < values);
    let bits = match kind {
        // A bogus challenger has to open the logit of what it takes for chosen.
        Kind::Choose => 1,
        _ if is_byte => 8,
        _ => 23,
    };
    let flip = 1 << (seed / 3 % bits);
    Some(Lie { site, flip, from_step: seed / 5 % 4 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_in_every_kind_of_operation_is_convicted() {
    let room = Courtroom::start().await;
    let models = [
        q8(),
        TinyLlama { family: Family::Qwen2, format: Format::F16, layers: 1, ..TinyLlama::default() },
        TinyLlama {
            family: Family::Gemma2,
            format: Format::Q4K,
            layers: 1,
            d_model: 256,
            heads: 16,
            ffn: 256,
            ..TinyLlama::default()
        },
    ];
    let mut kinds: Vec<Kind> = Kind::ALL.to_vec();
    let mut moves_max = 0;
    for (index, model) in models.into_iter().enumerate() {
        let model = Model::new(model);
        let left = std::mem::take(&mut kinds);
        for (n, kind) in left.into_iter().enumerate() {
            let request = Request::answered(&model, (100 * index + n) as u64);
            let Some(lie) = lie_in(&model, &request, kind, 1_000_003 * n as u64 + 17) else {
                kinds.push(kind);
                continue;
            };
            let mut game = room.challenge(&model, &request).await;
            let moves = game.play(&model.trace(&request, Some(lie)), &model.trace(&request, None)).await;
            assert!(game.is_convicted().await, "{kind:?}: {lie:?}");
            moves_max = moves_max.max(moves);
        }
    }
    assert!(kinds.is_empty(), "no model has {kinds:?}");
    assert!(moves_max <= 48, "{moves_max} moves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stake_moves_and_a_conviction_pays() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let request = Request::answered(&model, 1);
    let lie = lie_in(&model, &request, Kind::Product, 99).unwrap();
    let mut game = room.challenge(&model, &request).await;
    assert_eq!(room.owed_challenger().await, 0);
    game.play(&model.trace(&request, Some(lie)), &model.trace(&request, None)).await;
    assert_eq!(room.stake().await, STAKE - PENALTY);
    assert_eq!(room.owed_challenger().await, BOND + REWARD);
    assert_eq!(room.owed_sink().await, 0, "the rest is held for the payer and the sink");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_convicted_by_a_right_trace() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    // The first, one in the middle and the last, which is not fed to the model.
    for (seed, at) in [(1, 0), (2, 2), (3, 4)] {
        let mut request = Request::answered(&model, seed);
        request.output[at] ^= 1;
        let mut game = room.challenge(&model, &request).await;
        let honest = model.trace(&request, None);
        assert_eq!(game.play(&honest, &honest).await, 2, "one reveal and the conviction");
        assert!(game.is_convicted().await, "token {at}");
    }
}

/// A challenger whose trace is wrong: it finds a difference, and nothing convicts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_provider_gets_the_bond_of_a_bogus_challenger() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let kinds = [Kind::Token, Kind::Embed, Kind::Quantize, Kind::Product, Kind::Score, Kind::RunOut, Kind::Choose];
    for (n, kind) in kinds.into_iter().enumerate() {
        let request = Request::answered(&model, n as u64);
        let bogus = model.trace(&request, lie_in(&model, &request, kind, 31 * n as u64 + 5));
        let mut game = room.challenge(&model, &request).await;
        let honest = model.trace(&request, None);
        let refused = game.play_until_refused(&honest, &bogus).await;
        assert_eq!(refused, "NoFault", "{kind:?}");
        let (stake, owed) = (room.stake().await, room.owed_provider().await);
        room.world.chain.advance_time(3 * 3_600 + 1);
        game.room.provider_court().timeout(game.id).await.unwrap();
        assert_eq!((room.stake().await, room.owed_provider().await), (stake, owed + BOND), "{kind:?}");
        assert!(!game.is_convicted().await);
    }
    assert_eq!(room.stake().await, STAKE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_silent_loses() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let request = Request::answered(&model, 1);
    let mut game = room.challenge(&model, &request).await;
    let early = room.challenger_court().timeout(game.id).await.unwrap_err();
    assert_eq!(early.revert().unwrap().name, "NotLate");
    room.world.chain.advance_time(3 * 3_600 + 1);
    // The provider's move comes too late even if it is right.
    let honest = model.trace(&request, None);
    let dispute = game.dispute().await;
    let late = provider::answer(&honest, game.id, &dispute).unwrap();
    let late = room.provider_court().play(&late.calls).await.unwrap_err();
    assert_eq!(late.revert().unwrap().name, "TooLate");
    room.challenger_court().timeout(game.id).await.unwrap();
    game.play(&honest, &honest).await;
    assert!(game.is_convicted().await, "a silent provider");

    let request = Request::answered(&model, 2);
    let game = room.challenge(&model, &request).await;
    let dispute = game.dispute().await;
    let answer = provider::answer(&model.trace(&request, None), game.id, &dispute).unwrap();
    room.provider_court().play(&answer.calls).await.unwrap();
    room.world.chain.advance_time(3 * 3_600 + 1);
    room.provider_court().timeout(game.id).await.unwrap();
    assert_eq!(room.owed_provider().await, BOND, "a silent challenger");
}

/// A provider that shows one thing and then another is not heard; what it states at the end can be opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutated_reveal_is_refused_and_a_false_operand_convicted() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let honest = |request: &Request| model.trace(request, None);
    for (seed, kind) in [(1u64, Kind::Norm), (2, Kind::Product), (3, Kind::Embed), (4, Kind::Rotate), (5, Kind::Token)]
    {
        let request = Request::answered(&model, seed);
        let lie = lie_in(&model, &request, kind, 41 * seed).unwrap();
        let lied = model.trace(&request, Some(lie));
        let mut game = room.challenge(&model, &request).await;
        let mut refused = 0;
        let mut mutate = |call: &Bytes, phase: Phase| -> Option<Bytes> {
            match Trial::TrialCalls::abi_decode(call).unwrap() {
                // The first reveal says what the trace is.
                Trial::TrialCalls::reveal(mut call) if phase != Phase::RevealPositions => {
                    call.children[0].0[0] ^= 1;
                    Some(call.abi_encode().into())
                }
                Trial::TrialCalls::revealNumbers(mut call) => {
                    let mut leaves = call.leaves.to_vec();
                    *leaves.last_mut().unwrap() ^= 1;
                    call.leaves = leaves.into();
                    Some(call.abi_encode().into())
                }
                _ => None,
            }
        };
        game.play_with(&lied, &honest(&request), &mut mutate, &mut refused).await;
        assert!(refused >= 2, "{refused} mutated reveals were refused");
        assert!(game.is_convicted().await, "{kind:?}");

        // The same lie, and then each operand in turn stated so that the step comes out as lied.
        for byte in [0usize, 3, 7, 20] {
            let request = Request::answered(&model, 100 * seed + byte as u64);
            let lied = model.trace(&request, Some(lie));
            let mut game = room.challenge(&model, &request).await;
            game.state_wrongly(&lied, &honest(&request), byte).await;
            assert!(game.is_convicted().await, "{kind:?}, byte {byte} of the operands");
        }
    }
}

/// Everything can be read back from the chain: a challenger that is started again before each of its moves wins, also
/// against a provider whose moves are signed and sent by somebody else, several in a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenger_goes_on_after_a_restart_whoever_sent_the_moves() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let request = Request::answered(&model, 1);
    let lie = lie_in(&model, &request, Kind::Score, 7).unwrap();
    let (lied, honest) = (model.trace(&request, Some(lie)), model.trace(&request, None));
    let mut game = room.challenge(&model, &request).await;
    for turn in 0.. {
        assert!(turn < 100, "the game ends");
        game.watch = Watch::new(room.challenger.client.clone(), room.challenger_court().clone(), game.id, game.since);
        match game.watch.turn(Role::Challenger(&game.documents), &honest).await.unwrap() {
            Turn::Over => break,
            Turn::Ours(step) => {
                room.challenger_court().play(&step.calls).await.unwrap();
            }
            Turn::Theirs { .. } => {
                let dispute = game.dispute().await;
                let answer = provider::answer(&lied, game.id, &dispute).unwrap();
                room.relay_for_provider(game.id, dispute.turn, &answer.calls[0]).await;
            }
        }
    }
    assert!(game.is_convicted().await);
    assert_eq!(room.challenger_court().block_of(game.id, 0).await.unwrap(), Some(game.since));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_needs_a_request_with_a_trace_and_a_model_with_a_graph() {
    let room = Courtroom::start().await;
    let model = Model::new(q8());
    let request = Request::answered(&model, 1);
    let (signed, mut case) = room.case(&model, &request);
    case.opsRoot.0[0] ^= 1;
    let refused = room.challenger_court().challenge(&signed, model.manifest.canonical_bytes(), case).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NotTheCase");
    let empty = Request { output: vec![], finish: Finish::Cancelled, ..Request::answered(&model, 2) };
    let (signed, case) = room.case(&model, &empty);
    let refused = room.challenger_court().challenge(&signed, model.manifest.canonical_bytes(), case).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NoTrace");
    assert_eq!(room.challenger.token.balance_of(room.challenger.client.address()).await.unwrap(), Amount(STAKE));
}
