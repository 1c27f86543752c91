//! The model of the settlement contract that simulations use, against the contract's bytecode.

mod setup;

use alloy_signer::SignerSync;
use assay_chain::{ChainError, ClaimRow, DepositRequest, Network, U256};
use assay_testkit::settlement::{Call, Revert, Settlement};
use assay_types::{Amount, ChannelConfig, Signature, SignedVoucher, Voucher, settlement_domain};
use setup::{NOW, World, key};

const CHANNELS: usize = 2;
const SUPPLY: u128 = 2_000;
const DELAY: u64 = 3_600;
const CALLS: u64 = 400;
/// The payer's key; its receivers have the next ones.
const PAYER: u64 = 2;

fn config(world: &World, channel: usize) -> ChannelConfig {
    let receiver = key(PAYER + 1 + channel as u64).address();
    ChannelConfig {
        payer: key(PAYER).address(),
        payer_authorizer: key(PAYER).address(),
        receiver,
        receiver_authorizer: receiver,
        token: world.addresses().token,
        withdraw_delay: DELAY,
        salt: U256::ZERO.into(),
    }
}

/// The contract, with everyone who calls it.
struct Real {
    world: World,
    payer: Network,
    receivers: Vec<Network>,
    salt: u64,
}

impl Real {
    async fn call(&mut self, call: Call) -> Result<(), ChainError> {
        match call {
            Call::Deposit { channel, amount } => {
                self.salt += 1;
                let config = config(&self.world, channel);
                let valid_before = u64::from(u32::MAX);
                let salt = U256::from(self.salt).into();
                let request = DepositRequest { config, amount: Amount(amount), valid_before, salt };
                self.payer.settlement.deposit(&request, &key(PAYER)).await.map(drop)
            }
            Call::Claim { channel, ceiling, total } => {
                let config = config(&self.world, channel);
                let at = self.world.addresses();
                let domain = settlement_domain(at.chain_id, at.settlement);
                let voucher = Voucher { channel_id: config.id(&domain), max_claimable_amount: Amount(ceiling) };
                let signature = Signature::new(&key(PAYER).sign_hash_sync(&voucher.digest(&domain)).unwrap());
                let voucher = SignedVoucher { voucher, signature };
                let row = ClaimRow { config, voucher, total_claimed: Amount(total) };
                let report = self.receivers[channel].settlement.claim(&[row]).await?;
                report.refused.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            }
            Call::Settle { channel } => {
                let receiver = self.receivers[channel].client.address();
                self.payer.settlement.settle(receiver, self.world.addresses().token).await.map(drop)
            }
            Call::InitiateWithdraw { channel, amount } => {
                let config = config(&self.world, channel);
                self.payer.settlement.initiate_withdraw(&config, Amount(amount)).await.map(drop)
            }
            Call::FinalizeWithdraw { channel } => {
                let config = config(&self.world, channel);
                self.payer.settlement.finalize_withdraw(&config).await.map(drop)
            }
        }
    }

    async fn compare(&self, model: &Settlement) {
        let at = self.world.addresses();
        let domain = settlement_domain(at.chain_id, at.settlement);
        let token = &self.world.faucet.token;
        for (channel, expect) in model.channels.iter().enumerate() {
            let config = config(&self.world, channel);
            let id = config.id(&domain);
            let state = self.payer.settlement.channel(id).await.unwrap();
            let pending = self.payer.settlement.pending_withdrawal(id).await.unwrap();
            let settled = token.balance_of(config.receiver).await.unwrap().0;
            let pending = pending.map(|pending| (pending.amount.0, pending.initiated_at));
            let found = (state.balance.0, state.total_claimed.0, pending, settled);
            assert_eq!(found, (expect.balance, expect.claimed, expect.withdrawal, expect.settled));
        }
        assert_eq!(token.balance_of(key(PAYER).address()).await.unwrap().0, model.payer);
        assert_eq!(token.balance_of(at.settlement).await.unwrap().0, model.held);
    }
}

/// splitmix64.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_of_the_settlement_contract_has_its_rules() {
    let world = World::start().await;
    world.faucet.token.mint(key(PAYER).address(), Amount(SUPPLY)).await.unwrap();
    let payer = world.network(PAYER).await;
    let mut receivers = vec![];
    for channel in 0..CHANNELS as u64 {
        receivers.push(world.network(PAYER + 1 + channel).await);
    }
    let mut real = Real { world, payer, receivers, salt: 0 };
    let mut model = Settlement::new(CHANNELS, SUPPLY, DELAY);
    let (mut seed, mut clock) = (NOW, NOW);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..CALLS {
        let channel = draw(&mut seed, CHANNELS as u64) as usize;
        let amount = u128::from(draw(&mut seed, 500));
        let state = model.channels[channel];
        let call = match draw(&mut seed, 12) {
            0 | 1 => Call::Deposit { channel, amount: amount / 5 * 5 * u128::from(amount > 20) },
            // Around what is there.
            2..=5 => {
                Call::Claim { channel, ceiling: state.claimed + amount / 4, total: state.claimed + amount / 6 + 1 }
            }
            6 => Call::Claim { channel, ceiling: amount, total: state.balance.min(amount) + 1 },
            7 => Call::Settle { channel },
            8 | 9 => Call::InitiateWithdraw { channel, amount: amount * u128::from(amount > 20) / 2 },
            _ => Call::FinalizeWithdraw { channel },
        };
        if draw(&mut seed, 4) == 0 {
            real.world.chain.advance_time(DELAY / 2 + 5);
            clock += DELAY / 2 + 5;
        }
        let found = real.call(call).await;
        let now = real.payer.client.block_timestamp().await.unwrap();
        // A call that would revert makes no block: the time that it saw is that of the next one.
        let now = if found.is_ok() { now } else { now.max(clock) };
        let expect = model.apply(now, call);
        let name = match &found {
            Ok(()) => "Ok".to_owned(),
            Err(error) => error.revert().unwrap_or_else(|| panic!("{call:?}: {error}")).name.to_owned(),
        };
        match expect {
            Ok(()) => assert_eq!(name, "Ok", "{call:?}"),
            Err(Revert::InsufficientBalance) => assert_eq!(name, "ERC20InsufficientBalance", "{call:?}"),
            Err(revert) => assert_eq!(name, format!("{revert:?}"), "{call:?}"),
        }
        *seen.entry(name).or_default() += 1;
        real.compare(&model).await;
        model.check(SUPPLY);
    }
    // Every way out was taken.
    assert!(seen.len() >= 10 && seen["Ok"] > 100, "{seen:?}");
}
