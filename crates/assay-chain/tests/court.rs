//! The court on the embedded chain: deployed so that it alone can slash, and proofs that need no game.

mod setup;

use alloy_signer::SignerSync;
use assay_chain::{
    ClaimRow, DeployParams, DepositRequest, Network, U256,
    client::{CourtTerms, NetworkPolicy, Outcome, Terms},
    deploy_local,
};
use assay_types::{
    Amount, B256, ChannelConfig, ChannelId, Finish, ModelId, ProviderId, Receipt, RequestHash, Signature,
    SignedReceipt, SignedVoucher, Voucher, receipt_domain, response_bytes, response_hash,
};
use setup::{NOW, World, connect, key};

const STAKE: u128 = 500_000_000;
const BOND: u128 = 25_000_000;
const PENALTY: u128 = 100_000_000;
const DAY: u64 = 86_400;

/// A network with a court, a staked provider (key 3) and a challenger with money (key 4).
struct Courtroom {
    world: World,
    owner: Network,
    provider: Network,
    challenger: Network,
}

impl Courtroom {
    async fn start() -> Self {
        let world = World::start().await;
        let params = DeployParams::local_court(key(9).address());
        let faucet = deploy_local(&world.faucet.client, &params, None).await.unwrap();
        let mut networks = vec![];
        for n in [3, 4] {
            faucet.token.mint(key(n).address(), Amount(STAKE)).await.unwrap();
            networks.push(Network::new(connect(&world.chain, n).await, faucet.addresses).unwrap());
        }
        let (challenger, provider) = (networks.pop().unwrap(), networks.pop().unwrap());
        provider.registry.register("provider.example:7443", B256::repeat_byte(1), B256::ZERO).await.unwrap();
        provider.registry.stake(Amount(STAKE)).await.unwrap();
        Self { world, owner: faucet, provider, challenger }
    }

    fn owner(&self) -> &Network {
        &self.owner
    }

    /// Through which key 2 pays the provider.
    fn channel(&self) -> ChannelConfig {
        ChannelConfig {
            payer: key(2).address(),
            payer_authorizer: key(2).address(),
            receiver: key(3).address(),
            receiver_authorizer: key(3).address(),
            token: self.provider.addresses.token,
            withdraw_delay: DAY,
            salt: B256::ZERO,
        }
    }

    fn signed(&self, receipt: Receipt) -> SignedReceipt {
        let addresses = self.provider.addresses;
        let digest = receipt.digest(&receipt_domain(addresses.chain_id, addresses.registry));
        SignedReceipt { receipt, signature: Signature::new(&key(3).sign_hash_sync(&digest).unwrap()) }
    }

    async fn stake(&self) -> u128 {
        self.provider.registry.stake_of(ProviderId(key(3).address())).await.unwrap().0
    }

    async fn owed(&self, n: u64) -> u128 {
        let court = self.challenger.court.as_ref().unwrap();
        court.owed(key(n).address()).await.unwrap().0
    }
}

