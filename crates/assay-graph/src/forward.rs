//! Computes a graph, operation by operation, for some positions at a time.
//!
//! Owns the order of work: products take all positions of a batch at once, because a matrix is packed for the kernels and
//! then dropped; everything else is done position by position, which bounds the memory that attention takes. The numbers
//! are those of `assay_num::scalar`; that the kernels' products are the same is what their tests say.

use std::ops::Range;

use alloy_primitives::B256;
use assay_gguf::RopeTables;
use assay_num::{Acts, Format, Kernels, Matrix, MatrixError, Packing, Team, f16, scalar};

use crate::attention::{Kv, attention};
use crate::judge::unpack;
use crate::model::TracedModel;
use crate::op::{Kind, Op, flags, unit_of};
use crate::position::{State, Values};

/// Most bytes of a matrix that are packed at a time.
const PACK_BYTES: usize = 32 << 20;

/// What the numbers of a position follow from.
pub(crate) struct Inputs<'a> {
    pub model: &'a TracedModel,
    pub tokens: &'a [u32],
    pub input_tokens: u64,
    pub tables: &'a RopeTables,
}

/// Threads and buffers.
pub(crate) struct Worker {
    kernels: Kernels,
    team: Team,
    acts: Acts,
}

/// A part of a graph.
enum Part {
    /// A product, for all positions at once.
    Batch(usize),
    /// Operations that are done position by position.
    Each(Range<usize>),
}

/// In which order a graph is computed.
pub(crate) struct Plan {
    parts: Vec<Part>,
    /// By operation: those that nobody reads after it.
    dropped: Vec<Vec<usize>>,
}

/// Whether numbers are kept when nobody reads them any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    All,
    Hashes,
}

impl Plan {
    pub fn new(ops: &[Op]) -> Plan {
        let mut last_reader: Vec<usize> = (0..ops.len()).collect();
        let mut parts: Vec<Part> = vec![];
        for (i, op) in ops.iter().enumerate() {
            op.inputs().for_each(|input| last_reader[usize::from(input)] = i);
            if op.kind == Kind::Product {
                // The kernels quantize by themselves.
                last_reader[usize::from(ops[usize::from(op.a)].a)] = i;
                parts.push(Part::Batch(i));
                continue;
            }
            // Scores read keys of all positions up to their own, which have to be there.
            match parts.last_mut() {
                Some(Part::Each(range)) if op.kind != Kind::Score => range.end = i + 1,
                _ => parts.push(Part::Each(i..i + 1)),
            }
        }
        let mut dropped = vec![vec![]; ops.len()];
        last_reader.iter().enumerate().filter(|(i, last)| i != *last).for_each(|(i, last)| dropped[*last].push(i));
        Plan { parts, dropped }
    }
}

impl Worker {
    pub fn new(threads: usize) -> Worker {
        Worker { kernels: Kernels::detect(), team: Team::new(threads), acts: Acts::new() }
    }

