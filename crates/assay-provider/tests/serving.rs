//! Jobs over a socket: streamed, paid chunk by chunk, cancelled, cut, refused.

mod support;

use assay_engine::EngineOptions;
use assay_net::{ClientFrame, Pay, ProviderFrame, RefusedCode};
use assay_types::{Address, Amount, Finish, Prices, answer_commitment};
use std::{sync::Arc, time::Duration};
use support::{
    Channel, Client, DEPOSIT, Opened, PRICES, Setup, Wallet, World, assert_exact, embedding, job, key, limits, vectors,
};

#[tokio::test]
async fn a_job_is_streamed_checkpointed_paid_and_receipted() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;

    let job = job(150);
    let outcome = client.run(&job).await;
    assert_eq!((outcome.output.len(), outcome.done.finish), (150, Finish::Length));
    assert_eq!(outcome.checkpoints, [64, 128]);
    assert_exact(&job, &outcome.output, Finish::Length);
    let receipt = outcome.done.receipt.receipt;
    // Five input tokens at two units, 150 output tokens at one.
    assert_eq!((receipt.charged, receipt.charged_total), (Amount(160), Amount(160)));
    assert_eq!(world.wallet.charged_total(), 160);

    // The connection carries the next job; the total goes on.
    let next = client.run(&support::job(10)).await;
    assert_eq!((next.done.receipt.receipt.charged_total, next.checkpoints.len()), (Amount(180), 0));
    let stats = provider.stats().await.unwrap();
    assert_eq!((stats.receipts, stats.charged_total), (2, Amount(180)));
    let report = client.channel_report().await;
    assert_eq!((report.charged_total, report.open_streams), (Amount(180), 0));
    assert_eq!(report.latest, Some(next.done));
}

/// Vectors have the encoder's own bits, are one frame and one receipt, and cost what was read.
#[tokio::test]
async fn vectors_are_exact_and_paid_by_the_tokens_that_were_read() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let texts = vec![vec![2, 5, 6, 3], vec![2, 9, 3], vec![2; 640]];
    let job = embedding(&texts);
    let outcome = client.run(&job).await;
    assert_eq!(outcome.output, vectors(&texts));
    let receipt = outcome.done.receipt.receipt;
    assert_eq!((outcome.done.finish, receipt.prompt_tokens, receipt.output_tokens), (Finish::Length, 647, 3 * 64));
    assert_eq!((receipt.charged, outcome.checkpoints.len()), (Amount(2 * 647), 0));
    assert_eq!(provider.transcript(receipt.request_hash).await.unwrap(), None);

    // Sealed, and beside text on the same channel.
    let sealed = embedding(&texts[..1]);
    let mut opened = client.open_sealed(&sealed).await;
    let ProviderFrame::Committed(commitment) = client.next().await.unwrap() else { panic!("no commitment") };
    client.send(ClientFrame::Show).await;
    let ProviderFrame::Salt(salt) = client.next().await.unwrap() else { panic!("no salt") };
    let done = loop {
        if let Some(done) = client.step(&mut opened).await {
            break done;
        }
    };
    assert_eq!(opened.output, vectors(&texts[..1]));
    let response = done.receipt.receipt.response_hash;
    assert_eq!(commitment, answer_commitment(provider.id(), opened.request, salt, response));
    assert_eq!(client.run(&support::job(10)).await.output.len(), 10);

    // Many at once share steps; the bits do not change.
    let mut clients = Vec::new();
    for n in 3..20 {
        let mut client = world.client(&provider).await;
        let texts = vec![vec![2, n, 3], vec![n; 90]];
        clients.push(tokio::spawn(async move { (client.run(&embedding(&texts)).await.output, vectors(&texts)) }));
    }
    for client in clients {
        let (served, computed) = client.await.unwrap();
        assert_eq!(served, computed);
    }

    // Each model does what it is for.
    let long = embedding(&[vec![2; 641]]);
    let text = assay_types::Job { model_id: support::ENCODER_ID, ..support::job(10) };
    let vector = assay_types::Job { model_id: support::MODEL, ..embedding(&texts) };
    for job in [long, text, vector] {
        let open = client.open_frame(&job);
        assert_eq!(client.refused(open).await.code, RefusedCode::BadJob);
    }
}

