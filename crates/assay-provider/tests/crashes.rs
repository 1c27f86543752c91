//! What a restart finds, and what is claimed.

mod support;

use assay_net::{ChannelRequest, ClientFrame, Done, ProviderFrame, RefusedCode, Route, TransportSecret};
use assay_provider::{ClaimPolicy, Limits, ProviderConfig, StartError};
use assay_types::{Amount, B256, Finish};
use std::{sync::Arc, time::Duration};
use support::{Client, Setup, World, claims, job, limits};

#[tokio::test]
async fn a_crash_keeps_every_receipt_that_was_sent_and_claims_it_later() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let finished = client.run(&job(30)).await;
    let mut opened = client.open(&job(400)).await;
    while opened.checkpoints.len() < 2 {
        let before = opened.checkpoints.len();
        client.step(&mut opened).await;
        if opened.checkpoints.len() > before {
            let grant = opened.terms.grant_after(opened.checkpoints[before]);
            client.pay(&opened, grant).await;
        }
    }
    drop(provider);
    drop(client);

    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let report = client.receipt_report(finished.done.receipt.receipt.request_hash).await;
    assert_eq!((report.is_running, report.last), (false, Some(finished.done)));
    let last = client.receipt_report(opened.request).await.last.unwrap();
    assert!(last.receipt.receipt.output_tokens >= 128);
    // Billed beyond the second checkpoint is only what a dropped connection ended before the crash did.
    assert!(matches!(last.finish, Finish::Open | Finish::Cancelled));
    let charged = 40 + last.receipt.receipt.charged.0;
    assert_eq!(client.channel_report().await.charged_total, Amount(charged));
    assert_eq!(provider.stats().await.unwrap().receipts, 2);

    // The payer agrees to the unit and goes on with the same channel.
    client.wallet.purse.lock().unwrap().on_receipt(&last.receipt.receipt).unwrap();
    client.wallet.purse.lock().unwrap().close(opened.request).unwrap();
    assert_eq!(world.wallet.charged_total(), charged);
    client.run(&job(10)).await;
    let mut again = client.open_frame(&job(400));
    again.job = opened.job.clone();
    assert_eq!(client.refused(again).await.code, RefusedCode::Duplicate);

    drop(client);
    let farewell = provider.shutdown().await;
    assert_eq!(farewell.stats.charged_total, Amount(charged + 20));
    assert_eq!(world.chain.total_claimed(&world.wallet.channel.config), charged + 20);
    assert_eq!(world.chain.settled(), charged + 20);
}

#[tokio::test]
async fn what_a_crash_left_unclaimed_is_claimed_at_the_next_start() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    drop(provider);
    let claimed = world.chain.claimed.notified();
    let provider = world.start().await;
    claimed.await;
    assert_eq!(world.chain.total_claimed(&world.wallet.channel.config), 40);
    provider.shutdown().await;
    assert_eq!(world.chain.settled(), 40);
}

#[tokio::test]
async fn a_shutdown_cuts_what_runs_and_claims_everything() {
    let setup = Setup { limits: Limits { grace: Duration::from_millis(50), ..limits() }, ..Setup::default() };
    let world = World::new(setup);
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let mut opened = client.open(&job(400)).await;
    while opened.checkpoints.is_empty() {
        client.step(&mut opened).await;
    }
    let mut idle = world.client(&provider).await;
    idle.offer().await;
    let (farewell, done) = tokio::join!(provider.shutdown(), async {
        loop {
            if let Some(done) = client.step(&mut opened).await {
                break done;
            }
        }
    });
    assert_eq!((done.finish, done.receipt.receipt.output_tokens), (Finish::Open, 64));
    assert_eq!(farewell.settled, Ok(Amount(74)));
    assert_eq!((world.chain.settled(), farewell.stats.charged_total), (74, Amount(74)));
    assert!(idle.next().await.is_err());
}

#[tokio::test]
async fn a_running_job_is_finished_in_the_grace_time() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let opened = client.open(&job(300)).await;
    let (farewell, outcome) = tokio::join!(provider.shutdown(), client.finish(opened));
    assert_eq!((outcome.output.len(), outcome.done.finish), (300, Finish::Length));
    assert_eq!(farewell.settled, Ok(Amount(310)));
}

#[tokio::test]
async fn a_withdrawing_payer_is_claimed_from_and_served_no_more() {
    let poll = ClaimPolicy { poll: Duration::from_millis(20), ..claims() };
    let world = World::new(Setup { claims: poll, ..Setup::default() });
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    world.chain.initiate_withdraw(&world.wallet.channel.config);
    world.chain.claimed.notified().await;
    assert_eq!(world.chain.total_claimed(&world.wallet.channel.config), 40);
    let open = client.open_frame(&job(10));
    assert_eq!(client.refused(open).await.code, RefusedCode::Channel);
}

