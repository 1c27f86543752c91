//! Several providers, one job: each commits to its answer before any of them shows it.
//!
//! A commitment binds who makes it ([`answer_commitment`]), so a copy of another's is no commitment of one's own, and who
//! sees an answer only when it is shown has committed to something else already. Exact providers agree in every token;
//! where they do not, nobody is voted down: [`Outcome::Disagreement`] is for a replay to decide.
//! A plain struct; the caller sends, waits and replays.
//!
//! ```text
//! Committing --all committed, or closed with enough--> Showing --all shown, or closed--> an Outcome
//! ```

use assay_types::{B256, ProviderId, RequestHash, ResponseHash, answer_commitment};

/// Most providers for one answer.
pub const REDUNDANT_MAX: usize = 8;

/// What a provider did that does not belong there. The round goes on without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RoundError {
    /// It is not asked, or was dropped.
    #[error("this provider is not in the round")]
    Unknown,
    /// Answers are being shown: a commitment made now could be to somebody else's.
    #[error("the commitment comes after answers were shown")]
    TooLate,
    /// A second commitment or answer.
    #[error("it has done so before")]
    Twice,
    /// Commitments are still to come.
    #[error("an answer is shown before all have committed")]
    TooEarly,
    /// The answer is not the one that it committed to.
    #[error("the answer is not the one that was committed to")]
    Mismatch,
}

/// Which part of the round it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Committing,
    Showing,
}

#[derive(Clone, Copy, Debug)]
struct Party {
    provider: ProviderId,
    /// Its own: jobs of one round differ in their nonce.
    request: RequestHash,
    commitment: Option<B256>,
    response: Option<ResponseHash>,
    /// Takes no part any more.
    is_out: bool,
}

/// How a round ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As many as were asked for, and all the same.
    Agreement {
        /// The answer.
        response: ResponseHash,
        /// Who gave it.
        providers: Vec<ProviderId>,
    },
    /// Not all the same: each answer and who gave it, the most frequent first. A replay says which are wrong.
    Disagreement {
        /// At least two.
        answers: Vec<(ResponseHash, Vec<ProviderId>)>,
    },
    /// Too few answers to say that as many agree as were asked for.
    TooFew {
        /// Who answered.
        answered: usize,
    },
}

/// One round.
#[derive(Clone, Debug)]
pub struct Round {
    needed: usize,
    phase: Phase,
    parties: Vec<Party>,
}

impl Round {
    /// A round that needs `needed` equal answers, 1 to [`REDUNDANT_MAX`].
    #[must_use]
    pub fn new(needed: usize) -> Self {
        Self { needed: needed.clamp(1, REDUNDANT_MAX), phase: Phase::Committing, parties: Vec::new() }
    }

    /// Asks a provider; also in place of one that was lost. `false`: answers are being shown, or it was asked before.
    pub fn ask(&mut self, provider: ProviderId, request: RequestHash) -> bool {
        let is_new = self.parties.iter().all(|party| party.provider != provider);
        if self.phase != Phase::Committing || !is_new {
            return false;
        }
        self.parties.push(Party { provider, request, commitment: None, response: None, is_out: false });
        true
    }