/// Nothing of the answer is sent before all of it is committed to, and what is shown then opens the commitment.
#[tokio::test]
async fn a_sealed_job_is_committed_to_and_shown_when_asked() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let plain = client.run(&job(150)).await;

    let sealed = job(150);
    let opened = client.open_sealed(&sealed).await;
    let ProviderFrame::Committed(commitment) = client.next().await.unwrap() else { panic!("a commitment") };
    client.send(ClientFrame::Show).await;
    let ProviderFrame::Salt(salt) = client.next().await.unwrap() else { panic!("a salt") };
    let outcome = client.finish(opened).await;
    let response = outcome.done.receipt.receipt.response_hash;
    assert_eq!(commitment, answer_commitment(provider.id(), sealed.request_hash(), salt, response));
    assert_eq!((outcome.output, outcome.checkpoints), (plain.output, plain.checkpoints));

    // Who does not want to see it pays for the input.
    let unwanted = job(100);
    let mut opened = client.open_sealed(&unwanted).await;
    assert!(matches!(client.next().await.unwrap(), ProviderFrame::Committed(_)));
    client.send(ClientFrame::Cancel).await;
    let done = client.step(&mut opened).await.expect("the end");
    assert_eq!((done.finish, done.receipt.receipt.output_tokens), (Finish::Cancelled, 0));
}

#[tokio::test]
async fn log_probabilities_come_with_the_tokens_if_the_job_asks() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let plain = client.run(&job(150)).await;
    assert!(plain.scores.is_empty());
    let asked = assay_types::Job { logprobs: Some(3), ..job(150) };
    let outcome = client.run(&asked).await;
    assert_eq!(outcome.output, plain.output);
    assert_eq!(outcome.scores.len(), 150);
    assert!(outcome.scores.iter().all(|score| score.top.len() == 3 && score.top[0].1 <= 0));
}

#[tokio::test]
async fn an_output_of_whole_chunks_ends_with_one_receipt() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let outcome = client.run(&job(64)).await;
    assert_eq!((outcome.output.len(), outcome.checkpoints.len()), (64, 0));
    let outcome = client.run(&job(128)).await;
    assert_eq!((outcome.output.len(), outcome.checkpoints), (128, vec![64]));
}

#[tokio::test]
async fn a_resumed_job_goes_on_with_the_same_tokens() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let job = job(100);
    let whole = client.run(&job).await;
    let rest = client.run(&job.resumed_after(&whole.output[..70])).await;
    assert_eq!(rest.output, whole.output[70..]);
    // The prefix is input.
    assert_eq!(rest.done.receipt.receipt.prompt_tokens, 75);
}

#[tokio::test]
async fn an_unpaid_stream_stops_within_one_chunk_and_bills_what_was_signed() {
    let setup = Setup {
        limits: assay_provider::Limits { pay_timeout: Duration::from_millis(50), ..limits() },
        ..Setup::default()
    };
    let world = World::new(setup);
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let mut opened = client.open(&job(300)).await;
    let done = loop {
        if let Some(done) = client.step(&mut opened).await {
            break done;
        }
    };
    // One chunk paid, one more on trust.
    assert_eq!((opened.output.len(), opened.checkpoints.as_slice()), (128, &[64][..]));
    assert_eq!((done.finish, done.receipt.receipt.output_tokens), (Finish::Open, 64));
    assert_eq!(world.wallet.charged_total(), 74);
}