#[tokio::test]
async fn a_withdrawal_that_began_while_the_channel_was_idle_is_noticed_before_a_job() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    // All is claimed, so nobody watches the channel.
    provider.claim().await.unwrap();
    world.chain.initiate_withdraw(&world.wallet.channel.config);
    client.run(&job(5)).await;
    provider.claim().await.unwrap();
    drop(client);
    // Its delay is a day; half of it is how long a look at the chain is good for.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(43_200)).await;
    tokio::time::resume();
    let mut client = world.client(&provider).await;
    let open = client.open_frame(&job(10));
    assert_eq!(client.refused(open).await.code, RefusedCode::Channel);
}

#[tokio::test]
async fn a_channel_over_the_threshold_is_claimed_at_once() {
    let threshold = ClaimPolicy { threshold: Amount(50), ..claims() };
    let world = World::new(Setup { claims: threshold, ..Setup::default() });
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    assert_eq!(world.chain.total_claimed(&world.wallet.channel.config), 0);
    client.run(&job(30)).await;
    world.chain.claimed.notified().await;
    assert_eq!(world.chain.total_claimed(&world.wallet.channel.config), 80);
}

#[tokio::test]
async fn a_chain_that_is_down_at_the_shutdown_leaves_the_claim_to_the_next_start() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    world.chain.set_down(true);
    drop(client);
    assert!(provider.shutdown().await.settled.is_err());
    assert!(matches!(
        world.setup.start(world.directory.path(), world.chain.clone()).await.map(drop),
        Err(StartError::Chain(_))
    ));
    world.chain.set_down(false);
    let provider = world.start().await;
    assert_eq!(provider.claim().await.map(|_| world.chain.settled()), Ok(40));
}

#[tokio::test]
async fn a_restart_registers_only_what_changed() {
    let world = World::new(Setup::default());
    let first = world.start().await;
    let endpoint = format!("tcp://{}", first.address());
    assert_eq!(world.chain.registrations(), [format!("register {endpoint}"), "stake 500".into()]);
    first.shutdown().await;
    let second = world.start().await;
    let registrations = world.chain.registrations();
    // Another free port, the same stake.
    assert_eq!(registrations[2..], [format!("update tcp://{}", second.address())]);
    assert_eq!(world.chain.stake(), 500);
}

