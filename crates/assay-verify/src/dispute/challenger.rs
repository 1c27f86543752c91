//! The challenger's side: to the first place where the provider's trace differs from its own, and what is wrong there.

use super::{Level, Move, PlayError, Record, check_shape, group, parts, phase, site};
use alloy_sol_types::SolCall;
use assay_chain::{
    B256, Bytes, U256,
    bindings::trial::Trial,
    client::{Case, Dispute, Opening, Phase},
};
use assay_graph::{Kind, Op, Source, Trace, Tree, tree};

/// What a challenger has besides its trace.
#[derive(Clone, Debug)]
pub struct Documents {
    /// What the dispute was opened with.
    pub case: Case,
    /// Canonical bytes of the job.
    pub job: Vec<u8>,
    /// Canonical bytes of the answer.
    pub response: Vec<u8>,
    /// The answer's tokens.
    pub output: Vec<u32>,
}

/// The challenger's next move.
///
/// # Errors
/// [`PlayError::NothingWrong`] if the provider's trace and answer are the own ones; [`PlayError::OutOfStep`] if moves
/// have not been read yet; [`PlayError::NotOurMove`], [`PlayError::OtherShape`], [`PlayError::Trace`].
pub fn attack(trace: &Trace, id: B256, d: &Dispute, record: &Record, documents: &Documents) -> Result<Move, PlayError> {
    let phase = phase(d)?;
    if phase == Phase::Guilty {
        let calls = vec![punish(id, documents)];
        return Ok(Move { calls, says: "has the provider punished".into() });
    }
    if !phase.is_open() || phase.is_providers() {
        return Err(PlayError::NotOurMove(phase));
    }
    check_shape(d, trace)?;
    record.check(d, phase)?;
    let player = Player { trace, id, d, record, documents };
    match phase {
        Phase::PickNumber => player.pick_number(),
        Phase::PickStep => player.pick_step(),
        Phase::Convict if d.word.byte(0) == Kind::Choose as u8 => player.convict_choice(),
        Phase::Convict => player.convict(),
        _ => player.pick(phase),
    }
}

struct Player<'a> {
    trace: &'a Trace,
    id: B256,
    d: &'a Dispute,
    record: &'a Record,
    documents: &'a Documents,
}

