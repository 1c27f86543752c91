//! The trace of a request: every number of its computation, of which only roots, keys and values are kept.
//!
//! One pass over all positions gives the root of each; whatever else is asked for is computed again, one position at a
//! time. Memory: keys and values of all positions, a hash each, and the numbers of a batch of positions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::B256;
use assay_gguf::RopeTables;
use assay_num::sample::{SampleParams, SampleScratch};
use assay_num::{MatrixError, f16, sample};

use crate::attention::Kv;
use crate::compile::GraphError;
use crate::forward::{Inputs, Keep, Plan, Worker, finished, roots};
use crate::judge::evaluate;
use crate::merkle::LEAF_LEN;
use crate::model::TracedModel;
use crate::op::{Kind, LEAF_NUMBERS, Op};
use crate::operands::{Operand, Site, Source, operands, slots, steps};
use crate::position::{State, Values};
use crate::reveal::Revealed;
use crate::tree;

/// Positions that are computed at a time: they share the packing of each matrix.
const BATCH: usize = 64;
/// Positions whose numbers are kept.
const KEPT_POSITIONS: usize = 2;
/// Most positions (`Trial.POSITIONS_MAX`).
const POSITIONS_MAX: usize = 1 << 20;

/// A tree of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tree {
    /// Over all positions; its root is the trace's.
    Positions,
    /// Over the operations of a position.
    Ops {
        /// The position.
        position: u32,
    },
    /// Over the leaves of an operation.
    Leaves {
        /// The position.
        position: u32,
        /// The operation.
        op: u16,
    },
}

/// One number that is not what it should be, for tests of disputes: everything else is as in the honest trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lie {
    /// Which number.
    pub site: Site,
    /// Bits that are flipped in it.
    pub flip: u32,
    /// The step of its chain from which on the bits are flipped.
    pub from_step: u64,
}

/// How a trace is computed.
#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// Threads.
    pub threads: usize,
    /// None of an honest party.
    pub lie: Option<Lie>,
}

/// Why there is no trace, or no such part of it.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no input token or no output token.
    #[error("a trace needs a token of input and one of output, there are {input} and {output}")]
    NoTokens {
        /// Tokens of the input.
        input: usize,
        /// Tokens of the output.
        output: usize,
    },
    /// More tokens than the model's rotation tables or a dispute allow.
    #[error("{found} positions are more than the {max} that a dispute over this model can have")]
    TooLong {
        /// How many.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// An index behind the end.
    #[error("there is no {what} {index}: there are {count}")]
    OutOfRange {
        /// Of what.
        what: &'static str,
        /// Which.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// A number that does not follow from steps: a choice of the sampler, or a slot behind the last number.
    #[error("no step gives the number at {0:?}")]
    NoStep(Site),
    /// The model's tables.
    #[error(transparent)]
    Model(#[from] GraphError),
    /// A matrix of the model cannot be packed.
    #[error("a matrix of the model: {0}")]
    Matrix(#[from] MatrixError),
}

/// A leaf and the hashes beside its way to a root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Bytes of the leaf.
    pub leaf: Vec<u8>,
    /// From the leaf up.
    pub path: Vec<B256>,
}

/// What a step reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stated {
    /// The operands' bytes, one after the other.
    pub bytes: Vec<u8>,
    /// Where they are from.
    pub operands: Vec<Operand>,
}

/// The sampler of jobs without temperature, penalties, biases and grammar: the first token of the order.
pub fn greedy(_: usize, logits: &[f32]) -> Option<u32> {
    let params = SampleParams { temperature_micro: 0, top_p_micro: 1_000_000, top_k: 0, min_p_micro: 0, seed: 0 };
    sample::pick(logits, &params, 0, &mut SampleScratch::new()).ok()
}

/// The trace of one request.
pub struct Trace {
    model: Arc<TracedModel>,
    tokens: Vec<u32>,
    input_tokens: u32,
    lie: Option<Lie>,
    tables: RopeTables,
    plan: Plan,
    /// Roots of all positions.
    roots: Vec<B256>,
    /// What the sampler chose after each position from the last of the input on.
    chosen: Vec<u32>,
    first_nan: Option<Site>,
    work: Mutex<Work>,
}

struct Work {
    worker: Worker,
    kv: Kv,
    kept: VecDeque<Arc<State>>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("positions", &self.positions()).field("lie", &self.lie).finish_non_exhaustive()
    }
}

