//! One step of the transformer over a batch: some tokens of each of several sequences.
//!
//! Owns the order of operations of a block and the activation buffers; the operations themselves are defined
//! in `assay_num`. Does not choose what is computed (scheduler) or what follows from the logits (sampler).
//!
//! Per layer, for each row (one token at one position of one sequence):
//! `n = rms_norm(x)`; `q|k|v = W_qkv n`; rope on q and k; k and v stored as f16; `a = attention(q, keys <= position)`;
//! `x += W_o a`; `n = rms_norm(x)`; `g|u = W_gu n`; `x += W_down (silu(g) * u)`. At the end, for rows that are asked:
//! `logits = W_out rms_norm(x)`.
//!
//! What families add to that:
//! - Qwen2: `q|k|v = W_qkv n`, then one addition per element: `q|k|v += b_qkv`, before the rotation.
//! - Qwen3: each head of q and of k is replaced by its `rms_norm` over the head's width, before the rotation.
//! - Phi-3: nothing; its file holds `W_qkv` and `W_gu` as one tensor each, in the order used here.
//! - Gemma: `x *= sqrt(width)` once, after the embedding; gelu instead of silu.
//! - Gemma 2 and 3, besides: `x += rms_norm(W_o a)` and `x += rms_norm(W_down ..)`, each with its own weights; in all but
//!   the last of every 2 (6) layers a query sees a window of keys. Gemma 2 soft-caps attention scores and logits;
//!   Gemma 3 norms heads as Qwen3 does and rotates by another table in layers with a window.
//! - Rotated pairs are neighbours for "llama" and halves of the head for the others ([`crate::Family::rope_style`]).
//!
//! Invariant: every row is computed by the same operations in the same order whatever else is in the batch, however
//! the prompt was cut into steps, and however the work is split over threads. Rows meet only in attention, which
//! reads keys by absolute position from memory that was rounded to f16 when it was written.
//!
//! A row in which a value that enters a matrix product, the KV memory, the sampler or the end of the last layer is not finite (for KV: not
//! finite in f16) marks its sequence as failed; the others are not touched.

use std::sync::atomic::{AtomicBool, Ordering};

use assay_num::{Acts, Isa, Kernels, Team, check_finite};

use crate::attention::{self, AttentionBuffers, Inputs};
use crate::compute::{self, Compute};
use crate::kv::KvSeq;
use crate::model::{Layer, Model};
use assay_graph::ModelConfig;

/// Rows of logits computed at once: bounds their memory to this many times the vocabulary.
pub const LOGIT_ROWS: usize = 32;

/// The part of a step that belongs to one sequence.
#[derive(Debug)]
pub struct Slice<'a> {
    /// Where its keys and values are; memory for the tokens is already there ([`crate::KvPool::grow`]).
    pub kv: &'a mut KvSeq,
    /// Tokens at positions `kv.len()..`, at least one, each below the vocabulary size.
    pub tokens: &'a [u32],
    /// Logits are wanted for tokens from this index on (`tokens.len()`: for none).
    pub logits_from: usize,
}

/// Runs steps: the kernels, a thread team and the buffers. One per engine thread; holds nothing between steps that
/// could affect a result.
pub struct Runner {
    compute: Compute,
    acts: Acts,
    buffers: Buffers,
}

/// All `[rows, ..]`, row-major, of the current step; memory is that of the largest step so far.
#[derive(Debug, Default)]
struct Buffers {
    /// Residual stream `[rows, width]`.
    x: Vec<f32>,
    /// Normed `[rows, width]`, and the output of projections back to the residual stream.
    normed: Vec<f32>,
    /// q, k, v of a row: `[rows, q_width + 2 kv_width]`.
    qkv: Vec<f32>,
    /// Attention output `[rows, q_width]`.
    attended: Vec<f32>,
    attention: AttentionBuffers,
    /// gate, up of a row: `[rows, 2 feed_forward]`.
    gate_up: Vec<f32>,
    /// `[rows, feed_forward]`
    inner: Vec<f32>,
    /// What a block adds to the residual stream, normed: `[rows, width]`.
    post: Vec<f32>,
    /// Output of one part of a [`crate::model::Stack`] of unlike formats.
    part: Vec<f32>,
    /// Final normed rows that were asked for: `[n, width]`.
    asked: Vec<f32>,
    /// `[at most LOGIT_ROWS, vocab]`
    logits: Vec<f32>,
    rows: Vec<Row>,
}

