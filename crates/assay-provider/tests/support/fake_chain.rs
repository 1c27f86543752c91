//! A chain in memory. It fakes consensus, gas and time; it does not fake the contract's rules that a provider relies
//! on: signatures of vouchers, cumulative claims, ceilings and balances are checked as the contract does.

use super::{addresses, provider_key};
use assay_chain::{ChainError, ClaimRow, client::ChannelState, client::ClaimReport};
use assay_protocol::ChannelTerms;
use assay_provider::{Answer, Chain, ChannelOnChain, Entry, Registered};
use assay_types::{Amount, B256, ChannelConfig, ChannelId, settlement_domain};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;

#[derive(Default)]
pub struct FakeChain {
    state: Mutex<State>,
    /// Told after each claim.
    pub claimed: Notify,
}

#[derive(Default)]
struct State {
    channels: HashMap<ChannelId, ChannelOnChain>,
    entry: Option<Entry>,
    stake: Amount,
    claimed: Amount,
    settled: Amount,
    is_down: bool,
    /// Every registry transaction.
    registrations: Vec<String>,
}

fn id(config: &ChannelConfig) -> ChannelId {
    config.id(&settlement_domain(addresses().chain_id, addresses().settlement))
}

impl FakeChain {
    pub fn deposit(&self, config: &ChannelConfig, amount: u128) {
        let mut state = self.lock();
        let channel = state.channels.entry(id(config)).or_default();
        channel.state.balance.0 += amount;
        channel.settled_balance = channel.state.balance;
    }

    pub fn initiate_withdraw(&self, config: &ChannelConfig) {
        self.lock().channels.get_mut(&id(config)).unwrap().is_withdrawing = true;
    }

    /// A reorganization: no claim was ever made.
    pub fn undo_claims(&self) {
        let mut state = self.lock();
        (state.claimed, state.settled) = (Amount::ZERO, Amount::ZERO);
        state.channels.values_mut().for_each(|channel| channel.state.total_claimed = Amount::ZERO);
    }

    pub fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
    }

    pub fn total_claimed(&self, config: &ChannelConfig) -> u128 {
        self.lock().channels.get(&id(config)).map_or(0, |channel| channel.state.total_claimed.0)
    }

    pub fn settled(&self) -> u128 {
        self.lock().settled.0
    }

    pub fn stake(&self) -> u128 {
        self.lock().stake.0
    }

    pub fn transport_key(&self) -> Option<B256> {
        self.lock().entry.as_ref().map(|entry| entry.transport_key)
    }

    pub fn registrations(&self) -> Vec<String> {
        self.lock().registrations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn act<T: Send + 'static>(&self, act: impl FnOnce(&mut State) -> T) -> Answer<'_, T> {
        let mut state = self.lock();
        let result = if state.is_down {
            Err(ChainError::Transport { method: "fake", detail: "the chain is down".into() })
        } else {
            Ok(act(&mut state))
        };
        Box::pin(std::future::ready(result))
    }
}

/// The rules of `BatchSettlement.claim`; `false` reverts.
fn claim_one(state: &mut State, row: &ClaimRow) -> bool {
    let terms = ChannelTerms::new(row.config, settlement_domain(addresses().chain_id, addresses().settlement));
    let Some(channel) = state.channels.get_mut(&terms.id()) else { return false };
    let ChannelState { balance, total_claimed } = &mut channel.state;
    if row.total_claimed <= *total_claimed {
        return true;
    }
    let is_receiver = row.config.receiver_authorizer == provider_key().address();
    let is_covered = row.total_claimed <= row.voucher.voucher.max_claimable_amount && row.total_claimed <= *balance;
    if !is_receiver || !is_covered || terms.verify(&row.voucher).is_err() {
        return false;
    }
    state.claimed.0 += row.total_claimed.0 - total_claimed.0;
    *total_claimed = row.total_claimed;
    true
}

impl Chain for FakeChain {
    fn channel(&self, id: ChannelId) -> Answer<'_, ChannelOnChain> {
        self.act(|state| state.channels.get(&id).copied().unwrap_or_default())
    }

    fn claim(&self, rows: Vec<ClaimRow>) -> Answer<'_, ClaimReport> {
        let answer = self.act(move |state| {
            let mut report = ClaimReport::default();
            for row in &rows {
                let id = row.voucher.voucher.channel_id;
                if claim_one(state, row) {
                    report.claimed.push(id);
                } else {
                    report.refused.push((id, ChainError::BadArgument("the fake contract refuses".into())));
                }
            }
            report
        });
        self.claimed.notify_one();
        answer
    }

    fn settle(&self) -> Answer<'_, Amount> {
        self.act(|state| {
            let due = Amount(state.claimed.0 - state.settled.0);
            state.settled = state.claimed;
            due
        })
    }

    fn claimed(&self) -> Answer<'_, Amount> {
        self.act(|state| state.claimed)
    }

    fn registered(&self) -> Answer<'_, Registered> {
        self.act(|state| Registered { entry: state.entry.clone(), stake: state.stake })
    }

    fn register(&self, entry: Entry) -> Answer<'_, ()> {
        self.act(|state| {
            assert!(state.entry.is_none(), "AlreadyRegistered");
            state.registrations.push(format!("register {}", entry.endpoint));
            state.entry = Some(entry);
        })
    }

    fn update(&self, entry: Entry) -> Answer<'_, ()> {
        self.act(|state| {
            assert!(state.entry.is_some(), "NotRegistered");
            state.registrations.push(format!("update {}", entry.endpoint));
            state.entry = Some(entry);
        })
    }

    fn stake(&self, amount: Amount) -> Answer<'_, ()> {
        self.act(|state| {
            assert!(state.entry.is_some(), "NotRegistered");
            state.registrations.push(format!("stake {amount}"));
            state.stake.0 += amount.0;
        })
    }
}