#[tokio::test]
async fn a_cancelled_job_bills_the_tokens_that_were_sent() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let mut opened = client.open(&job(400)).await;
    while opened.output.is_empty() {
        assert!(client.step(&mut opened).await.is_none());
    }
    client.send(ClientFrame::Cancel).await;
    let done = loop {
        if let Some(done) = client.step(&mut opened).await {
            break done;
        }
    };
    let receipt = done.receipt.receipt;
    if done.finish == Finish::Cancelled {
        assert_eq!(receipt.output_tokens, opened.output.len() as u64);
    } else {
        // The first chunk was complete and unpaid tokens followed it.
        assert_eq!((done.finish, receipt.output_tokens), (Finish::Open, 64));
    }
    assert!(opened.output.len() <= 128);
    // Late frames of the last job are no error, and the connection goes on.
    client.send(ClientFrame::Cancel).await;
    let outcome = client.run(&job(5)).await;
    assert_eq!(outcome.done.receipt.receipt.charged_total.0, receipt.charged.0 + 15);
}

#[tokio::test]
async fn a_job_cancelled_before_its_first_token_bills_its_input() {
    // One place in the batch, taken by a job that waits for its payment.
    let engine = EngineOptions { threads: 1, sequences_max: 1, ..EngineOptions::default() };
    let world = World::new(Setup { engine, ..Setup::default() });
    let provider = world.start().await;
    let mut first = world.client(&provider).await;
    let held = first.open(&job(400)).await;
    let mut second = world.client(&provider).await;
    let mut opened = second.open(&job(10)).await;
    second.send(ClientFrame::Cancel).await;
    let done = second.step(&mut opened).await.unwrap();
    assert_eq!((done.finish, done.receipt.receipt.output_tokens), (Finish::Cancelled, 0));
    assert_eq!(done.receipt.receipt.charged, Amount(10));
    let outcome = first.finish(held).await;
    assert_eq!(outcome.output.len(), 400);
}

#[tokio::test]
async fn two_jobs_share_a_channel_and_their_charges_add_up() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let (mut one, mut two) = (world.client(&provider).await, world.client(&provider).await);
    let (first, second) = (job(200), job(170));
    let (first, second) = tokio::join!(one.run(&first), two.run(&second));
    assert_eq!((first.output.len(), second.output.len()), (200, 170));
    // Same prompt and seed, another nonce: the same text.
    assert_eq!(first.output[..170], second.output);
    assert_eq!(world.wallet.charged_total(), 210 + 180);
    let totals = [first, second].map(|outcome| outcome.done.receipt.receipt.charged_total.0);
    assert_eq!(totals.into_iter().max(), Some(390));
}

#[tokio::test]
async fn a_client_that_neither_reads_nor_pays_holds_up_nobody() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut slow = world.client(&provider).await;
    let held = slow.open(&job(400)).await;
    let mut other = world.client(&provider).await;
    assert_eq!(other.run(&job(300)).await.output.len(), 300);
    // It goes on where it stood.
    assert_eq!(slow.finish(held).await.output.len(), 400);
}

