//! What the network does on chain, through the typed client: money arrives to the unit.

mod setup;

use alloy_signer::SignerSync;
use assay_chain::{
    B256, ChainClient, ChainError, ClaimRow, ClientOptions, DeployParams, DepositRequest, Network, PrivateKeySigner,
    U256, client::ChannelState, deploy_local,
};
use assay_types::{Amount, ChannelConfig, ModelId, ProviderId, Signature, SignedVoucher, Voucher, settlement_domain};
use setup::{NOW, World, connect, key};

const DAY: u64 = 86_400;

fn channel_config(world: &World, payer: u64, receiver: u64, salt: u64) -> ChannelConfig {
    ChannelConfig {
        payer: key(payer).address(),
        payer_authorizer: key(payer).address(),
        receiver: key(receiver).address(),
        receiver_authorizer: key(receiver).address(),
        token: world.addresses().token,
        withdraw_delay: DAY,
        salt: U256::from(salt).into(),
    }
}

fn voucher(world: &World, config: &ChannelConfig, payer: &PrivateKeySigner, ceiling: u128) -> SignedVoucher {
    let domain = settlement_domain(world.addresses().chain_id, world.addresses().settlement);
    let voucher = Voucher { channel_id: config.id(&domain), max_claimable_amount: Amount(ceiling) };
    let signature = payer.sign_hash_sync(&voucher.digest(&domain)).unwrap();
    SignedVoucher { voucher, signature: Signature::new(&signature) }
}

fn deposit(config: ChannelConfig, amount: u128, salt: u64) -> DepositRequest {
    DepositRequest { config, amount: Amount(amount), valid_before: NOW + DAY, salt: U256::from(salt).into() }
}

fn revert_name<T: std::fmt::Debug>(result: Result<T, ChainError>) -> &'static str {
    result.unwrap_err().revert().expect("a revert").name
}

