//! The computation: texts to vectors, in steps of bounded size.
//!
//! A step holds whole texts, one row a token, without padding. Rows meet only in attention, text by text, so what else
//! is in the step changes no bit. One task of attention is one head of one text: its keys and values live in the
//! memory of the thread that computes it, and nowhere else.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use assay_num::{Acts, AttendScratch, Isa, KV_CHUNK, Kernels, KvChunk, Team, check_finite, scalar};

use crate::compute::Compute;
use crate::encoder::config::Pooling;
use crate::encoder::model::{Encoder, Layer, Norm};

/// Rows of a step aimed at: activations that stay in the cache, enough of them to pay for reading the weights. A text
/// that is longer is a step of its own.
const STEP_ROWS: usize = 512;

/// Largest magnitude below which a value rounds to a finite f16.
const F16_LIMIT: f32 = 65_520.0;

/// The vector of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// [`Encoder::dimensions`] values whose squares sum to 1, as far as f32 goes.
    pub values: Vec<f32>,
    /// Tokens that were read, those that mark the ends included.
    pub n_tokens: usize,
    /// Tokens of the text that did not fit and were left out at its end.
    pub n_cut: usize,
}

/// What to do with a text that has more tokens than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// Fail with [`EmbedError::TooLong`].
    Refuse,
    /// Leave out what does not fit, and say so in [`Embedding::n_cut`].
    Cut,
}

/// Why texts have no vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// A text is longer than the model takes.
    #[error("text {index} has {n_tokens} tokens, the model takes {max}")]
    TooLong {
        /// Which.
        index: usize,
        /// Its tokens, those that mark the ends included.
        n_tokens: usize,
        /// Most that the model takes.
        max: usize,
    },
    /// The computation left the finite numbers.
    #[error("text {index}: the model computed a value that is not finite")]
    NonFinite {
        /// Which.
        index: usize,
    },
}

/// Computes embeddings: kernels, a thread team and buffers. Holds nothing between calls that could affect a result.
pub struct Embedder {
    compute: Compute,
    acts: Acts,
    buffers: Buffers,
}

/// All `[rows, ..]`, row-major, of the current step; memory is that of the largest step so far.
#[derive(Debug, Default)]
struct Buffers {
    /// Hidden states `[rows, width]`.
    x: Vec<f32>,
    /// Products back to the hidden states `[rows, width]`.
    projected: Vec<f32>,
    /// `[rows, 3 * width]`
    qkv: Vec<f32>,
    /// Attention outputs, `[head][row][head_dim]` of each text.
    by_task: Vec<f32>,
    /// Attention outputs `[rows, width]`.
    attended: Vec<f32>,
    /// `[rows, feed_forward]`
    inner: Vec<f32>,
    /// Of [`Compute::stack`].
    part: Vec<f32>,
    /// One per thread.
    scratch: Vec<HeadScratch>,
}

/// What a thread needs for one head of one text.
#[derive(Debug, Default)]
struct HeadScratch {
    attend: AttendScratch,
    /// `[n, head_dim]`
    q: Vec<f32>,
    /// One key and one value with their biases: `[2 * head_dim]`.
    kv: Vec<f32>,
    /// Keys, then values, of each chunk of 256 positions.
    chunks: Vec<u16>,
    n_keys: Vec<usize>,
}

/// The texts of a step.
struct Step<'a> {
    /// Tokens of each, at least one.
    texts: &'a [Vec<u32>],
    /// First row of each.
    first: Vec<usize>,
    /// Text of each row.
    of_row: Vec<usize>,
    /// Whether a value of the text was not finite; set by whichever thread computes it.
    failed: Vec<AtomicBool>,
}

/// One head of one text.
struct Task<'a> {
    text: usize,
    head: usize,
    /// `[n, head_dim]`
    out: &'a mut [f32],
}

impl Embedder {
    /// An embedder with `n_threads` threads, the caller's included, on the best instruction set of this CPU.
    pub fn new(n_threads: usize) -> Embedder {
        Embedder::with_kernels(Kernels::detect(), n_threads)
    }