/// Asks until the request has ended; every question waits for its answer.
async fn ended(client: &mut Client, opened: &Opened) -> assay_net::ReceiptReport {
    loop {
        let report = client.receipt_report(opened.request).await;
        if !report.is_running {
            return report;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_finds_its_receipt_later() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let mut opened = client.open(&job(400)).await;
    while opened.checkpoints.is_empty() {
        assert!(client.step(&mut opened).await.is_none());
    }
    drop(client);
    let mut client = world.client(&provider).await;
    let last = ended(&mut client, &opened).await.last.unwrap();
    // Not paid beyond the checkpoint.
    assert_eq!((last.finish, last.receipt.receipt.output_tokens), (Finish::Open, 64));
    client.book(&opened, &last);
    client.wallet.purse.lock().unwrap().close(opened.request).unwrap();
    assert_eq!(client.channel_report().await.charged_total.0, world.wallet.charged_total());

    // A request is served once.
    let mut again = client.open_frame(&job(400));
    again.job = opened.job.clone();
    assert_eq!(client.refused(again).await.code, RefusedCode::Duplicate);
    // And that is what is said, whatever else is wrong: else its payer would take it for not charged.
    let mut again = client.open_frame(&job(400));
    (again.job, again.grant) = (opened.job.clone(), Amount::ZERO);
    assert_eq!(client.refused(again).await.code, RefusedCode::Duplicate);
}

#[tokio::test]
async fn the_offer_is_signed_and_shows_the_load() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let offer = client.offer().await;
    offer.verify(world.setup.network.chain_id).unwrap();
    assert_eq!(offer.offer.provider, provider.id());
    assert_eq!((offer.offer.capacity, offer.offer.running, offer.offer.draining), (64 + 8, 0, false));
    let model = &offer.offer.models[0];
    assert_eq!((model.name.as_str(), model.context_length, model.prices), ("tiny", 512, PRICES));

    let mut busy = world.client(&provider).await;
    let mut opened = busy.open(&job(400)).await;
    while opened.output.is_empty() {
        busy.step(&mut opened).await;
    }
    // The last offer is shown for up to 50 ms.
    let running = loop {
        let offer = client.offer().await;
        if offer.offer.running > 0 {
            break offer.offer.running;
        }
    };
    assert_eq!(running, 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_said_and_costs_nothing() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let good = client.open_frame(&job(10));

    let mut other_model = good.clone();
    other_model.job.model_id.0[0] ^= 1;
    assert_eq!(client.refused(other_model).await.code, RefusedCode::UnknownModel);
    let mut too_long = good.clone();
    too_long.job.max_tokens = 508;
    assert_eq!(client.refused(too_long).await.code, RefusedCode::BadJob);
    let mut no_token = good.clone();
    no_token.job.prompt.push(384);
    assert_eq!(client.refused(no_token).await.code, RefusedCode::BadJob);
    let mut cheaper = good.clone();
    cheaper.prices.output_per_million.0 -= 1;
    assert_eq!(client.refused(cheaper).await.code, RefusedCode::Price);
    let mut small = good.clone();
    small.grant.0 -= 1;
    assert_eq!(client.refused(small).await.code, RefusedCode::NotCovered);
    // More than the voucher covers.
    let mut large = good.clone();
    large.grant.0 += 1;
    assert_eq!(client.refused(large).await.code, RefusedCode::NotCovered);
    let mut free = good.clone();
    free.prices = Prices::default();
    assert_eq!(client.refused(free).await.code, RefusedCode::Price);

    // After all that the request itself is served on the same connection.
    client.send(ClientFrame::Open(Box::new(good))).await;
    assert_eq!(client.next().await.unwrap(), ProviderFrame::Accepted);
}

#[tokio::test]
async fn only_the_payers_voucher_for_this_channel_counts() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let good = client.open_frame(&job(10));

    let mut flipped = good.clone();
    flipped.voucher.signature.0[10] ^= 1;
    assert_eq!(client.refused(flipped).await.code, RefusedCode::Voucher);
    let mut raised = good.clone();
    raised.voucher.voucher.max_claimable_amount.0 += 1;
    assert_eq!(client.refused(raised).await.code, RefusedCode::Voucher);
    let thief = Channel { payer: key(0x66), ..world.wallet.channel.clone() };
    let mut stolen = good.clone();
    stolen.voucher = thief.voucher(good.grant);
    assert_eq!(client.refused(stolen).await.code, RefusedCode::Voucher);
    let other = Channel::new(&key(0x11), 9);
    let mut elsewhere = good.clone();
    elsewhere.voucher = other.voucher(good.grant);
    assert_eq!(client.refused(elsewhere).await.code, RefusedCode::Voucher);
    let mut above = good.clone();
    above.voucher = world.wallet.channel.voucher(Amount(DEPOSIT + 1));
    assert_eq!(client.refused(above).await.code, RefusedCode::NotCovered);
    assert_eq!(client.channel_report().await.charged_total, Amount::ZERO);
}

#[tokio::test]
async fn a_forged_payment_ends_the_stream() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let mut opened = client.open(&job(400)).await;
    while opened.checkpoints.is_empty() {
        client.step(&mut opened).await;
    }
    let thief = Channel { payer: key(0x66), ..world.wallet.channel.clone() };
    let grant = opened.terms.grant_after(64);
    client.send(ClientFrame::Pay(Pay { voucher: thief.voucher(Amount(DEPOSIT)), grant })).await;
    let done = loop {
        if let Some(done) = client.step(&mut opened).await {
            break done;
        }
    };
    assert_eq!((done.finish, done.receipt.receipt.output_tokens), (Finish::Open, 64));
    assert!(opened.output.len() <= 128);
}