async fn balance(network: &Network, n: u64) -> u128 {
    network.token.balance_of(key(n).address()).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vouchers_become_money_to_the_unit() {
    let world = World::start().await;
    let (payer, receiver) = (world.network(2).await, world.network(3).await);
    world.faucet.token.mint(key(2).address(), Amount(1_000_000)).await.unwrap();

    // 53 channels: more than one claim transaction holds.
    let configs: Vec<_> = (0..53).map(|salt| channel_config(&world, 2, 3, salt)).collect();
    for (salt, config) in (0..).zip(&configs) {
        payer
            .settlement
            .deposit(&deposit(*config, 1_000 + u128::from(salt), salt), payer.client.signer())
            .await
            .unwrap();
    }
    let deposited: u128 = (0..53).map(|salt| 1_000 + salt).sum();
    assert_eq!(balance(&payer, 2).await, 1_000_000 - deposited);

    let rows: Vec<_> = (0..)
        .zip(&configs)
        .map(|(i, config)| ClaimRow {
            config: *config,
            voucher: voucher(&world, config, payer.client.signer(), 900 + i),
            total_claimed: Amount(800 + i),
        })
        .collect();
    let report = receiver.settlement.claim(&rows).await.unwrap();
    assert_eq!((report.claimed.len(), report.refused.len()), (53, 0));
    let again = receiver.settlement.claim(&rows[..2]).await.unwrap();
    assert_eq!(again.claimed.len(), 2, "a replayed claim is no error");

    let claimed: u128 = (0..53).map(|i| 800 + i).sum();
    let sums = receiver.settlement.receiver(key(3).address(), world.addresses().token).await.unwrap();
    assert_eq!((sums.total_claimed.0, sums.total_settled.0), (claimed, 0));
    assert_eq!(balance(&receiver, 3).await, 0);
    receiver.settlement.settle(key(3).address(), world.addresses().token).await.unwrap();
    assert_eq!(balance(&receiver, 3).await, claimed);
    receiver.settlement.settle(key(3).address(), world.addresses().token).await.unwrap();
    assert_eq!(balance(&receiver, 3).await, claimed, "settling twice pays once");

    let held = world.faucet.token.balance_of(world.addresses().settlement).await.unwrap().0;
    assert_eq!(held, deposited - claimed);
    let state = receiver.settlement.channel(rows[7].voucher.voucher.channel_id).await.unwrap();
    assert_eq!(state, ChannelState { balance: Amount(1_007), total_claimed: Amount(807) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_row_does_not_stop_the_others() {
    let world = World::start().await;
    let (payer, receiver) = (world.network(2).await, world.network(3).await);
    world.faucet.token.mint(key(2).address(), Amount(10_000)).await.unwrap();
    let configs: Vec<_> = (0..4).map(|salt| channel_config(&world, 2, 3, salt)).collect();
    for config in &configs {
        payer.settlement.deposit(&deposit(*config, 1_000, 0), payer.client.signer()).await.unwrap();
    }
    let row = |i: usize, signer: &PrivateKeySigner, ceiling, total| ClaimRow {
        config: configs[i],
        voucher: voucher(&world, &configs[i], signer, ceiling),
        total_claimed: Amount(total),
    };
    let rows = [
        row(0, &key(2), 500, 500),
        row(1, &key(4), 500, 500),
        row(2, &key(2), 500, 501),
        row(3, &key(2), 5_000, 1_001),
    ];
    let report = receiver.settlement.claim(&rows).await.unwrap();
    assert_eq!(report.claimed, [rows[0].voucher.voucher.channel_id]);
    let names: Vec<_> = report.refused.iter().map(|(_, error)| error.revert().unwrap().name).collect();
    assert_eq!(names, ["InvalidSignature", "ClaimExceedsCeiling", "ClaimExceedsBalance"]);
    assert_eq!(revert_name(payer.settlement.refund(&configs[0], Amount(1)).await), "NotAuthorizedToRefund");
    let stranger = payer.settlement.claim(&rows[..1]).await.unwrap();
    assert_eq!(stranger.refused[0].1.revert().unwrap().name, "NotAuthorizedToClaim");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_needs_the_payer_and_happens_once() {
    let world = World::start().await;
    // The faucet relays: the payer signs and sends nothing.
    let relay = &world.faucet.settlement;
    world.faucet.token.mint(key(2).address(), Amount(1_000)).await.unwrap();
    let request = deposit(channel_config(&world, 2, 3, 0), 400, 7);
    relay.deposit(&request, &key(2)).await.unwrap();
    assert_eq!(revert_name(relay.deposit(&request, &key(2)).await), "AuthorizationUsedOrCanceled");
    let error = relay.deposit(&deposit(request.config, 1, 8), &key(3)).await.unwrap_err();
    assert!(matches!(error, ChainError::BadArgument(_)), "{error}");
    let expired = DepositRequest { valid_before: NOW, ..deposit(request.config, 1, 9) };
    assert_eq!(revert_name(relay.deposit(&expired, &key(2)).await), "AuthorizationExpired");
    assert_eq!(
        revert_name(relay.deposit(&deposit(request.config, 601, 10), &key(2)).await),
        "ERC20InsufficientBalance"
    );
    let too_slow = ChannelConfig { withdraw_delay: 1 << 40, ..request.config };
    assert!(matches!(relay.deposit(&deposit(too_slow, 1, 11), &key(2)).await, Err(ChainError::BadArgument(_))));
    assert_eq!(balance(&world.faucet, 2).await, 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_gets_the_rest_back_after_the_delay() {
    let world = World::start().await;
    let (payer, receiver) = (world.network(2).await, world.network(3).await);
    world.faucet.token.mint(key(2).address(), Amount(1_000)).await.unwrap();
    let config = channel_config(&world, 2, 3, 0);
    let channel = config.id(&payer.settlement.domain());
    payer.settlement.deposit(&deposit(config, 1_000, 0), payer.client.signer()).await.unwrap();
    assert_eq!(revert_name(receiver.settlement.initiate_withdraw(&config, Amount(1)).await), "InvalidChannel");
    payer.settlement.initiate_withdraw(&config, Amount(1_000)).await.unwrap();
    let pending = payer.settlement.pending_withdrawal(channel).await.unwrap().unwrap();
    assert_eq!((pending.amount, pending.initiated_at), (Amount(1_000), NOW));
    assert_eq!(revert_name(payer.settlement.finalize_withdraw(&config).await), "WithdrawDelayNotElapsed");

    let row = ClaimRow { config, voucher: voucher(&world, &config, &key(2), 300), total_claimed: Amount(300) };
    assert_eq!(receiver.settlement.claim(&[row]).await.unwrap().claimed, [channel]);
    world.chain.advance_time(DAY);
    payer.settlement.finalize_withdraw(&config).await.unwrap();
    assert_eq!(payer.settlement.pending_withdrawal(channel).await.unwrap(), None);
    assert_eq!(balance(&payer, 2).await, 700);
    receiver.settlement.settle(key(3).address(), config.token).await.unwrap();
    assert_eq!(balance(&receiver, 3).await, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_registers_stakes_and_leaves() {
    let world = World::start().await;
    let provider = world.network(5).await;
    let id = ProviderId(key(5).address());
    let registry = &provider.registry;
    world.faucet.token.mint(id.0, Amount(150_000_000)).await.unwrap();
    assert_eq!(registry.provider(id).await.unwrap(), None);
    assert_eq!(revert_name(registry.stake(Amount(1)).await), "NotRegistered");

    registry.register("127.0.0.1:7001", B256::repeat_byte(5), B256::ZERO).await.unwrap();
    assert_eq!(revert_name(registry.register("x", B256::repeat_byte(5), B256::ZERO).await), "AlreadyRegistered");
    registry.stake(Amount(99_999_999)).await.unwrap();
    assert!(!registry.is_active(id).await.unwrap(), "one unit short");
    registry.stake(Amount(1)).await.unwrap();
    assert!(registry.is_active(id).await.unwrap());
    assert_eq!(registry.min_stake().await.unwrap(), registry.stake_of(id).await.unwrap());
    registry.update("127.0.0.1:7002", B256::repeat_byte(6), B256::repeat_byte(7)).await.unwrap();
    let listed = registry.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].provider, listed[0].active, listed[0].stake), (id, true, Amount(100_000_000)));
    assert_eq!(listed[0].info, registry.provider(id).await.unwrap().unwrap());
    assert_eq!((listed[0].info.endpoint.as_str(), listed[0].info.registered_at), ("127.0.0.1:7002", NOW));

    registry.request_unstake(Amount(40_000_000)).await.unwrap();
    assert!(!registry.is_active(id).await.unwrap());
    assert_eq!(revert_name(registry.withdraw_unstaked().await), "StillUnbonding");
    let stake = registry.stake_details(id).await.unwrap();
    assert_eq!((stake.unbonding, stake.release_at), (Amount(40_000_000), NOW + 7 * DAY));
    world.chain.advance_time(7 * DAY);
    registry.withdraw_unstaked().await.unwrap();
    assert_eq!(balance(&provider, 5).await, 90_000_000);
    registry.deregister().await.unwrap();
    assert_eq!(registry.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_providers_spans_pages() {
    let world = World::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1_000..1_101 {
        let provider = world.network(n).await;
        tasks.spawn(async move { provider.registry.register("h:1", B256::repeat_byte(1), B256::ZERO).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let mut listed: Vec<_> =
        world.faucet.registry.list().await.unwrap().into_iter().map(|row| row.provider.0).collect();
    let mut expected: Vec<_> = (1_000..1_101).map(|n| key(n).address()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_registered_once_and_moved_by_their_publisher() {
    let world = World::start().await;
    let (publisher, other) = (world.network(2).await.models, world.network(3).await.models);
    let (id, hash) = (ModelId(B256::repeat_byte(1)), B256::repeat_byte(2));
    assert_eq!(publisher.model(id).await.unwrap(), None);
    publisher.register(id, "https://example.org/m", hash).await.unwrap();
    assert_eq!(revert_name(other.register(id, "x", hash).await), "ModelExists");
    assert_eq!(revert_name(other.relocate(id, "x").await), "NotPublisher");
    publisher.relocate(id, "ipfs://m").await.unwrap();
    let record = other.model(id).await.unwrap().unwrap();
    assert_eq!((record.uri.as_str(), record.manifest_hash), ("ipfs://m", hash));
    assert_eq!((record.publisher, record.registered_at), (key(2).address(), NOW));
    assert_eq!(other.list().await.unwrap(), [id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_sends_from_many_tasks_and_two_clients() {
    let world = World::start().await;
    let second = Network::new(connect(&world.chain, 1).await, world.addresses()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..60u64 {
        let token = if i % 3 == 0 { second.token.clone() } else { world.faucet.token.clone() };
        tasks.spawn(async move { token.mint(key(2).address(), Amount(u128::from(i))).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(balance(&second, 2).await, (0..60).sum::<u128>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_network_is_used_again_and_checked() {
    let world = World::start().await;
    let params = DeployParams::local(key(99).address());
    let head = world.chain.head().unwrap();
    let again = deploy_local(&world.faucet.client, &params, Some(world.addresses())).await.unwrap();
    assert_eq!((again.addresses, world.chain.head().unwrap()), (world.addresses(), head), "nothing was deployed");

    let mut gone = world.addresses();
    gone.model_registry = key(50).address();
    let error = deploy_local(&world.faucet.client, &params, Some(gone)).await.err().unwrap();
    assert!(matches!(error, ChainError::NoContract { address, .. } if address == key(50).address()), "{error}");
    let mut other = world.addresses();
    other.chain_id = 1;
    let error = deploy_local(&world.faucet.client, &params, Some(other)).await.err().unwrap();
    assert!(matches!(error, ChainError::OtherChain { expected: 1, .. }), "{error}");
    let options = ClientOptions { chain_id: Some(1), ..ClientOptions::default() };
    let error = ChainClient::connect(&world.chain, key(1), options).await.err().unwrap();
    assert!(matches!(error, ChainError::OtherChain { expected: 1, .. }), "{error}");
}
