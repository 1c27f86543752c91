//! A model of the settlement contract and of a chain that may be reorganized, for simulations.
//!
//! One payer, and a channel to each of several receivers. The rules are those of `BatchSettlement`, in its order of
//! checks and with the names of its errors; a test of `assay-chain` holds them against the contract's bytecode. Faked:
//! signatures (whoever holds a ceiling may state it), gas, and everything that the simulated parties never call.

#![allow(missing_docs, reason = "fields and variants that their names explain")]

use std::collections::VecDeque;

/// Blocks that may be undone; what is deeper is final.
pub const FINALITY: usize = 3;

/// A call of the contract. `channel` also names its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// By the payer's signature.
    Deposit { channel: usize, amount: u128 },
    /// By the receiver, with a voucher of `ceiling`.
    Claim { channel: usize, ceiling: u128, total: u128 },
    /// By anyone: what the receiver claimed is sent to it.
    Settle { channel: usize },
    /// By the payer.
    InitiateWithdraw { channel: usize, amount: u128 },
    /// By the payer.
    FinalizeWithdraw { channel: usize },
}

/// Why a call reverts, by the contract's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revert {
    ZeroDeposit,
    /// The token's: the payer has less.
    InsufficientBalance,
    ClaimExceedsCeiling,
    ClaimExceedsBalance,
    NothingToWithdraw,
    WithdrawalAlreadyPending,
    WithdrawAmountExceedsAvailable,
    WithdrawalNotPending,
    WithdrawDelayNotElapsed,
}

/// A channel and its receiver's sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Channel {
    pub balance: u128,
    pub claimed: u128,
    /// Amount and moment of the wish.
    pub withdrawal: Option<(u128, u64)>,
    /// Of `claimed`, what the receiver has.
    pub settled: u128,
}

/// The contract's state and the token's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settlement {
    pub channels: Vec<Channel>,
    /// What the payer holds.
    pub payer: u128,
    /// What the contract holds.
    pub held: u128,
    pub withdraw_delay: u64,
}

impl Settlement {
    /// Nothing deposited yet.
    #[must_use]
    pub fn new(channels: usize, payer: u128, withdraw_delay: u64) -> Self {
        Self { channels: vec![Channel::default(); channels], payer, held: 0, withdraw_delay }
    }

    /// Applies a call at block time `now`; nothing changes if it reverts.
    ///
    /// # Errors
    /// As the contract.
    pub fn apply(&mut self, now: u64, call: Call) -> Result<(), Revert> {
        match call {
            Call::Deposit { channel, amount } => self.deposit(channel, amount),
            Call::Claim { channel, ceiling, total } => self.claim(channel, ceiling, total),
            Call::Settle { channel } => {
                let channel = &mut self.channels[channel];
                self.held -= channel.claimed - channel.settled;
                channel.settled = channel.claimed;
                Ok(())
            }
            Call::InitiateWithdraw { channel, amount } => self.initiate(channel, amount, now),
            Call::FinalizeWithdraw { channel } => self.finalize(channel, now),
        }
    }

    fn deposit(&mut self, channel: usize, amount: u128) -> Result<(), Revert> {
        if amount == 0 {
            return Err(Revert::ZeroDeposit);
        }
        self.payer = self.payer.checked_sub(amount).ok_or(Revert::InsufficientBalance)?;
        self.held += amount;
        self.channels[channel].balance += amount;
        Ok(())
    }

    fn claim(&mut self, channel: usize, ceiling: u128, total: u128) -> Result<(), Revert> {
        let channel = &mut self.channels[channel];
        if total <= channel.claimed {
            return Ok(());
        }
        if total > ceiling {
            return Err(Revert::ClaimExceedsCeiling);
        }
        if total > channel.balance {
            return Err(Revert::ClaimExceedsBalance);
        }
        channel.claimed = total;
        Ok(())
    }

    fn initiate(&mut self, channel: usize, amount: u128, now: u64) -> Result<(), Revert> {
        let channel = &mut self.channels[channel];
        if amount == 0 {
            return Err(Revert::NothingToWithdraw);
        }
        if channel.withdrawal.is_some() {
            return Err(Revert::WithdrawalAlreadyPending);
        }
        if amount > channel.balance - channel.claimed {
            return Err(Revert::WithdrawAmountExceedsAvailable);
        }
        channel.withdrawal = Some((amount, now));
        Ok(())
    }

    fn finalize(&mut self, channel: usize, now: u64) -> Result<(), Revert> {
        let channel = &mut self.channels[channel];
        let (amount, since) = channel.withdrawal.ok_or(Revert::WithdrawalNotPending)?;
        if now < since + self.withdraw_delay {
            return Err(Revert::WithdrawDelayNotElapsed);
        }
        channel.withdrawal = None;
        let amount = amount.min(channel.balance - channel.claimed);
        channel.balance -= amount;
        self.held -= amount;
        self.payer += amount;
        Ok(())
    }

    /// What receivers have.
    #[must_use]
    pub fn received(&self) -> u128 {
        self.channels.iter().map(|channel| channel.settled).sum()
    }

    /// Panics unless the contract holds what it owes, and every token is somewhere.
    pub fn check(&self, supply: u128) {
        let owed: u128 = self.channels.iter().map(|c| c.balance - c.settled).sum();
        assert!(self.channels.iter().all(|c| c.settled <= c.claimed && c.claimed <= c.balance), "{self:?}");
        assert_eq!(self.held, owed, "the contract holds what it owes: {self:?}");
        assert_eq!(self.payer + self.held + self.received(), supply, "no token is made or lost: {self:?}");
    }
}

/// Blocks and what waits for one.
#[derive(Clone, Debug)]
pub struct Chain {
    pub now: u64,
    /// State after each block and what was in it, the oldest first; the first one is final.
    blocks: VecDeque<(Settlement, Vec<Call>)>,
    pub waiting: Vec<Call>,
    supply: u128,
}

impl Chain {
    /// A chain whose genesis is `state`.
    #[must_use]
    pub fn new(state: Settlement) -> Self {
        let supply = state.payer + state.held + state.received();
        Self { now: 1_000, blocks: VecDeque::from([(state, vec![])]), waiting: vec![], supply }
    }

    /// What a node says when it is asked for the latest state.
    #[must_use]
    pub fn head(&self) -> &Settlement {
        &self.blocks.back().expect("there is always a block").0
    }

    /// What can not be undone any more.
    #[must_use]
    pub fn settled(&self) -> &Settlement {
        &self.blocks[self.blocks.len().saturating_sub(FINALITY + 1)].0
    }

    /// A block with all that waits; what reverts is gone.
    pub fn seal(&mut self) {
        let mut state = self.head().clone();
        let calls = std::mem::take(&mut self.waiting);
        let taken = calls.into_iter().filter(|&call| state.apply(self.now, call).is_ok()).collect();
        state.check(self.supply);
        self.blocks.push_back((state, taken));
        if self.blocks.len() > FINALITY + 1 {
            self.blocks.pop_front();
        }
    }

    /// Undoes up to `depth` blocks. What was in them waits again, the latest first; returns it, the deepest last.
    pub fn reorganize(&mut self, depth: usize) -> Vec<Call> {
        let mut undone = vec![];
        for _ in 0..depth.min(self.blocks.len() - 1) {
            let (_, calls) = self.blocks.pop_back().expect("more than one block");
            undone.extend(calls.into_iter().rev());
        }
        self.waiting.extend(undone.iter().copied());
        undone
    }
}