    /// An embedder on given kernels.
    pub fn with_kernels(kernels: Kernels, n_threads: usize) -> Embedder {
        let compute = Compute { kernels, team: Team::new(n_threads.max(1)) };
        Embedder { compute, acts: Acts::new(), buffers: Buffers::default() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.compute.kernels.isa()
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.compute.team.threads()
    }

    /// The vectors of `texts`, in order. No text is read as a control token.
    ///
    /// # Errors
    /// The first text that has no vector; the others are then not computed or lost.
    pub fn embed_texts(
        &mut self,
        encoder: &Encoder,
        texts: &[impl AsRef<str>],
        too_long: TooLong,
    ) -> Result<Vec<Embedding>, EmbedError> {
        let max = encoder.config().input_length;
        let mut inputs = Vec::with_capacity(texts.len());
        let mut cut = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let mut tokens = encoder.tokenizer().encode(text.as_ref(), true, false);
            let n_tokens = tokens.len();
            if n_tokens > max {
                if too_long == TooLong::Refuse {
                    return Err(EmbedError::TooLong { index, n_tokens, max });
                }
                // The last token marks the end; it stays.
                let end = tokens.pop();
                tokens.truncate(max - 1);
                tokens.extend(end);
            }
            cut.push(n_tokens - tokens.len());
            inputs.push(tokens);
        }
        let mut embeddings = self.embed_tokens(encoder, &inputs)?;
        embeddings.iter_mut().zip(cut).for_each(|(embedding, n_cut)| embedding.n_cut = n_cut);
        Ok(embeddings)
    }