/// Where a row of a step comes from.
#[derive(Debug)]
pub(crate) struct Row {
    /// Index of its slice.
    pub slice: usize,
    /// Its place in the slice.
    pub index: usize,
    /// Absolute position in its sequence.
    pub position: usize,
    /// Whether a value was not finite; set by whichever thread computes the row.
    failed: AtomicBool,
}

impl Row {
    /// Marks the row if one of `values` is not finite.
    pub fn check(&self, values: &[f32]) {
        self.check_that(check_finite(values).is_ok());
    }

    /// Marks the row unless its values are fine.
    pub fn check_that(&self, fine: bool) {
        if !fine {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

impl Runner {
    /// A runner with `n_threads` threads, the caller's included, on the best instruction set of this CPU.
    pub fn new(n_threads: usize) -> Runner {
        Runner::with_kernels(Kernels::detect(), n_threads)
    }

    /// A runner on given kernels.
    pub fn with_kernels(kernels: Kernels, n_threads: usize) -> Runner {
        let compute = Compute { kernels, team: Team::new(n_threads.max(1)) };
        Runner { compute, acts: Acts::new(), buffers: Buffers::default() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.compute.kernels.isa()
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.compute.team.threads()
    }

    /// The threads, for measurements.
    pub(crate) fn team(&self) -> &Team {
        &self.compute.team
    }

    /// Computes one step and advances every sequence. Returns, per slice, whether all its values were finite.
    /// Logits are then read with [`Runner::logits`].
    ///
    /// # Panics
    /// On an empty slice, a token outside the vocabulary, or a position outside the model's context.
    pub fn step(&mut self, model: &Model, slices: &mut [Slice<'_>]) -> Vec<bool> {
        self.embed(model, slices);
        for (index, layer) in model.weights().layers.iter().enumerate() {
            self.attention_block(model, layer, index, slices);
            self.feed_forward_block(model.config(), layer);
        }
        self.collect_asked(model, slices);
        let mut finite = vec![true; slices.len()];
        for row in &self.buffers.rows {
            finite[row.slice] &= !row.failed.load(Ordering::Relaxed);
        }
        for slice in slices {
            slice.kv.advance(slice.tokens.len());
        }
        finite
    }

    /// Rows of logits the last step was asked for: slices in order, tokens in order.
    pub fn n_asked(&self, model: &Model) -> usize {
        self.buffers.asked.len() / model.config().width
    }

    /// Logits of `n` (at most [`LOGIT_ROWS`]) asked rows from `first` on: `[n, vocab]`.
    ///
    /// # Panics
    /// If that exceeds what was asked or the bound.
    pub fn logits(&mut self, model: &Model, first: usize, n: usize) -> &[f32] {
        assert!(n <= LOGIT_ROWS, "{n} rows of logits at once");
        let (width, matrix) = (model.config().width, model.output_matrix());
        let Buffers { asked, logits, .. } = &mut self.buffers;
        logits.resize(n * matrix.rows(), 0.0);
        self.compute.product(&mut self.acts, matrix, &asked[first * width..][..n * width], logits);
        if let Some(cap) = model.config().logit_softcap {
            let kernels = self.compute.kernels;
            self.compute.chunks(logits.len() * 8, logits, matrix.rows(), |_, logits| kernels.softcap(logits, cap));
        }
        logits
    }

    fn embed(&mut self, model: &Model, slices: &[Slice<'_>]) {
        let config = model.config();
        let buffers = &mut self.buffers;
        buffers.rows.clear();
        for (slice, Slice { kv, tokens, .. }) in slices.iter().enumerate() {
            assert!(!tokens.is_empty(), "a slice without tokens");
            assert!(kv.len() + tokens.len() <= model.context(), "positions beyond the context");
            let row = |index| Row { slice, index, position: kv.len() + index, failed: AtomicBool::new(false) };
            buffers.rows.extend((0..tokens.len()).map(row));
        }
        buffers.resize(config);
        let tokens: Vec<u32> = slices.iter().flat_map(|slice| slice.tokens).copied().collect();
        let Buffers { x, .. } = buffers;
        let kernels = self.compute.kernels;
        let scale = config.family.is_gemma().then(|| (config.width as f32).sqrt());
        self.compute.chunks(x.len(), x, config.width, |row, x| {
            model.weights().token_embd.row_f32(tokens[row] as usize, x);
            if let Some(scale) = scale {
                kernels.scale_assign(x, scale);
            }
        });
    }

    fn attention_block(&mut self, model: &Model, layer: &Layer, index: usize, slices: &mut [Slice<'_>]) {
        let config = model.config();
        let Runner { compute, acts, buffers } = self;
        let Buffers { x, normed, qkv, attended, attention, post, part, rows, .. } = buffers;
        compute.norm(x, &layer.attn_norm, config.rms_eps, rows, normed);
        compute.stack(acts, &layer.qkv, normed, qkv, part);

        let (q, head_dim) = (config.q_width(), config.head_dim);
        let rotated = q + config.kv_width();
        let (kernels, tables, style) = (compute.kernels, &model.weights().rope, config.family.rope_style());
        let local = tables.local.as_ref().filter(|_| config.is_local(index));
        let table = local.unwrap_or(&tables.global);
        compute.chunks(rows.len() * rotated * 2, qkv, layer.qkv.rows, |row, qkv| {
            if let Some(bias) = &layer.qkv_bias {
                kernels.add_assign(qkv, bias);
            }
            if let Some((q_norm, k_norm)) = &layer.qk_norm {
                compute::norm_heads(kernels, &mut qkv[..q], q_norm, config.rms_eps);
                compute::norm_heads(kernels, &mut qkv[q..rotated], k_norm, config.rms_eps);
            }
            kernels.rope(&mut qkv[..rotated], head_dim, rows[row].position, table, style);
        });
        let inputs = Inputs { kernels, config, layer: index, rows, qkv };
        attention::store(compute, &inputs, slices);
        attention::attend(compute, &inputs, slices, attention, attended);
        compute.product(acts, &layer.attn_output, attended, normed);
        compute.add_normed(x, normed, layer.attn_post_norm.as_deref(), config, rows, post);
    }

    fn feed_forward_block(&mut self, config: &ModelConfig, layer: &Layer) {
        let Runner { compute, acts, buffers } = self;
        let Buffers { x, normed, gate_up, inner, post, part, rows, .. } = buffers;
        compute.norm(x, &layer.ffn_norm, config.rms_eps, rows, normed);
        compute.stack(acts, &layer.gate_up, normed, gate_up, part);
        let (width, kernels) = (config.feed_forward, compute.kernels);
        compute.chunks(inner.len() * 8, inner, width, |row, inner| {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            if config.family.is_gemma() {
                kernels.gelu_mul(gate, up, inner);
            } else {
                kernels.silu_mul(gate, up, inner);
            }
            rows[row].check(inner);
        });
        compute.product(acts, &layer.ffn_down, inner, normed);
        compute.add_normed(x, normed, layer.ffn_post_norm.as_deref(), config, rows, post);
    }

    /// Final norm of the rows whose logits are wanted.
    fn collect_asked(&mut self, model: &Model, slices: &[Slice<'_>]) {
        let config = model.config();
        let width = config.width;
        let Buffers { x, asked, rows, .. } = &mut self.buffers;
        asked.clear();
        let wanted = slices.iter().flat_map(|slice| (0..slice.tokens.len()).map(|i| i >= slice.logits_from));
        for ((row, x), wanted) in rows.iter().zip(x.chunks_exact(width)).zip(wanted) {
            // What the last layer gives is read by nobody if no logits are wanted, but a court would see it.
            row.check(x);
            if wanted {
                let start = asked.len();
                asked.resize(start + width, 0.0);
                let norm = &model.weights().output_norm;
                self.compute.kernels.rms_norm(x, norm, config.rms_eps, &mut asked[start..]);
                row.check(&asked[start..]);
            }
        }
    }
}

impl Buffers {
    fn resize(&mut self, config: &ModelConfig) {
        let n = self.rows.len();
        self.x.resize(n * config.width, 0.0);
        self.normed.resize(n * config.width, 0.0);
        self.qkv.resize(n * (config.q_width() + 2 * config.kv_width()), 0.0);
        self.attended.resize(n * config.q_width(), 0.0);
        self.gate_up.resize(n * 2 * config.feed_forward, 0.0);
        self.inner.resize(n * config.feed_forward, 0.0);
    }
}