impl Trace {
    /// Computes the trace of `tokens`: `input_tokens` of input, then all tokens of the answer. `choose` is the sampler: it
    /// is called with the index of each output token and its logits, in order, and says `None` if there is no token to
    /// choose. `progress(done, total)` counts positions.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn compute(
        model: Arc<TracedModel>,
        tokens: Vec<u32>,
        input_tokens: u32,
        options: TraceOptions,
        choose: &mut dyn FnMut(usize, &[f32]) -> Option<u32>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Trace, TraceError> {
        let (input, output) = (input_tokens as usize, tokens.len().saturating_sub(input_tokens as usize));
        if input == 0 || output == 0 {
            return Err(TraceError::NoTokens { input, output });
        }
        let positions = tokens.len() - 1;
        let max = model.positions_max().min(POSITIONS_MAX);
        if positions > max {
            return Err(TraceError::TooLong { found: positions, max });
        }
        let ops = model.graph().ops();
        let (plan, kv, tables) = (Plan::new(ops), Kv::new(ops, positions), model.tables(positions)?);
        let work = Work { worker: Worker::new(options.threads), kv, kept: VecDeque::new() };
        let mut trace = Trace {
            tokens,
            input_tokens,
            lie: options.lie,
            tables,
            plan,
            roots: Vec::with_capacity(positions),
            chosen: Vec::with_capacity(output),
            first_nan: None,
            work: Mutex::new(work),
            model,
        };
        trace.pass(choose, progress)?;
        Ok(trace)
    }

    /// Computes all positions once.
    fn pass(
        &mut self,
        choose: &mut dyn FnMut(usize, &[f32]) -> Option<u32>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), TraceError> {
        let model = Arc::clone(&self.model);
        let (n_ops, total) = (model.graph().ops().len(), self.tokens.len() - 1);
        let choose_op = usize::from(model.graph().choose_op());
        let logits_op = model.graph().ops()[choose_op].a;
        for first in (0..total).step_by(BATCH) {
            let batch = first..(first + BATCH).min(total);
            let mut states: Vec<State> = batch.clone().map(|position| State::new(position as u32, n_ops)).collect();
            let work = self.work.get_mut().unwrap_or_else(PoisonError::into_inner);
            let inputs = Inputs {
                model: &model,
                tokens: &self.tokens,
                input_tokens: self.input_tokens.into(),
                tables: &self.tables,
            };
            work.worker.run(&inputs, &self.plan, &mut work.kv, &mut states, Keep::Hashes)?;
            for mut state in states {
                if state.position + 1 >= self.input_tokens {
                    let index = (state.position + 1 - self.input_tokens) as usize;
                    // No token at all is what no model has.
                    self.chosen.push(choose(index, state.numbers(logits_op)).unwrap_or(u32::MAX));
                    state.values[choose_op] = Some(self.choice(state.position));
                    finished(&self.plan, &mut state, choose_op, Keep::Hashes);
                }
                if let Some((op, leaf, slot)) = state.first_nan.filter(|_| self.first_nan.is_none()) {
                    self.first_nan = Some(Site { position: state.position, op, leaf, slot });
                }
                self.roots.push(tree::root(&state.roots));
            }
            progress(batch.end as u64, total as u64);
        }
        if let Some(lie) = self.lie.filter(|lie| (lie.site.position as usize) < total) {
            let state = self.state(lie.site.position)?;
            self.roots[lie.site.position as usize] = tree::root(&state.roots);
        }
        Ok(())
    }

    fn choice(&self, position: u32) -> Values {
        Values::Numbers(vec![f32::from_bits(self.chosen[(position + 1 - self.input_tokens) as usize])])
    }

    /// The model it is the trace of.
    pub fn model(&self) -> &Arc<TracedModel> {
        &self.model
    }

    /// Positions: tokens of input and output but the last.
    pub fn positions(&self) -> u32 {
        (self.tokens.len() - 1) as u32
    }

    /// Tokens of the input.
    pub fn input_tokens(&self) -> u32 {
        self.input_tokens
    }

    /// Tokens of input and output.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The root of the trace.
    pub fn root(&self) -> B256 {
        tree::root(&self.roots)
    }