    /// Everyone that was asked.
    pub fn asked(&self) -> impl Iterator<Item = ProviderId> + '_ {
        self.parties.iter().map(|party| party.provider)
    }

    /// How many that were asked still take part.
    #[must_use]
    pub fn running(&self) -> usize {
        self.parties.iter().filter(|party| !party.is_out).count()
    }

    /// How many have committed and still take part.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.parties.iter().filter(|party| !party.is_out && party.commitment.is_some()).count()
    }

    /// Who still takes part and has not committed.
    #[must_use]
    pub fn uncommitted(&self) -> Vec<ProviderId> {
        let waits = |party: &&Party| !party.is_out && party.commitment.is_none();
        self.parties.iter().filter(waits).map(|party| party.provider).collect()
    }

    /// A commitment. `Ok(true)`: as many have committed as are needed and nobody is waited for; call [`Self::show`].
    /// Two that are equal both stand: only the one whose name is in it can be opened, whichever came first.
    ///
    /// # Errors
    /// [`RoundError`]; the provider is out.
    pub fn on_commit(&mut self, provider: ProviderId, commitment: B256) -> Result<bool, RoundError> {
        let phase = self.phase;
        let party = self.party(provider)?;
        let error = match () {
            () if phase != Phase::Committing => Some(RoundError::TooLate),
            () if party.commitment.is_some() => Some(RoundError::Twice),
            () => None,
        };
        if let Some(error) = error {
            party.is_out = true;
            return Err(error);
        }
        party.commitment = Some(commitment);
        Ok(self.all_committed())
    }

    /// A provider is lost: it refused, broke off, or its time is up. Returns whether it had committed: then it owes an
    /// answer that it does not show.
    pub fn on_lost(&mut self, provider: ProviderId) -> bool {
        let Ok(party) = self.party(provider) else { return false };
        party.is_out = true;
        party.commitment.is_some()
    }

    /// Whether everyone who still takes part has committed, and they are enough.
    #[must_use]
    pub fn all_committed(&self) -> bool {
        self.running() >= self.needed && self.parties.iter().all(|p| p.is_out || p.commitment.is_some())
    }

    /// Ends the time for commitments: who has not committed is out, and nobody may commit any more. Returns who has to
    /// show its answer now.
    pub fn show(&mut self) -> Vec<ProviderId> {
        self.phase = Phase::Showing;
        for party in &mut self.parties {
            party.is_out |= party.commitment.is_none();
        }
        self.parties.iter().filter(|party| !party.is_out).map(|party| party.provider).collect()
    }

    /// An answer is shown.
    ///
    /// # Errors
    /// [`RoundError`]; the provider is out.
    pub fn on_answer(&mut self, provider: ProviderId, salt: B256, response: ResponseHash) -> Result<(), RoundError> {
        let phase = self.phase;
        let party = self.party(provider)?;
        let opened = answer_commitment(provider, party.request, salt, response);
        let error = match () {
            () if phase != Phase::Showing => Some(RoundError::TooEarly),
            () if party.response.is_some() => Some(RoundError::Twice),
            () if party.commitment != Some(opened) => Some(RoundError::Mismatch),
            () => None,
        };
        if let Some(error) = error {
            party.is_out = true;
            return Err(error);
        }
        party.response = Some(response);
        Ok(())
    }

    /// What the answers that were shown say. Who has not shown one by now is left out.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let mut answers: Vec<(ResponseHash, Vec<ProviderId>)> = Vec::new();
        for party in self.parties.iter().filter(|party| !party.is_out) {
            let Some(response) = party.response else { continue };
            match answers.iter_mut().find(|(known, _)| *known == response) {
                Some((_, providers)) => providers.push(party.provider),
                None => answers.push((response, vec![party.provider])),
            }
        }
        answers.sort_by_key(|(_, providers)| std::cmp::Reverse(providers.len()));
        let answered = answers.iter().map(|(_, providers)| providers.len()).sum();
        if answers.len() > 1 {
            return Outcome::Disagreement { answers };
        }
        match answers.pop() {
            Some((response, providers)) if providers.len() >= self.needed => Outcome::Agreement { response, providers },
            _ => Outcome::TooFew { answered },
        }
    }

    fn party(&mut self, provider: ProviderId) -> Result<&mut Party, RoundError> {
        let found = self.parties.iter_mut().find(|party| party.provider == provider && !party.is_out);
        found.ok_or(RoundError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::Address;

    fn id(n: u8) -> ProviderId {
        ProviderId(Address::repeat_byte(n))
    }

    fn request(n: u8) -> RequestHash {
        RequestHash(B256::repeat_byte(0x80 + n))
    }

    fn salt(n: u8) -> B256 {
        B256::repeat_byte(0x40 + n)
    }

    const RIGHT: ResponseHash = ResponseHash(B256::repeat_byte(1));
    const WRONG: ResponseHash = ResponseHash(B256::repeat_byte(2));

    fn commitment(n: u8, response: ResponseHash) -> B256 {
        answer_commitment(id(n), request(n), salt(n), response)
    }

    /// Providers 1 to `n`, who are all asked.
    fn round(n: u8) -> Round {
        let mut round = Round::new(usize::from(n));
        (1..=n).for_each(|i| assert!(round.ask(id(i), request(i))));
        round
    }

    /// All commit to and show these answers.
    fn play(responses: &[ResponseHash]) -> Outcome {
        let count = responses.len() as u8;
        let mut round = round(count);
        for (n, &response) in (1..).zip(responses) {
            assert_eq!(round.on_commit(id(n), commitment(n, response)), Ok(n == count));
        }
        assert_eq!(round.show(), (1..=count).map(id).collect::<Vec<_>>());
        for (n, &response) in (1..).zip(responses) {
            round.on_answer(id(n), salt(n), response).unwrap();
        }
        round.outcome()
    }

    #[test]
    fn equal_answers_agree() {
        let providers = vec![id(1), id(2), id(3)];
        assert_eq!(play(&[RIGHT; 3]), Outcome::Agreement { response: RIGHT, providers });
    }

    #[test]
    fn a_majority_is_not_right_by_being_one() {
        let answers = |first, few: Vec<u8>, second, one: Vec<u8>| Outcome::Disagreement {
            answers: vec![(first, few.into_iter().map(id).collect()), (second, one.into_iter().map(id).collect())],
        };
        assert_eq!(play(&[RIGHT, WRONG, RIGHT]), answers(RIGHT, vec![1, 3], WRONG, vec![2]));
        assert_eq!(play(&[WRONG, WRONG, RIGHT]), answers(WRONG, vec![1, 2], RIGHT, vec![3]));
    }

    /// Threat row 3: who copies a commitment holds one that is not its own; who waits for an answer to copy is too late.
    #[test]
    fn a_copier_always_loses() {
        // A peer's commitment, whether it comes after the original or gets ahead of it.
        let first = commitment(1, RIGHT);
        for order in [[1, 2], [2, 1]] {
            let mut round = self::round(2);
            for n in order {
                round.on_commit(id(n), first).unwrap();
            }
            round.show();
            assert_eq!(round.on_answer(id(2), salt(1), RIGHT), Err(RoundError::Mismatch));
            assert_eq!(round.on_answer(id(1), salt(1), RIGHT), Ok(()), "the one that was copied is not hurt");
            assert_eq!(round.outcome(), Outcome::TooFew { answered: 1 });
        }

        // Something of its own, to be replaced by the answer that its peer shows.
        let mut round = self::round(2);
        round.on_commit(id(1), first).unwrap();
        round.on_commit(id(2), B256::repeat_byte(0xee)).unwrap();
        round.show();
        round.on_answer(id(1), salt(1), RIGHT).unwrap();
        assert_eq!(round.on_answer(id(2), salt(2), RIGHT), Err(RoundError::Mismatch));

        // A commitment of its own to the answer that it has seen: the time for that is over.
        let mut round = self::round(2);
        assert!(round.ask(id(3), request(3)));
        round.on_commit(id(1), first).unwrap();
        round.on_commit(id(2), commitment(2, RIGHT)).unwrap();
        assert_eq!(round.show(), [id(1), id(2)], "who has not committed by now shows nothing");
        round.on_answer(id(1), salt(1), RIGHT).unwrap();
        assert_eq!(round.on_commit(id(3), commitment(3, RIGHT)), Err(RoundError::Unknown));
        assert_eq!(round.on_answer(id(3), salt(3), RIGHT), Err(RoundError::Unknown));
        assert!(!round.ask(id(4), request(4)));
    }

    /// Threat row 15: who sees an opening on its way and sends it first opens nothing, since the commitment has another
    /// name in it; the one it was taken from still can.
    #[test]
    fn a_front_run_opening_opens_nothing() {
        let mut round = self::round(2);
        round.on_commit(id(1), commitment(1, RIGHT)).unwrap();
        round.on_commit(id(2), commitment(2, WRONG)).unwrap();
        round.show();
        let (seen_salt, seen_response) = (salt(1), RIGHT);
        assert_eq!(round.on_answer(id(2), seen_salt, seen_response), Err(RoundError::Mismatch));
        assert_eq!(round.on_answer(id(1), seen_salt, seen_response), Ok(()));
        // The same request and salt under another name is another commitment.
        let own = answer_commitment(id(2), request(1), salt(1), RIGHT);
        assert_ne!(own, commitment(1, RIGHT));
    }

    #[test]
    fn the_late_and_the_silent_are_left_out_and_replaced() {
        let mut round = self::round(2);
        round.on_commit(id(1), commitment(1, RIGHT)).unwrap();
        assert!(!round.on_lost(id(2)), "it had not committed");
        assert!(!round.all_committed(), "one is not enough");
        assert!(!round.ask(id(2), request(2)), "nobody gets a second try");
        assert!(round.ask(id(3), request(3)));
        assert_eq!(round.on_commit(id(3), commitment(3, RIGHT)), Ok(true));
        round.show();
        round.on_answer(id(1), salt(1), RIGHT).unwrap();
        assert!(round.on_lost(id(3)), "it owes an answer");
        assert_eq!(round.on_answer(id(3), salt(3), RIGHT), Err(RoundError::Unknown));
        assert_eq!(round.outcome(), Outcome::TooFew { answered: 1 });
        assert_eq!(round.asked().count(), 3);
    }

    #[test]
    fn nothing_counts_twice_or_out_of_turn() {
        let mut round = self::round(2);
        assert_eq!(round.on_answer(id(1), salt(1), RIGHT), Err(RoundError::TooEarly));
        let mut round = self::round(2);
        round.on_commit(id(1), commitment(1, RIGHT)).unwrap();
        assert_eq!(round.on_commit(id(1), commitment(1, WRONG)), Err(RoundError::Twice));
        assert_eq!(round.on_commit(id(9), commitment(9, RIGHT)), Err(RoundError::Unknown));
        let mut round = self::round(1);
        round.on_commit(id(1), commitment(1, RIGHT)).unwrap();
        round.show();
        round.on_answer(id(1), salt(1), RIGHT).unwrap();
        assert_eq!(round.on_answer(id(1), salt(1), RIGHT), Err(RoundError::Twice));
    }
}