#[tokio::test]
async fn a_channel_that_could_not_be_claimed_is_refused() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let check = async |change: fn(&mut Channel), is_funded: bool| {
        let mut channel = Channel::new(&key(0x33), 1);
        change(&mut channel);
        if is_funded {
            world.chain.deposit(&channel.config, DEPOSIT);
        }
        let wallet = Arc::new(Wallet::new(channel, DEPOSIT));
        let mut client = Client::connect(provider.address(), wallet).await;
        let open = client.open_frame(&job(10));
        client.refused(open).await
    };
    let cases: [fn(&mut Channel); 5] = [
        |c| c.config.receiver = Address::repeat_byte(1),
        |c| c.config.receiver_authorizer = c.config.payer,
        |c| c.config.token = Address::repeat_byte(1),
        |c| c.config.withdraw_delay = 3_599,
        |c| c.config.withdraw_delay = 1 << 40,
    ];
    for change in cases {
        assert_eq!(check(change, true).await.code, RefusedCode::Channel);
    }
    let refused = check(|_| (), false).await;
    assert_eq!((refused.code, refused.message.contains("deposited")), (RefusedCode::Channel, true));
}

#[tokio::test]
async fn a_top_up_counts_at_once() {
    let limits = assay_provider::Limits { lookup_pause: Duration::ZERO, ..limits() };
    let world = World::new(Setup { limits, ..Setup::default() });
    let provider = world.start().await;
    let channel = Channel::new(&key(0x33), 1);
    world.chain.deposit(&channel.config, 80);
    let mut client = Client::connect(provider.address(), Arc::new(Wallet::new(channel.clone(), DEPOSIT))).await;
    assert_eq!(client.run(&job(30)).await.done.receipt.receipt.charged_total, Amount(40));
    world.chain.deposit(&channel.config, 1_000);
    assert_eq!(client.run(&job(100)).await.done.receipt.receipt.charged_total, Amount(150));
}

#[tokio::test]
async fn a_full_queue_is_an_answer_and_not_a_wait() {
    let engine = EngineOptions { threads: 1, sequences_max: 1, queue_depth: 1, ..EngineOptions::default() };
    let world = World::new(Setup { engine, ..Setup::default() });
    let provider = world.start().await;
    let mut first = world.client(&provider).await;
    let mut running = first.open(&job(400)).await;
    while running.output.is_empty() {
        first.step(&mut running).await;
    }
    let mut second = world.client(&provider).await;
    let waiting = second.open(&job(10)).await;
    let mut third = world.client(&provider).await;
    let open = third.open_frame(&job(10));
    assert_eq!(third.refused(open).await.code, RefusedCode::Busy);
    drop(first);
    assert_eq!(second.finish(waiting).await.output.len(), 10);
}

#[tokio::test]
async fn a_chain_that_does_not_answer_refuses_new_channels_only() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(5)).await;
    world.chain.set_down(true);
    // Known: served from what the chain said before.
    client.run(&job(5)).await;
    let channel = Channel::new(&key(0x33), 1);
    let mut stranger = Client::connect(provider.address(), Arc::new(Wallet::new(channel, DEPOSIT))).await;
    let open = stranger.open_frame(&job(10));
    assert_eq!(stranger.refused(open).await.code, RefusedCode::Internal);
}