#[tokio::test]
async fn under_tls_the_key_is_registered_and_proven() {
    let mut world = World::new(Setup::default());
    let sealed = |byte| TransportSecret::from_seed([byte; 32]);
    world.start().await.shutdown().await;
    for byte in [1, 2] {
        world.setup.transport_secret = Some(sealed(byte));
        let provider = world.start().await;
        let endpoint = format!("tls://{}", provider.address());
        assert_eq!(world.chain.registrations().last(), Some(&format!("update {endpoint}")));
        let key = sealed(byte).public().unwrap();
        assert_eq!(world.chain.transport_key(), Some(B256::from(key.0)));

        let route = Route { address: provider.address(), key: Some(key) };
        let mut client = Client::connect(route, Arc::clone(&world.wallet)).await;
        assert_eq!(client.run(&job(8)).await.output.len(), 8);
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_not_registered() {
    let world = World::new(Setup::default());
    let endpoint = "tls://provider.example:1".parse().unwrap();
    let config = ProviderConfig { endpoint: Some(endpoint), ..world.setup.config(world.directory.path()) };
    let refused = world.setup.start_as(config, world.chain.clone()).await.map(drop);
    let Err(error @ StartError::Scheme { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("tls://provider.example:1 cannot be served"), "{error}");
    assert!(world.chain.registrations().is_empty());
}

#[tokio::test]
async fn a_draining_provider_takes_no_new_connection() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let address = provider.address();
    let mut client = world.client(&provider).await;
    client.send(ClientFrame::OfferRequest).await;
    client.next().await.unwrap();
    provider.shutdown().await;
    assert!(
        assay_net::connect(&assay_net::Sockets, address, world.setup.network.chain_id, Duration::from_secs(5))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn another_file_or_another_providers_is_left_as_it_is() {
    let world = World::new(Setup::default());
    let path = world.directory.path().join("provider.sqlite");
    std::fs::write(&path, b"not a database at all, but someone's file").unwrap();
    let error = world.setup.start(world.directory.path(), world.chain.clone()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("it was not changed"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"not a database at all, but someone's file");
    std::fs::remove_file(&path).unwrap();

    world.start().await.shutdown().await;
    let mut other = Setup::default();
    other.network.chain_id += 1;
    let error = other.start(world.directory.path(), world.chain.clone()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("belongs to provider"), "{error}");
}

#[tokio::test]
async fn a_provider_that_can_not_store_receipts_sends_none_and_serves_nothing_more() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(10)).await;
    let path = world.directory.path().join("provider.sqlite");
    let other = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query("ALTER TABLE channels RENAME TO elsewhere").execute(&other).await.unwrap();
    let mut opened = client.open(&job(200)).await;
    let refused = loop {
        match client.next().await.unwrap() {
            ProviderFrame::Tokens(tokens) => opened.output.extend(tokens),
            ProviderFrame::Refused(refused) => break refused,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((refused.code, opened.output.len()), (RefusedCode::Internal, 64));
    assert!(provider.is_broken());
    let open = client.open_frame(&job(10));
    assert_eq!(client.refused(open).await.code, RefusedCode::Internal);

    // What was acknowledged is still there for the next start.
    sqlx::query("ALTER TABLE elsewhere RENAME TO channels").execute(&other).await.unwrap();
    drop((client, provider));
    let provider = world.start().await;
    assert_eq!(provider.stats().await.unwrap().charged_total, Amount(20));
    provider.shutdown().await;
    assert_eq!(world.chain.settled(), 20);
}

/// A database goes back to an older copy of itself; nothing runs on it.
fn restore(from: &std::path::Path, to: &std::path::Path) {
    for name in ["provider.sqlite-wal", "provider.sqlite-shm"] {
        let _ = std::fs::remove_file(to.join(name));
    }
    std::fs::copy(from.join("provider.sqlite"), to.join("provider.sqlite")).unwrap();
}

#[tokio::test]
async fn what_an_older_database_lacks_is_taken_over_from_the_payer_and_claimed() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    drop(client);
    provider.shutdown().await;
    let copy = tempfile::tempdir().unwrap();
    restore(world.directory.path(), copy.path());

    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let latest = client.run(&job(150)).await.done;
    let ceiling = world.wallet.purse.lock().unwrap().state().ceiling;
    drop(client);
    // An orderly end, so that nobody writes any more; but nothing can be claimed.
    world.chain.set_down(true);
    assert!(provider.shutdown().await.settled.is_err());
    world.chain.set_down(false);
    restore(copy.path(), world.directory.path());

    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let config = world.wallet.channel.config;
    let voucher = world.wallet.channel.voucher(ceiling);
    let check = async |client: &mut Client, voucher, latest: Option<Done>, total: u128, shows_voucher: bool| {
        let report = client.show(ChannelRequest { config, voucher, latest }).await;
        assert_eq!((report.charged_total, report.voucher.is_some()), (Amount(total), shows_voucher));
        report
    };
    check(&mut client, None, Some(latest), 40, false).await;
    let mut forged = voucher;
    forged.signature.0[9] ^= 1;
    check(&mut client, Some(forged), Some(latest), 40, false).await;
    let mut foreign = latest;
    foreign.receipt.receipt.charged_total = Amount(9_000);
    check(&mut client, Some(voucher), Some(foreign), 40, true).await;
    let report = check(&mut client, Some(voucher), Some(latest), 200, true).await;
    assert_eq!((report.latest, report.voucher), (Some(latest), Some(voucher)));
    // Twice changes nothing, and what follows comes on top.
    check(&mut client, Some(voucher), Some(latest), 200, true).await;
    let next = client.run(&job(20)).await.done;
    assert_eq!(next.receipt.receipt.charged_total, Amount(230));
    provider.claim().await.unwrap();
    assert_eq!(world.chain.total_claimed(&config), 230);
    drop(client);
    drop(provider);
    let provider = world.start().await;
    assert_eq!(provider.stats().await.unwrap().charged_total, Amount(230));
}

#[tokio::test]
async fn a_lost_database_is_noticed_and_a_new_one_has_to_be_wanted() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let latest = client.run(&job(30)).await.done;
    drop(client);
    provider.shutdown().await;
    let database = world.directory.path().join("provider.sqlite");
    for emptied in [false, true] {
        std::fs::remove_file(&database).unwrap();
        if emptied {
            std::fs::write(&database, b"").unwrap();
        }
        let Err(error) = world.setup.start(world.directory.path(), world.chain.clone()).await else {
            panic!("it started without its database");
        };
        assert!(matches!(error, StartError::LostDatabase { claimed: Amount(40), .. }), "{error}");
        assert!(error.to_string().contains("--new-database"), "{error}");
    }
    let setup = Setup { accepts_new_database: true, ..Setup::default() };
    let provider = setup.start(world.directory.path(), world.chain.clone()).await.unwrap();
    let mut client = world.client(&provider).await;
    let (config, voucher) = (world.wallet.channel.config, Some(world.wallet.channel.voucher(Amount(74))));
    let report = client.show(ChannelRequest { config, voucher, latest: Some(latest) }).await;
    assert_eq!(report.charged_total, Amount(40));
    assert_eq!(client.run(&job(10)).await.done.receipt.receipt.charged_total, Amount(60));
}

#[tokio::test]
async fn a_claim_that_a_reorganization_undid_is_made_again() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    client.run(&job(30)).await;
    provider.claim().await.unwrap();
    let config = world.wallet.channel.config;
    assert_eq!(world.chain.total_claimed(&config), 40);
    world.chain.undo_claims();
    assert_eq!(world.chain.total_claimed(&config), 0);
    provider.claim().await.unwrap();
    assert_eq!(world.chain.total_claimed(&config), 40);
    drop(client);
    drop(provider);
    // Also one that a restart knows from its database alone.
    world.chain.undo_claims();
    let _provider = world.start().await;
    while world.chain.total_claimed(&config) < 40 {
        world.chain.claimed.notified().await;
    }
}