    /// The vectors of token sequences, which are taken as they are.
    ///
    /// # Errors
    /// [`EmbedError::NonFinite`] for the first text that has no vector.
    ///
    /// # Panics
    /// If a sequence is empty, longer than the position table, or has a token outside the vocabulary.
    pub fn embed_tokens(&mut self, encoder: &Encoder, inputs: &[Vec<u32>]) -> Result<Vec<Embedding>, EmbedError> {
        let mut embeddings = Vec::with_capacity(inputs.len());
        let mut rest = inputs;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = |text: &&Vec<u32>| {
                rows += text.len();
                rows <= STEP_ROWS
            };
            let n = rest.iter().take_while(fits).count().max(1);
            let (texts, after) = rest.split_at(n);
            self.step(encoder, &Step::new(texts), embeddings.len(), &mut embeddings)?;
            rest = after;
        }
        Ok(embeddings)
    }

    /// Appends the vectors of a step's texts, the first of which is text `index` of the call.
    fn step(
        &mut self,
        encoder: &Encoder,
        step: &Step<'_>,
        index: usize,
        out: &mut Vec<Embedding>,
    ) -> Result<(), EmbedError> {
        self.embed_rows(encoder, step);
        for layer in &encoder.weights().layers {
            self.attention_block(encoder, layer, step);
            self.feed_forward_block(encoder, layer, step);
        }
        let width = encoder.config().width;
        for (i, text) in step.texts.iter().enumerate() {
            let rows = &self.buffers.x[step.first[i] * width..][..text.len() * width];
            let values = pool(self.compute.kernels, encoder.config().pooling, rows, width);
            if step.failed[i].load(Ordering::Relaxed) || check_finite(&values).is_err() {
                return Err(EmbedError::NonFinite { index: index + i });
            }
            out.push(Embedding { values, n_tokens: text.len(), n_cut: 0 });
        }
        Ok(())
    }

    fn embed_rows(&mut self, encoder: &Encoder, step: &Step<'_>) {
        let Embedder { compute, buffers, .. } = self;
        let (config, weights) = (encoder.config(), encoder.weights());
        let (n, width, kernels) = (step.of_row.len(), config.width, compute.kernels);
        buffers.resize(n, width, config.feed_forward);
        let Buffers { x, projected, .. } = buffers;
        compute.chunks(projected.len() * 2, projected, width, |row, sum| {
            let text = step.of_row[row];
            let position = row - step.first[text];
            let mut learned = vec![0.0; width];
            weights.token_embd.row_f32(step.texts[text][position] as usize, sum);
            weights.position_embd.row_f32(position, &mut learned);
            kernels.add_assign(sum, &weights.type_embd);
            kernels.add_assign(sum, &learned);
        });
        norm_rows(compute, projected, &weights.embd_norm, config.norm_eps, step, x);
    }

    fn attention_block(&mut self, encoder: &Encoder, layer: &Layer, step: &Step<'_>) {
        let Embedder { compute, acts, buffers } = self;
        let Buffers { x, projected, qkv, by_task, attended, part, scratch, .. } = buffers;
        let config = encoder.config();
        let (width, head_dim) = (config.width, config.head_dim);
        compute.stack(acts, &layer.qkv, x, qkv, part);

        scratch.resize_with(compute.team.threads().max(scratch.len()), HeadScratch::default);
        let heads = Heads { kernels: compute.kernels, qkv, bias: &layer.qkv_bias, width, head_dim, step };
        let mut tasks = heads.tasks(config.n_heads, by_task);
        let pairs: usize = step.texts.iter().map(|text| text.len() * text.len()).sum();
        if compute.is_small(pairs * width * 2) {
            tasks.iter_mut().for_each(|task| heads.run(&mut scratch[0], task));
        } else {
            compute.team.for_each_chunk_with(scratch, &mut tasks, 1, |scratch, _, tasks| {
                tasks.iter_mut().for_each(|task| heads.run(scratch, task));
            });
        }
        compute.chunks(attended.len(), attended, width, |row, out| {
            let text = step.of_row[row];
            let (first, n) = (step.first[text], step.texts[text].len());
            let by_task = &by_task[first * width..][..n * width];
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                out.copy_from_slice(&by_task[(head * n + row - first) * head_dim..][..head_dim]);
            }
        });
        compute.product(acts, &layer.attn_output, attended, projected);
        let kernels = compute.kernels;
        compute.chunks(projected.len(), projected, width, |row, sum| {
            kernels.add_assign(sum, &layer.attn_output_bias);
            kernels.add_assign(sum, &x[row * width..][..width]);
        });
        norm_rows(compute, projected, &layer.attn_norm, config.norm_eps, step, x);
    }

    fn feed_forward_block(&mut self, encoder: &Encoder, layer: &Layer, step: &Step<'_>) {
        let Embedder { compute, acts, buffers } = self;
        let Buffers { x, projected, inner, .. } = buffers;
        let (config, kernels) = (encoder.config(), compute.kernels);
        compute.product(acts, &layer.ffn_up, x, inner);
        compute.chunks(inner.len() * 8, inner, config.feed_forward, |row, inner| {
            kernels.add_assign(inner, &layer.ffn_up_bias);
            kernels.gelu_erf(inner);
            step.check(row, check_finite(inner).is_ok());
        });
        compute.product(acts, &layer.ffn_down, inner, projected);
        let width = config.width;
        compute.chunks(projected.len(), projected, width, |row, sum| {
            kernels.add_assign(sum, &layer.ffn_down_bias);
            kernels.add_assign(sum, &x[row * width..][..width]);
        });
        norm_rows(compute, projected, &layer.ffn_norm, config.norm_eps, step, x);
    }
}

/// `out[rows, width] = layer_norm` of each row of `x`; texts with a row that is not finite are marked.
fn norm_rows(compute: &Compute, x: &[f32], norm: &Norm, eps: f32, step: &Step<'_>, out: &mut [f32]) {
    let (width, kernels) = (norm.weight.len(), compute.kernels);
    compute.chunks(x.len() * 2, out, width, |row, out| {
        kernels.layer_norm(&x[row * width..][..width], &norm.weight, &norm.bias, eps, out);
        step.check(row, check_finite(out).is_ok());
    });
}

/// The vector of a text with hidden states `rows: [n, width]`, of length 1.
fn pool(kernels: Kernels, pooling: Pooling, rows: &[f32], width: usize) -> Vec<f32> {
    let mut values = match pooling {
        Pooling::Cls => rows[..width].to_vec(),
        Pooling::Mean => {
            let mut sum = vec![0.0; width];
            rows.chunks_exact(width).for_each(|row| kernels.add_assign(&mut sum, row));
            // Bounded by the position table, far below 2^24.
            let n = (rows.len() / width) as f32;
            sum.iter_mut().for_each(|value| *value /= n);
            sum
        }
    };
    let inverse = 1.0 / scalar::dot(&values, &values).sqrt();
    kernels.scale_assign(&mut values, inverse);
    values
}