    /// What the sampler chose instead of each output token; `u32::MAX` if there was nothing to choose.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// The first number that is NaN. An honest answer has none: whoever signed for one is convicted of it.
    pub fn first_nan(&self) -> Option<Site> {
        self.first_nan
    }

    /// Leaves of a tree.
    ///
    /// # Errors
    /// There is no such position or operation.
    pub fn count(&self, tree: Tree) -> Result<u64, TraceError> {
        Ok(match tree {
            Tree::Positions => self.positions().into(),
            Tree::Ops { position } => {
                self.check_position(position)?;
                self.model.graph().ops().len() as u64
            }
            Tree::Leaves { position, op } => {
                self.check_position(position)?;
                self.op(op)?.leaves_at(position.into(), self.input_tokens.into())
            }
        })
    }

    /// Nodes `first..first + count` of a tree at `height`, as far as they are in use.
    ///
    /// # Errors
    /// There is no such tree, or it cannot be computed.
    pub fn nodes(&self, tree: Tree, height: u32, first: u64, count: usize) -> Result<Vec<B256>, TraceError> {
        let base = self.base(tree)?;
        let at = |index: u64| index.checked_shl(height).and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
        let (start, end) = (at(first).min(base.len()), at(first.saturating_add(count as u64)).min(base.len()));
        Ok(tree::lift(base[start..end].to_vec(), height, 0))
    }

    /// The bytes of leaves `first..first + count` of an operation.
    ///
    /// # Errors
    /// There are none, or they cannot be computed.
    pub fn leaves(&self, position: u32, op: u16, first: u64, count: u64) -> Result<Vec<u8>, TraceError> {
        let n = self.count(Tree::Leaves { position, op })?;
        let end = first.saturating_add(count);
        if end > n {
            return Err(TraceError::OutOfRange { what: "leaf", index: end.saturating_sub(1), count: n });
        }
        let state = self.state(position)?;
        let mut bytes = vec![];
        if let Some(values) = &state.values[usize::from(op)] {
            (first..end).for_each(|leaf| values.put_leaf(leaf as usize, &mut bytes));
        }
        Ok(bytes)
    }