impl Player<'_> {
    fn pick(&self, phase: Phase) -> Result<Move, PlayError> {
        let level = self.record.level().ok_or(PlayError::OutOfStep("another phase"))?;
        let theirs = &self.record.children;
        let ours = self.trace.nodes(level.tree, level.height, level.first, theirs.len())?;
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        let Some(index) = differs.or_else(|| self.towards_nan(level)) else {
            // Below a node that differs some child does.
            return if phase == Phase::PickPosition { self.convict_answer() } else { Err(PlayError::NothingWrong) };
        };
        let (at, place) = (U256::from(index), level.first + index as u64);
        let path = tree::path(theirs, level.levels, level.height, index);
        let says = format!("picks {} {place} of the {}", height_name(level), super::record::what(level.tree));
        if phase == Phase::PickOp && u32::from(self.d.remaining) == level.levels {
            let op = u16::try_from(place).map_err(|_| PlayError::OutOfStep("an operation's number"))?;
            let call = Trial::pickOpCall {
                id: self.id,
                index: at,
                child: theirs[index],
                path,
                word: self.op(op)?.word(),
                wordPath: self.trace.model().graph().word_path(op),
                content: self.documents.case.clone(),
            };
            let kind = self.op(op)?.kind;
            let says = format!("picks operation {op} at position {} ({kind:?})", self.d.spot.position);
            return Ok(Move { calls: vec![call.abi_encode().into()], says });
        }
        let call = Trial::pickCall { id: self.id, index: at, child: theirs[index], path };
        Ok(Move { calls: vec![call.abi_encode().into()], says })
    }

    /// An honest trace has no NaN: where the own one has one, whoever signed is convicted of it, even if both traces are
    /// the same.
    fn towards_nan(&self, level: Level) -> Option<usize> {
        let site = self.trace.first_nan()?;
        let leaf = match level.tree {
            Tree::Positions => site.position,
            Tree::Ops { position } if position == site.position => site.op.into(),
            Tree::Leaves { position, op } if (position, op) == (site.position, site.op) => site.leaf,
            _ => return None,
        };
        let index = (u64::from(leaf) >> level.height).checked_sub(level.first)?;
        usize::try_from(index).ok().filter(|index| *index < self.record.children.len())
    }

    fn pick_number(&self) -> Result<Move, PlayError> {
        let spot = &self.d.spot;
        let (first, count, levels) = group(spot.leaves, self.d.prefix);
        let theirs = &self.record.bytes;
        let ours = self.trace.leaves(spot.position, spot.op, first.into(), count.into())?;
        let op = self.op(spot.op)?;
        let width = op.leaf_len();
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        let nan = self.trace.first_nan().filter(|site| site.leaf >= first && op.block().is_none());
        let at = differs.or(nan.map(|site| (site.leaf - first) as usize * width + 4 * usize::from(site.slot)));
        let at = at.filter(|at| *at < theirs.len()).ok_or(PlayError::NothingWrong)?;
        let (index, byte) = (at / width, at % width);
        // Of a block: its values of a byte each, then the scale.
        let slot = op.block().map_or(byte / 4, |values| byte.min(values));
        let hashes: Vec<B256> = theirs.chunks(width).map(tree::leaf_hash).collect();
        let opening = Opening {
            leaf: theirs[index * width..(index + 1) * width].to_vec().into(),
            path: tree::path(&hashes, levels, 0, index),
        };
        let call = Trial::pickNumberCall { id: self.id, index: U256::from(index), slot: U256::from(slot), opening };
        let says = format!(
            "picks number {slot} of leaf {} of operation {} at position {}",
            first as usize + index,
            spot.op,
            spot.position
        );
        Ok(Move { calls: vec![call.abi_encode().into()], says })
    }

    fn pick_step(&self) -> Result<Move, PlayError> {
        let (low, high) = (self.d.spot.low.to::<u32>(), self.d.spot.high.to::<u32>());
        let (count, width) = parts(low, high);
        let theirs = &self.record.bytes;
        let ours = self.trace.states(site(self.d), low.into(), high.into(), count.into())?;
        // What the last part ends with is not among them: it is the number itself.
        let part = theirs.chunks(4).zip(ours.chunks(4)).take_while(|(a, b)| a == b && !is_nan(a)).count();
        let call = Trial::pickStepCall { id: self.id, part: U256::from(part), values: theirs.clone() };
        let from = low + width * part as u32;
        let says = format!("picks steps {from} to {} of {high}", (from + width).min(high));
        Ok(Move { calls: vec![call.abi_encode().into()], says })
    }

    fn convict(&self) -> Result<Move, PlayError> {
        let step = self.d.spot.low.to::<u32>();
        let theirs = &self.record.bytes;
        let ours = self.trace.operands(site(self.d), step.into())?;
        let Some(wrong) = theirs.iter().zip(&ours.bytes).position(|(a, b)| a != b) else {
            let call = Trial::convictStepCall { id: self.id, stated: theirs.clone() };
            let says = format!("convicts: from these operands step {step} does not give what the provider says");
            return Ok(self.judged(vec![call.abi_encode().into()], says));
        };
        let mut at = 0;
        for (index, operand) in ours.operands.iter().enumerate() {
            let length = operand.length as usize;
            if wrong < at + length {
                return self.convict_operand(index, operand, wrong - at);
            }
            at += length;
        }
        Err(PlayError::OutOfStep("the operands have another length"))
    }

    /// By operand `index`, whose byte `wrong` was stated wrongly.
    fn convict_operand(&self, index: usize, operand: &assay_graph::Operand, wrong: usize) -> Result<Move, PlayError> {
        let mut calls = vec![];
        let mut part = 0;
        let opening = match operand.source {
            Source::Tokens => {
                calls.push(self.show(operand.position as u32));
                nothing()
            }
            Source::Trace => {
                self.trace.open(operand.position as u32, operand.op, operand.leaf, &self.record.revealed)?
            }
            Source::Weights | Source::Rotation => {
                part = (operand.offset % 1024 + wrong as u64) / 1024;
                self.trace.open_model(operand, part)?
            }
        };
        let call = Trial::convictOperandCall {
            id: self.id,
            stated: self.record.bytes.clone(),
            index: U256::from(index),
            part: U256::from(part),
            opening: sent(opening),
            content: self.documents.case.clone(),
        };
        calls.push(call.abi_encode().into());
        let from = match operand.source {
            Source::Tokens => "the request's tokens",
            Source::Trace => "its own trace",
            Source::Weights => "the model's weights",
            Source::Rotation => "the model's rotation table",
        };
        Ok(self.judged(calls, format!("convicts: what the provider states of {from} is not what is there")))
    }

    fn convict_choice(&self) -> Result<Move, PlayError> {
        let spot = &self.d.spot;
        let op = self.op(spot.op)?;
        let better = self.trace.number(site(self.d))?;
        let open = |token: u32| self.trace.open(spot.position, op.a, u64::from(token / 32), &self.record.revealed);
        // A token that the model does not have needs no logit.
        let of_chosen = if spot.afterwards < op.cols { open(spot.afterwards)? } else { nothing() };
        let call = Trial::convictChoiceCall {
            id: self.id,
            better: U256::from(better),
            ofChosen: sent(of_chosen),
            ofBetter: sent(open(better)?),
        };
        let says = format!("convicts: token {better} comes before token {} that the provider chose", spot.afterwards);
        Ok(self.judged(vec![self.show(0), call.abi_encode().into()], says))
    }

    /// The trace is right: then the answer must be another one than it gives.
    fn convict_answer(&self) -> Result<Move, PlayError> {
        let input = self.d.inputTokens;
        let wrong = self.documents.output.iter().zip(0u32..).find_map(|(token, index)| {
            let expected = *self.trace.chosen().get(index as usize)?;
            (expected != *token).then_some((index, *token, expected))
        });
        let (index, token, expected) = wrong.ok_or(PlayError::NothingWrong)?;
        let op = self.trace.model().graph().choose_op();
        let call = Trial::convictAnswerCall {
            id: self.id,
            op: U256::from(op),
            word: self.op(op)?.word(),
            wordPath: self.trace.model().graph().word_path(op),
            opening: sent(self.trace.open(input + index - 1, op, 0, &self.record.revealed)?),
            content: self.documents.case.clone(),
        };
        let says = format!("convicts: the provider's own trace chooses token {expected}, its answer has {token}");
        Ok(self.judged(vec![self.show(input + index), call.abi_encode().into()], says))
    }

    fn op(&self, op: u16) -> Result<&Op, PlayError> {
        let found = self.trace.model().graph().ops().get(usize::from(op));
        found.ok_or(PlayError::OutOfStep("an operation's number"))
    }

    /// Shows the token at a position, and with one of the input how the sampler was set.
    fn show(&self, position: u32) -> Bytes {
        let content = self.documents.case.clone();
        if position < self.d.inputTokens {
            let job = self.documents.job.clone().into();
            return Trial::showInputCall { id: self.id, position, job, content }.abi_encode().into();
        }
        let response = self.documents.response.clone().into();
        Trial::showOutputCall { id: self.id, position, response, content }.abi_encode().into()
    }

    /// A conviction with its punishment in one transaction.
    fn judged(&self, mut calls: Vec<Bytes>, says: String) -> Move {
        calls.push(punish(self.id, self.documents));
        Move { calls, says }
    }
}

/// Of the big-endian bits of an f32.
fn is_nan(bits: &[u8]) -> bool {
    bits.first_chunk().is_some_and(|bits| f32::from_bits(u32::from_be_bytes(*bits)).is_nan())
}

fn punish(id: B256, documents: &Documents) -> Bytes {
    Trial::punishCall { id, content: documents.case.clone() }.abi_encode().into()
}

fn nothing() -> assay_graph::Opening {
    assay_graph::Opening { leaf: vec![], path: vec![] }
}

fn sent(opening: assay_graph::Opening) -> Opening {
    Opening { leaf: opening.leaf.into(), path: opening.path }
}

fn height_name(level: Level) -> &'static str {
    if level.height == 0 { "child" } else { "part" }
}
