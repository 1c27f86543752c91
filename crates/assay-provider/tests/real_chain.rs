//! The same provider on the embedded chain with the real contracts: what was charged arrives to the unit.

mod support;

use assay_chain::{
    ChainClient, ChainOptions, ClientOptions, DeployParams, DepositRequest, EmbeddedChain, Genesis, LOCAL_CHAIN_ID,
    Network, deploy_local,
};
use assay_provider::ClaimPolicy;
use assay_types::{Amount, B256, ProviderId};
use std::{sync::Arc, time::Duration};
use support::{Channel, Client, Setup, Wallet, claims, job, key, provider_key};

const NOW: u64 = 1_800_000_000;
const STAKE: u128 = 150_000_000;
const DEPOSIT: u128 = 5_000;

struct RealWorld {
    directory: tempfile::TempDir,
    chain: EmbeddedChain,
    faucet: Network,
}

impl RealWorld {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let genesis = Genesis::local(LOCAL_CHAIN_ID, key(1).address());
        let options = ChainOptions::new(Arc::new(|| NOW));
        let chain = EmbeddedChain::open(&directory.path().join("chain"), &genesis, options).unwrap();
        let client = ChainClient::connect(&chain, key(1), ClientOptions::default()).await.unwrap();
        let params = DeployParams::local(key(99).address());
        let faucet = deploy_local(&client, &params, None).await.unwrap();
        faucet.token.mint(provider_key().address(), Amount(STAKE)).await.unwrap();
        faucet.token.mint(key(0x11).address(), Amount(DEPOSIT)).await.unwrap();
        Self { directory, chain, faucet }
    }

    async fn network(&self, signer: assay_chain::PrivateKeySigner) -> Network {
        let client = ChainClient::connect(&self.chain, signer, ClientOptions::default()).await.unwrap();
        Network::new(client, self.faucet.addresses).unwrap()
    }

    async fn balance(&self) -> u128 {
        self.faucet.token.balance_of(provider_key().address()).await.unwrap().0
    }

    async fn wallet(&self) -> Arc<Wallet> {
        let mut channel = Channel::new(&key(0x11), 0);
        channel.network = self.faucet.addresses;
        channel.config.token = self.faucet.addresses.token;
        let payer = self.network(key(0x11)).await;
        let (config, salt) = (channel.config, B256::ZERO);
        let request = DepositRequest { config, amount: Amount(DEPOSIT), valid_before: NOW + 3_600, salt };
        payer.settlement.deposit(&request, &key(0x11)).await.unwrap();
        Arc::new(Wallet::new(channel, DEPOSIT))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_receipts_charge_arrives_to_the_unit() {
    let world = RealWorld::start().await;
    let setup = Setup { network: world.faucet.addresses, stake: Amount(STAKE), ..Setup::default() };
    let chain = Arc::new(world.network(provider_key()).await);
    let provider = setup.start(world.directory.path(), chain.clone()).await.unwrap();
    assert!(world.faucet.registry.is_active(ProviderId(provider_key().address())).await.unwrap());
    assert_eq!(world.balance().await, 0);

    let wallet = world.wallet().await;
    let mut client = Client::connect(provider.address(), Arc::clone(&wallet)).await;
    client.run(&job(150)).await;
    assert_eq!(provider.claim().await, Ok(Amount(160)));
    assert_eq!(provider.claim().await, Ok(Amount(0)));
    let mut other = Client::connect(provider.address(), Arc::clone(&wallet)).await;
    let (one, two) = (job(90), job(70));
    tokio::join!(client.run(&one), other.run(&two));
    drop((client, other));
    let farewell = provider.shutdown().await;
    assert_eq!((farewell.settled, farewell.stats.charged_total), (Ok(Amount(180)), Amount(340)));
    assert_eq!((world.balance().await, wallet.charged_total()), (340, 340));

    // A second start stakes nothing again and finds nothing to claim.
    let provider = setup.start(world.directory.path(), chain).await.unwrap();
    assert_eq!(provider.shutdown().await.settled, Ok(Amount(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_finds_the_charges_claimed() {
    let world = RealWorld::start().await;
    let poll = ClaimPolicy { poll: Duration::from_millis(20), ..claims() };
    let setup = Setup { network: world.faucet.addresses, stake: Amount(STAKE), claims: poll, ..Setup::default() };
    let chain = Arc::new(world.network(provider_key()).await);
    let provider = setup.start(world.directory.path(), chain).await.unwrap();
    let wallet = world.wallet().await;
    let mut client = Client::connect(provider.address(), Arc::clone(&wallet)).await;
    client.run(&job(150)).await;

    let payer = world.network(key(0x11)).await;
    let config = wallet.channel.config;
    payer.settlement.initiate_withdraw(&config, Amount(DEPOSIT)).await.unwrap();
    while world.balance().await < 160 {}
    world.chain.advance_time(config.withdraw_delay + 1);
    payer.settlement.finalize_withdraw(&config).await.unwrap();
    let balance = payer.token.balance_of(key(0x11).address()).await.unwrap();
    assert_eq!((balance, world.balance().await), (Amount(DEPOSIT - 160), 160));
    drop(client);
    provider.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_that_began_while_the_provider_was_down_finds_the_charges_claimed() {
    let world = RealWorld::start().await;
    let setup = Setup { network: world.faucet.addresses, stake: Amount(STAKE), ..Setup::default() };
    let chain = Arc::new(world.network(provider_key()).await);
    let provider = setup.start(world.directory.path(), chain.clone()).await.unwrap();
    let wallet = world.wallet().await;
    let mut client = Client::connect(provider.address(), Arc::clone(&wallet)).await;
    client.run(&job(150)).await;
    drop(client);
    // A crash: nothing was claimed.
    drop(provider);
    assert_eq!(world.balance().await, 0);

    let payer = world.network(key(0x11)).await;
    let config = wallet.channel.config;
    payer.settlement.initiate_withdraw(&config, Amount(DEPOSIT)).await.unwrap();
    world.chain.advance_time(config.withdraw_delay - 60);
    let provider = setup.start(world.directory.path(), chain).await.unwrap();
    while world.balance().await < 160 {}
    world.chain.advance_time(61);
    payer.settlement.finalize_withdraw(&config).await.unwrap();
    let balance = payer.token.balance_of(key(0x11).address()).await.unwrap();
    assert_eq!((balance, world.balance().await), (Amount(DEPOSIT - 160), 160));
    provider.shutdown().await;
}