    /// A number: bits of an f32, an id, or the byte of a quantized value.
    ///
    /// # Errors
    /// There is none.
    pub fn number(&self, site: Site) -> Result<u32, TraceError> {
        let op = self.op(site.op)?;
        let n = u64::from(slots(op));
        if u64::from(site.slot) >= n {
            return Err(TraceError::OutOfRange { what: "slot", index: site.slot.into(), count: n });
        }
        let leaf = self.leaves(site.position, site.op, site.leaf.into(), 1)?;
        let (at, size) = match op.block() {
            Some(width) if usize::from(site.slot) < width => (usize::from(site.slot), 1),
            Some(width) => (width, 4),
            None => (4 * usize::from(site.slot), 4),
        };
        Ok(leaf[at..at + size].iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)))
    }

    /// Into how many steps a number is divided; none behind the last of an operation.
    ///
    /// # Errors
    /// There is no such operation.
    pub fn steps(&self, site: Site) -> Result<u64, TraceError> {
        Ok(steps(self.op(site.op)?, site, self.input_tokens.into()))
    }

    /// What the chain of a number gives after each of steps `low..high`, the state before `low` in front.
    ///
    /// # Errors
    /// There are no such steps.
    pub fn chain(&self, site: Site, low: u64, high: u64) -> Result<Vec<u32>, TraceError> {
        let (op, count) = (*self.op(site.op)?, self.steps(site)?);
        if high > count || low > high {
            return Err(TraceError::OutOfRange { what: "step", index: high, count });
        }
        let state = self.state(site.position)?;
        let lie = self.lie.filter(|lie| lie.site == site);
        let (mut value, mut values) = (0, Vec::with_capacity((high - low + 1) as usize));
        for step in 0..=high {
            if step >= low {
                let lied = lie.filter(|lie| step > lie.from_step).map_or(0, |lie| lie.flip);
                values.push(value ^ lied);
            }
            if step < high {
                let stated = self.stated(&op, site, step, &state)?;
                value = evaluate(&op, site, step, value, &stated.bytes).ok_or(TraceError::NoStep(site))?;
            }
        }
        Ok(values)
    }

    /// What the chain of a number gives after each but the last of `parts` equal parts of steps `low..high`: what
    /// `revealSteps` shows. The last part may be shorter, and there are fewer parts if there are fewer steps.
    ///
    /// # Errors
    /// There are no such steps.
    pub fn states(&self, site: Site, low: u64, high: u64, parts: u64) -> Result<Vec<u8>, TraceError> {
        let width = high.saturating_sub(low).div_ceil(parts.max(1)).max(1) as usize;
        let chain = self.chain(site, low, high)?;
        let ends = chain[..chain.len() - 1].iter().skip(width).step_by(width);
        Ok(ends.flat_map(|value| value.to_be_bytes()).collect())
    }

    /// What a step begins with: +0, or the result of the step before.
    ///
    /// # Errors
    /// There is no such step.
    pub fn before(&self, site: Site, step: u64) -> Result<u32, TraceError> {
        Ok(self.chain(site, step, step)?[0])
    }

    /// What a step reads.
    ///
    /// # Errors
    /// There is no such step.
    pub fn operands(&self, site: Site, step: u64) -> Result<Stated, TraceError> {
        let (op, count) = (*self.op(site.op)?, self.steps(site)?);
        if step >= count {
            return Err(TraceError::OutOfRange { what: "step", index: step, count });
        }
        let state = self.state(site.position)?;
        self.stated(&op, site, step, &state)
    }

    /// A leaf with its way to the root of the trace of which `revealed` is known, and which is as this one up to there.
    ///
    /// # Errors
    /// There is no such leaf.
    pub fn open(&self, position: u32, op: u16, leaf: u64, revealed: &Revealed) -> Result<Opening, TraceError> {
        let leaves = Tree::Leaves { position, op };
        let bytes = match revealed.leaf(leaves, leaf) {
            Some(bytes) => bytes.to_vec(),
            None => self.leaves(position, op, leaf, 1)?,
        };
        let mut path = vec![];
        for (tree, index) in [(leaves, leaf), (Tree::Ops { position }, op.into()), (Tree::Positions, position.into())] {
            let count = self.count(tree)?;
            let height = tree::height_of(count);
            let own = tree::path(&self.base(tree)?, height, 0, index as usize);
            path.extend(
                (0..height)
                    .zip(own)
                    .map(|(height, own)| revealed.node(tree, height, (index >> height) ^ 1, count).unwrap_or(own)),
            );
        }
        Ok(Opening { leaf: bytes, path })
    }

    /// The leaf of the model that part `part` of an operand is in, with its way to the root of the model's tree.
    ///
    /// # Errors
    /// The operand is not of the model, or has no such part.
    pub fn open_model(&self, operand: &Operand, part: u64) -> Result<Opening, TraceError> {
        let head = self.model.graph().head();
        let count = match operand.source {
            Source::Weights => head.weight_leaves,
            Source::Rotation => head.rotation_leaves,
            Source::Trace | Source::Tokens => 0,
        };
        let index = operand.leaf + operand.offset / LEAF_LEN as u64 + part;
        if part >= operand.parts() || index >= u64::from(count) {
            return Err(TraceError::OutOfRange { what: "leaf of the model", index, count: count.into() });
        }
        match operand.source {
            Source::Rotation => Ok(self.model.open_rotation(index)?),
            _ => Ok(self.model.open_weights(index)),
        }
    }

    fn op(&self, op: u16) -> Result<&Op, TraceError> {
        let ops = self.model.graph().ops();
        let error = TraceError::OutOfRange { what: "operation", index: op.into(), count: ops.len() as u64 };
        ops.get(usize::from(op)).ok_or(error)
    }

    fn check_position(&self, position: u32) -> Result<(), TraceError> {
        let count = u64::from(self.positions());
        if u64::from(position) < count {
            return Ok(());
        }
        Err(TraceError::OutOfRange { what: "position", index: position.into(), count })
    }

    fn base(&self, tree: Tree) -> Result<Vec<B256>, TraceError> {
        Ok(match tree {
            Tree::Positions => self.roots.clone(),
            Tree::Ops { position } => self.state(position)?.roots.clone(),
            Tree::Leaves { position, op } => {
                self.op(op)?;
                self.state(position)?.values[usize::from(op)].as_ref().map_or_else(Vec::new, Values::hashes)
            }
        })
    }

    fn stated(&self, op: &Op, site: Site, step: u64, state: &State) -> Result<Stated, TraceError> {
        // Which row of a table is read follows from what the trace has as the token.
        let token = match &state.values[usize::from(op.a)] {
            Some(Values::Numbers(numbers)) if op.kind == Kind::Embed => numbers[0].to_bits(),
            _ => 0,
        };
        let operands = operands(op, site, step, token);
        let mut bytes = vec![];
        for operand in &operands {
            self.read(operand, state, &mut bytes)?;
        }
        Ok(Stated { bytes, operands })
    }

    /// Appends an operand's bytes; `state` is that of the position that reads it.
    fn read(&self, operand: &Operand, state: &State, out: &mut Vec<u8>) -> Result<(), TraceError> {
        let (offset, length) = (operand.offset as usize, operand.length as usize);
        let start = out.len();
        match operand.source {
            Source::Tokens => out.extend(self.tokens[operand.position as usize].to_be_bytes()),
            Source::Weights => {
                let bytes = self.model.tensor(operand.leaf as u32, operand.offset);
                out.extend(&bytes[..length.min(bytes.len())]);
            }
            Source::Rotation => {
                let local = self.tables.local.as_ref().filter(|_| operand.leaf != 0);
                let table = local.unwrap_or(&self.tables.global);
                let (half, all) = (table.rope_dims() / 2, self.model.positions_max());
                let angle = (offset - 16) / 4;
                let (position, pair) = (angle / half % all, angle % half);
                let (cos, sin) = table.at(position);
                out.extend((if angle < all * half { cos[pair] } else { sin[pair] }).to_le_bytes());
            }
            Source::Trace if operand.position != u64::from(state.position) => {
                let leaf = self.earlier(operand)?;
                out.extend(&leaf[offset..offset + length]);
            }
            Source::Trace => {
                if let Some(values) = &state.values[usize::from(operand.op)] {
                    out.extend(&values.leaf(operand.leaf as usize)[offset..offset + length]);
                }
            }
        }
        // A row that a table does not have reads as zeros.
        out.resize(start + length, 0);
        Ok(())
    }

    /// A leaf of an operation that later positions read.
    fn earlier(&self, operand: &Operand) -> Result<Vec<u8>, TraceError> {
        let lied = self.lie.filter(|lie| (u64::from(lie.site.position), lie.site.op) == (operand.position, operand.op));
        if lied.is_some() {
            return self.leaves(operand.position as u32, operand.op, operand.leaf, 1);
        }
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let row = work.kv.row(operand.op.into(), operand.position as usize);
        let n = LEAF_NUMBERS as usize;
        let first = operand.leaf as usize * n;
        let numbers = row[first..row.len().min(first + n)].iter().map(|bits| f16::to_f32(*bits)).collect();
        Ok(Values::Numbers(numbers).leaf(0))
    }

    /// All numbers of a position.
    fn state(&self, position: u32) -> Result<Arc<State>, TraceError> {
        self.check_position(position)?;
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = work.kept.iter().find(|state| state.position == position) {
            return Ok(Arc::clone(state));
        }
        let graph = self.model.graph();
        let mut states = [State::new(position, graph.ops().len())];
        let inputs = Inputs {
            model: &self.model,
            tokens: &self.tokens,
            input_tokens: self.input_tokens.into(),
            tables: &self.tables,
        };
        let Work { worker, kv, kept } = &mut *work;
        worker.run(&inputs, &self.plan, kv, &mut states, Keep::All)?;
        let [mut state] = states;
        if position + 1 >= self.input_tokens {
            state.values[usize::from(graph.choose_op())] = Some(self.choice(position));
        }
        if let Some(Lie { site, flip, .. }) = self.lie.filter(|lie| lie.site.position == position) {
            let values = state.values.get_mut(usize::from(site.op)).and_then(Option::as_mut);
            values.into_iter().for_each(|values| values.flip(site.leaf as usize, site.slot.into(), flip));
        }
        state.roots = roots(&state);
        let state = Arc::new(state);
        kept.push_front(Arc::clone(&state));
        kept.truncate(KEPT_POSITIONS);
        Ok(state)
    }
}