    /// Computes all operations but the choice of a token at the positions of `states`, which follow each other. `kv` has
    /// what attention reads of the positions before and gets that of these.
    pub fn run(
        &mut self,
        inputs: &Inputs<'_>,
        plan: &Plan,
        kv: &mut Kv,
        states: &mut [State],
        keep: Keep,
    ) -> Result<(), MatrixError> {
        let ops = inputs.model.graph().ops();
        for part in &plan.parts {
            match part {
                Part::Batch(i) => {
                    self.product(inputs, *i, states)?;
                    self.team.for_each_chunk(states, 1, |_, states| {
                        states.iter_mut().for_each(|state| finished(plan, state, *i, keep));
                    });
                }
                Part::Each(range) => {
                    let before = &*kv;
                    self.team.for_each_chunk(states, 1, |_, states| {
                        for state in states {
                            for i in range.clone() {
                                if is_computed(&ops[i], state, inputs) {
                                    state.values[i] = Some(values(inputs, &ops[i], state, before));
                                    finished(plan, state, i, keep);
                                }
                            }
                        }
                    });
                    for i in range.clone() {
                        if kv.has(i) {
                            states.iter().for_each(|state| {
                                kv.put(i, state.position as usize, state.numbers(i as u16));
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The numbers of a product at all positions that have any.
    fn product(&mut self, inputs: &Inputs<'_>, i: usize, states: &mut [State]) -> Result<(), MatrixError> {
        let ops = inputs.model.graph().ops();
        let op = &ops[i];
        let source = ops[usize::from(op.a)].a;
        let (rows, cols) = (op.rows as usize, op.cols as usize);
        let mut states: Vec<&mut State> = states.iter_mut().filter(|state| is_computed(op, state, inputs)).collect();
        let m = states.len();
        if m == 0 {
            return Ok(());
        }
        let x: Vec<f32> = states.iter().flat_map(|state| state.numbers(source)).copied().collect();
        let mut outs = vec![Vec::with_capacity(rows); m];
        let (columns, length) = unit_of(op.format).unwrap_or((1, 0));
        let row_bytes = cols / columns as usize * length as usize;
        let at_once = (PACK_BYTES / row_bytes.max(1)).max(1);
        let mut out = vec![];
        for first in (0..rows).step_by(at_once) {
            let n = at_once.min(rows - first);
            let bytes = inputs.model.tensor(op.tensor, (u64::from(op.extra) + first as u64) * row_bytes as u64);
            let bytes = &bytes[..bytes.len().min(n * row_bytes)];
            let packing = Packing::new(format_of(op.format), n, cols)?;
            let matrix = Matrix::pack(&self.team, packing, &[bytes])?;
            if first == 0 {
                self.kernels.prepare(&self.team, &x, m, cols, matrix.act_kind(), &mut self.acts);
            }
            out.resize(m * n, 0.0);
            self.kernels.matmul(&self.team, &matrix, &self.acts, &mut out);
            outs.iter_mut().zip(out.chunks_exact(n)).for_each(|(all, part)| all.extend_from_slice(part));
        }
        for (state, out) in states.iter_mut().zip(outs) {
            state.values[i] = Some(Values::Numbers(out));
        }
        Ok(())
    }
}

/// The format of a product's matrix; the compiler makes products of block formats only.
fn format_of(format: u8) -> Format {
    match format {
        2 => Format::Q4_0,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        _ => Format::Q8_0,
    }
}

fn is_computed(op: &Op, state: &State, inputs: &Inputs<'_>) -> bool {
    op.kind != Kind::Choose && op.count_at(state.position.into(), inputs.input_tokens) != 0
}

/// Hashes what operation `i` gave and drops what nobody reads any more.
pub(crate) fn finished(plan: &Plan, state: &mut State, i: usize, keep: Keep) {
    let Some(values) = &state.values[i] else { return };
    if state.first_nan.is_none() {
        state.first_nan = values.first_nan().map(|(leaf, slot)| (i as u16, leaf, slot));
    }
    if keep == Keep::All {
        return;
    }
    state.roots[i] = values.root();
    plan.dropped[i].iter().for_each(|read| state.values[*read] = None);
}

fn values(inputs: &Inputs<'_>, op: &Op, state: &State, kv: &Kv) -> Values {
    let a = || state.numbers(op.a);
    let cols = op.cols as usize;
    let numbers = match op.kind {
        Kind::Token => vec![f32::from_bits(inputs.tokens[state.position as usize])],
        Kind::Embed => embed(inputs, op, a()[0].to_bits()),
        Kind::Squares => a().chunks_exact(cols).flat_map(squares).collect(),
        Kind::Norm => {
            let weights = floats(inputs.model.tensor(op.tensor, 0), cols);
            let lanes = state.numbers(op.b).as_chunks().0;
            let norm = |(row, lanes): (&[f32], &[f32; 16])| {
                let inverse = 1.0 / (scalar::lane_sum(lanes) / op.cols as f32 + f32::from_bits(op.x)).sqrt();
                row.iter().zip(&weights).map(|(x, w)| (x * inverse) * w).collect::<Vec<_>>()
            };
            a().chunks_exact(cols).zip(lanes).flat_map(norm).collect()
        }
        Kind::Quantize => {
            return blocks(a(), 32, |x: &[f32; 32], q| {
                let (values, d) = scalar::quantize_block(x);
                q.extend(values);
                d
            });
        }
        Kind::QuantizeSuper => {
            return blocks(a(), 256, |x: &[f32; 256], q| {
                let (values, d) = scalar::quantize_super_block(x);
                q.extend(values);
                d
            });
        }
        Kind::Lanes => lanes(inputs, op, a()),
        Kind::LaneSum => a().as_chunks().0.iter().map(scalar::lane_sum).collect(),
        Kind::Bias => {
            let weights = floats(inputs.model.tensor(op.tensor, 0), cols);
            a().iter().zip(weights).map(|(x, w)| x + w).collect()
        }
        Kind::Rotate => rotate(inputs, op, state.position, a()),
        Kind::Narrow => a().iter().map(|x| f16::to_f32(f16::from_f32_rne(*x))).collect(),
        Kind::Add => a().iter().zip(state.numbers(op.b)).map(|(a, b)| a + b).collect(),
        Kind::Gate => {
            let activation = if op.has(flags::GELU) { scalar::gelu } else { scalar::silu };
            a().iter().zip(state.numbers(op.b)).map(|(a, b)| activation(*a) * b).collect()
        }
        Kind::Cap => a().iter().map(|x| scalar::softcap(*x, f32::from_bits(op.x))).collect(),
        _ => attention(op, state, kv),
    };
    Values::Numbers(numbers)
}

fn embed(inputs: &Inputs<'_>, op: &Op, token: u32) -> Vec<f32> {
    let cols = op.cols as usize;
    let (columns, length) = unit_of(op.format).unwrap_or((1, 0));
    if token >= op.rows {
        return vec![f32::NAN; cols];
    }
    let row_bytes = cols / columns as usize * length as usize;
    let row = inputs.model.tensor(op.tensor, u64::from(token) * row_bytes as u64);
    let scale = (op.x != 0).then(|| f32::from_bits(op.x));
    let mut out = Vec::with_capacity(cols);
    for unit in row[..row_bytes].chunks_exact(length as usize) {
        unpack(op.format, unit, &mut out);
    }
    if let Some(scale) = scale {
        out.iter_mut().for_each(|value| *value *= scale);
    }
    out
}

fn squares(row: &[f32]) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    for x in row.as_chunks::<16>().0 {
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane = scalar::fma(*x, *x, *lane));
    }
    lanes
}

fn blocks<const N: usize>(x: &[f32], width: usize, quantize: impl Fn(&[f32; N], &mut Vec<i8>) -> f32) -> Values {
    let mut q = Vec::with_capacity(x.len());
    let d = x.as_chunks().0.iter().map(|x| quantize(x, &mut q)).collect();
    Values::Blocks { width, q, d }
}

/// 16 lanes of each row of a matrix of floats.
fn lanes(inputs: &Inputs<'_>, op: &Op, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (op.rows as usize, op.cols as usize);
    let size = unit_of(op.format).map_or(0, |(_, length)| length as usize);
    let bytes = inputs.model.tensor(op.tensor, u64::from(op.extra) * (cols * size) as u64);
    let mut out = vec![0.0; rows * 16];
    for (lanes, row) in out.as_chunks_mut::<16>().0.iter_mut().zip(bytes.chunks_exact(cols * size)) {
        match op.format {
            0 => accumulate(lanes, row.as_chunks().0, x, f32::from_le_bytes),
            1 => accumulate(lanes, row.as_chunks().0, x, |bits| f16::to_f32(u16::from_le_bytes(bits))),
            _ => accumulate(lanes, row.as_chunks().0, x, |bits| f16::bf16_to_f32(u16::from_le_bytes(bits))),
        }
    }
    out
}

fn accumulate<const N: usize>(lanes: &mut [f32; 16], row: &[[u8; N]], x: &[f32], widen: impl Fn([u8; N]) -> f32) {
    for (w, x) in row.chunks_exact(16).zip(x.chunks_exact(16)) {
        for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
            *lane = scalar::fma(widen(*w), *x, *lane);
        }
    }
}

fn rotate(inputs: &Inputs<'_>, op: &Op, position: u32, a: &[f32]) -> Vec<f32> {
    let table = if op.tensor == 0 { Some(&inputs.tables.global) } else { inputs.tables.local.as_ref() };
    let style =
        if op.has(flags::NEIGHBOURS) { assay_num::RopeStyle::Interleaved } else { assay_num::RopeStyle::Halves };
    let mut out = a.to_vec();
    let table = table.expect("the compiler names tables that there are");
    out.chunks_exact_mut(op.cols as usize).for_each(|head| scalar::rope(head, position as usize, table, style));
    out
}

/// The first `n` floats of a tensor.
fn floats(bytes: &[u8], n: usize) -> Vec<f32> {
    bytes.as_chunks().0.iter().take(n).map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Roots over the leaves of every operation.
pub(crate) fn roots(state: &State) -> Vec<B256> {
    state.values.iter().map(|values| values.as_ref().map_or(B256::ZERO, Values::root)).collect()
}