impl<'a> Step<'a> {
    fn new(texts: &'a [Vec<u32>]) -> Step<'a> {
        let mut step = Step { texts, first: Vec::new(), of_row: Vec::new(), failed: Vec::new() };
        for (index, text) in texts.iter().enumerate() {
            assert!(!text.is_empty(), "a text without tokens");
            step.first.push(step.of_row.len());
            step.of_row.extend(std::iter::repeat_n(index, text.len()));
            step.failed.push(AtomicBool::new(false));
        }
        step
    }

    fn rows(&self, text: usize) -> Range<usize> {
        self.first[text]..self.first[text] + self.texts[text].len()
    }

    /// Marks the text of `row` unless its values are fine.
    fn check(&self, row: usize, fine: bool) {
        if !fine {
            self.failed[self.of_row[row]].store(true, Ordering::Relaxed);
        }
    }
}

/// What a layer's attention reads. Shared by the threads of a team.
struct Heads<'a> {
    kernels: Kernels,
    /// `[rows, 3 * width]`, without biases.
    qkv: &'a [f32],
    /// `[3 * width]`
    bias: &'a [f32],
    width: usize,
    head_dim: usize,
    step: &'a Step<'a>,
}

impl Heads<'_> {
    /// Cuts `out: [rows, width]` into a task for each head of each text.
    fn tasks<'a>(&self, n_heads: usize, out: &'a mut [f32]) -> Vec<Task<'a>> {
        let mut tasks = Vec::with_capacity(self.step.texts.len() * n_heads);
        let mut rest = out;
        for (text, tokens) in self.step.texts.iter().enumerate() {
            for head in 0..n_heads {
                let (out, after) = std::mem::take(&mut rest).split_at_mut(tokens.len() * self.head_dim);
                rest = after;
                tasks.push(Task { text, head, out });
            }
        }
        tasks
    }

    fn run(&self, scratch: &mut HeadScratch, task: &mut Task<'_>) {
        let Heads { kernels, width, head_dim, .. } = *self;
        let HeadScratch { attend, q, kv, chunks, n_keys } = scratch;
        let rows = self.step.rows(task.text);
        let (n, half) = (rows.len(), KV_CHUNK * head_dim);
        q.clear();
        kv.resize(2 * head_dim, 0.0);
        chunks.resize(n.div_ceil(KV_CHUNK) * 2 * half, 0);
        // The part of a row that belongs to this head, its bias added.
        let part = |row: usize, which: usize| {
            let at = which * width + task.head * head_dim;
            let values = &self.qkv[row * 3 * width + at..][..head_dim];
            values.iter().zip(&self.bias[at..][..head_dim]).map(|(value, bias)| value + bias)
        };
        let mut fits = true;
        for (position, row) in rows.clone().enumerate() {
            q.extend(part(row, 0));
            kv.iter_mut().zip(part(row, 1).chain(part(row, 2))).for_each(|(out, value)| *out = value);
            fits &= kv.iter().fold(true, |fits, value| fits & (value.abs() < F16_LIMIT));
            let (k, v) = kv.split_at(head_dim);
            let (chunk_k, chunk_v) = chunks[position / KV_CHUNK * 2 * half..][..2 * half].split_at_mut(half);
            kernels.store_kv(chunk_k, chunk_v, position % KV_CHUNK, k, v);
        }
        n_keys.clear();
        n_keys.resize(n, n);
        let chunks: Vec<KvChunk<'_>> =
            chunks.chunks_exact(2 * half).map(|chunk| chunk.split_at(half)).map(|(k, v)| KvChunk { k, v }).collect();
        // Two IEEE operations, the same everywhere.
        let scale = 1.0 / (head_dim as f32).sqrt();
        kernels.attend_many(q, n_keys, &chunks, scale, attend, task.out);
        self.step.check(rows.start, fits && check_finite(task.out).is_ok());
    }
}

impl Buffers {
    fn resize(&mut self, n: usize, width: usize, feed_forward: usize) {
        self.x.resize(n * width, 0.0);
        self.projected.resize(n * width, 0.0);
        self.qkv.resize(n * 3 * width, 0.0);
        self.by_task.resize(n * width, 0.0);
        self.attended.resize(n * width, 0.0);
        self.inner.resize(n * feed_forward, 0.0);
    }
}