fn receipt(output: &[u32], finish: Finish) -> Receipt {
    Receipt {
        channel_id: ChannelId(B256::repeat_byte(7)),
        request_hash: RequestHash(B256::repeat_byte(8)),
        response_hash: response_hash(output, finish),
        model_id: ModelId(B256::repeat_byte(9)),
        prompt_tokens: 3,
        output_tokens: output.len() as u64,
        charged: Amount(5),
        charged_total: Amount(9),
        issued_at: NOW,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_court_is_the_registrys_slasher_and_the_three_know_each_other() {
    let room = Courtroom::start().await;
    let network = &room.challenger;
    network.check().await.unwrap();
    let at = network.addresses.court.unwrap();
    assert_eq!(network.registry.slasher().await.unwrap(), at.court);
    let terms = network.court.as_ref().unwrap().terms().await.unwrap();
    let expect = CourtTerms {
        bond: Amount(BOND),
        penalty: Amount(PENALTY),
        move_window_s: 10_800,
        reward_bps: 4_000,
        refund_bps: 1_000,
        version: 1,
        parameters: network.addresses.court.unwrap().parameters.unwrap(),
        sink: key(9).address(),
        registry: network.addresses.registry,
        token: network.addresses.token,
    };
    assert_eq!(terms, expect);
    let text = serde_json::to_string(&network.addresses).unwrap();
    assert_eq!(serde_json::from_str::<assay_chain::NetworkAddresses>(&text).unwrap(), network.addresses);
    // A file of before there was a court is one of a network without.
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    old.as_object_mut().unwrap().remove("court");
    assert_eq!(serde_json::from_value::<assay_chain::NetworkAddresses>(old).unwrap().court, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_answers_to_one_request_and_false_counts_cost_stake_in_one_transaction() {
    let room = Courtroom::start().await;
    let court = room.challenger.court.as_ref().unwrap();
    let channel_id = room.channel().id(&room.provider.settlement.domain());
    let a = room.signed(Receipt { channel_id, ..receipt(&[1, 2], Finish::Length) });
    let b = room.signed(Receipt { channel_id, ..receipt(&[1, 3], Finish::Length) });
    let refused = court.convict_equivocation(&a, &a).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NotEquivocation");
    let longer = room.signed(receipt(&[1, 2, 3], Finish::Length));
    let refused = court.convict_equivocation(&a, &longer).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NotEquivocation", "checkpoints are no equivocation");

    let sent = court.convict_equivocation(&a, &b).await.unwrap();
    let convicted = Outcome::Convicted { slashed: Amount(PENALTY), version: 1 };
    assert_eq!(court.outcome(&sent), Some(convicted));
    let (provider, request) = (ProviderId(key(3).address()), a.receipt.request_hash);
    assert_eq!(court.conviction(provider, request, 0).await.unwrap(), Some(convicted));
    assert_eq!(court.conviction(provider, RequestHash(B256::ZERO), 0).await.unwrap(), None);
    assert_eq!(room.stake().await, STAKE - PENALTY);
    assert_eq!((room.owed(4).await, room.owed(9).await), (PENALTY * 4 / 10, 0), "the rest is held");
    // The payer of the receipt is who its channel says, and nobody else.
    assert_eq!(court.refunded(provider, request).await.unwrap(), None);
    let stranger = ChannelConfig { payer: key(4).address(), ..room.channel() };
    let refused = court.refund(provider, &a.receipt, &stranger, (Amount(PENALTY), 1)).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NotTheChannel");
    let dearer = Receipt { charged: Amount(u128::MAX), ..a.receipt };
    let refused = court.refund(provider, &dearer, &room.channel(), (Amount(PENALTY), 1)).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NothingHeld");
    court.refund(provider, &a.receipt, &room.channel(), (Amount(PENALTY), 1)).await.unwrap();
    assert_eq!(court.refunded(provider, request).await.unwrap(), Some(Amount(5)));
    assert_eq!((room.owed(2).await, room.owed(9).await), (5, PENALTY * 6 / 10 - 5));
    let again = court.refund(provider, &a.receipt, &room.channel(), (Amount(PENALTY), 1)).await.unwrap_err();
    assert_eq!(again.revert().unwrap().name, "NothingHeld", "once");
    assert!(court.is_convicted(ProviderId(key(3).address()), a.receipt.request_hash).await.unwrap());
    let again = court.convict_equivocation(&a, &b).await.unwrap_err();
    assert_eq!(again.revert().unwrap().name, "AlreadyConvicted", "once for a request");
    court.withdraw().await.unwrap();
    let balance = room.challenger.token.balance_of(key(4).address()).await.unwrap();
    assert_eq!(balance, Amount(STAKE + PENALTY * 4 / 10));

    // One token more than the answer has.
    let mut inflated = receipt(&[1, 2], Finish::Length);
    inflated.request_hash = RequestHash(B256::repeat_byte(0x18));
    inflated.output_tokens = 3;
    let sent = court.convict_output(&room.signed(inflated), response_bytes(&[1, 2], Finish::Length)).await.unwrap();
    assert!(matches!(court.outcome(&sent), Some(Outcome::Convicted { .. })));
    // The registry's cap: half of the stake within one unbonding delay.
    assert_eq!(room.stake().await, STAKE - 2 * PENALTY);
    let mut honest = receipt(&[1, 2], Finish::Length);
    honest.request_hash = RequestHash(B256::repeat_byte(0x19));
    let refused = court.convict_output(&room.signed(honest), response_bytes(&[1, 2], Finish::Length)).await;
    assert_eq!(refused.unwrap_err().revert().unwrap().name, "NoFault");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_above_the_receipts_is_convicted_and_a_covered_one_earns_the_bond() {
    let room = Courtroom::start().await;
    let court = room.challenger.court.as_ref().unwrap();
    let terms = court.terms().await.unwrap();
    let payer = room.world.network(2).await;
    let payer = Network::new(payer.client, room.provider.addresses).unwrap();
    let faucet = Network::new(room.world.faucet.client.clone(), room.provider.addresses).unwrap();
    faucet.token.mint(key(2).address(), Amount(10_000)).await.unwrap();
    let mut claimed = vec![];
    for salt in [1u64, 2] {
        let config = ChannelConfig {
            payer: key(2).address(),
            payer_authorizer: key(2).address(),
            receiver: key(3).address(),
            receiver_authorizer: key(3).address(),
            token: room.provider.addresses.token,
            withdraw_delay: DAY,
            salt: U256::from(salt).into(),
        };
        let request =
            DepositRequest { config, amount: Amount(1_000), valid_before: NOW + DAY, salt: U256::from(salt).into() };
        payer.settlement.deposit(&request, payer.client.signer()).await.unwrap();
        let domain = payer.settlement.domain();
        let voucher = Voucher { channel_id: config.id(&domain), max_claimable_amount: Amount(900) };
        let signature = Signature::new(&key(2).sign_hash_sync(&voucher.digest(&domain)).unwrap());
        let row = ClaimRow { config, voucher: SignedVoucher { voucher, signature }, total_claimed: Amount(900) };
        room.provider.settlement.claim(&[row]).await.unwrap();
        claimed.push((config, voucher.channel_id));
    }
    court.prepare_bond(&terms).await.unwrap().expect("the first needs an allowance");
    let [(covered, covered_id), (uncovered, uncovered_id)] = claimed[..] else { panic!("two channels") };
    let over = |channel_id, total| {
        let mut receipt = receipt(&[1], Finish::Stop);
        (receipt.channel_id, receipt.charged_total) = (channel_id, Amount(total));
        room.signed(receipt)
    };
    court.challenge_claim(&covered).await.unwrap();
    assert_eq!(court.claim_deadline(covered_id).await.unwrap(), Some(NOW + terms.move_window_s));
    let at_court = room.provider.court.as_ref().unwrap();
    let refused = at_court.justify_claim(&over(covered_id, 899)).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "NoFault");
    at_court.justify_claim(&over(covered_id, 900)).await.unwrap();
    assert_eq!((room.owed(3).await, room.stake().await), (BOND, STAKE));

    court.prepare_bond(&terms).await.unwrap();
    court.challenge_claim(&uncovered).await.unwrap();
    let early = court.convict_claim(uncovered_id).await.unwrap_err();
    assert_eq!(early.revert().unwrap().name, "NotLate");
    room.world.chain.advance_time(terms.move_window_s + 1);
    court.convict_claim(uncovered_id).await.unwrap();
    assert_eq!(room.stake().await, STAKE - PENALTY);
    assert_eq!(room.owed(4).await, BOND + PENALTY * 4 / 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_change_after_their_delay_and_open_claims_keep_theirs() {
    let room = Courtroom::start().await;
    let owner = room.owner();
    let parameters = owner.parameters.as_ref().unwrap();
    let caps = parameters.caps().await.unwrap();
    assert_eq!((caps.bond_max, caps.move_window_s), (Amount(100 * BOND), 10_800));
    let policy = parameters.policy().await.unwrap();
    assert_eq!((policy, parameters.proposal().await.unwrap()), (NetworkPolicy::default(), None));
    let before = parameters.current().await.unwrap();
    let next = Terms { bond: Amount(2 * BOND), reward_bps: 5_000, ..before };
    let more = NetworkPolicy { audit_floor_ppm: 100_000, ..policy };
    let by_stranger = room.challenger.parameters.as_ref().unwrap().propose(&next, &more).await.unwrap_err();
    assert_eq!(by_stranger.revert().unwrap().name, "NotOwner");
    let beyond = Terms { bond: Amount(100 * BOND + 1), ..before };
    let refused = parameters.propose(&beyond, &more).await.unwrap_err();
    assert_eq!(refused.revert().unwrap().name, "BadParameter");
    let wide = parameters.propose(&Terms { bond: Amount(u128::MAX), ..before }, &more).await.unwrap_err();
    assert!(wide.to_string().contains("96 bits"), "{wide}");

    parameters.propose(&next, &more).await.unwrap();
    assert_eq!(parameters.enact().await.unwrap_err().revert().unwrap().name, "TooEarly");
    assert_eq!(parameters.current().await.unwrap(), before);
    room.world.chain.advance_time(caps.delay_s);
    parameters.enact().await.unwrap();
    assert_eq!(parameters.current().await.unwrap(), Terms { version: 2, ..next });
    assert_eq!(parameters.terms_of(1).await.unwrap(), before);
    assert_eq!(parameters.terms_of(3).await.unwrap_err().revert().unwrap().name, "NoVersion");
    assert_eq!(parameters.policy().await.unwrap(), more);
    assert_eq!(room.challenger.court.as_ref().unwrap().terms().await.unwrap().bond, Amount(2 * BOND));
}
