//! Attention over a KV cache of f16 chunks with absolute positions. Definition: [`crate::scalar::attend`].

use crate::f16;
use crate::isa::{Kernels, dispatch};
use crate::scalar;

/// Positions per chunk. Part of the definition: chunks are combined in order, so another length gives other bits.
pub const KV_CHUNK: usize = 256;

/// Positions whose keys lie together: those of one dimension are one cache line. So a chunk of which few positions are
/// written is read, and written, in few pages.
pub(crate) const KEY_PIECE: usize = 32;

/// Keys and values of one layer and kv head for 256 positions, as f16 bits.
#[derive(Debug, Clone, Copy)]
pub struct KvChunk<'a> {
    /// Keys in pieces of 32 positions, each transposed: `[8][head_dim][32]`, see [`KvChunk::key_index`].
    pub k: &'a [u16],
    /// Values `[256, head_dim]`: `v[p * head_dim + d]`.
    pub v: &'a [u16],
}

impl KvChunk<'_> {
    /// Where dimension `d` of the key at position `p` of a chunk is in its keys.
    #[inline]
    pub fn key_index(head_dim: usize, d: usize, p: usize) -> usize {
        (p / KEY_PIECE * head_dim + d) * KEY_PIECE + p % KEY_PIECE
    }
}

/// How queries see keys. A plain scale converts into one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Factor of every score, finite.
    pub scale: f32,
    /// Scores become [`crate::scalar::softcap`] of themselves; finite, above 0.
    pub softcap: Option<f32>,
    /// A query sees at most this many keys, the last ones, its own included; at least 1.
    pub window: Option<usize>,
}

impl From<f32> for Scoring {
    fn from(scale: f32) -> Scoring {
        Scoring { scale, softcap: None, window: None }
    }
}

impl Scoring {
    /// The first position that enters for a query that has `n_keys`.
    pub fn first_key(&self, n_keys: usize) -> usize {
        self.window.map_or(0, |window| n_keys.saturating_sub(window))
    }
}

/// Buffers of [`Kernels::attend`]; one per thread, reusable.
#[derive(Debug, Clone, Default)]
pub struct AttendScratch {
    /// Scores, then weights, of the queries of one tile: `[TILE_QUERIES, KV_CHUNK]`.
    pub(crate) scores: Vec<f32>,
    /// Weighted values of one chunk: `[TILE_QUERIES, head_dim]`.
    pub(crate) out: Vec<f32>,
    /// Largest score and sum of weights of each query over the chunks so far.
    pub(crate) state: Vec<(f32, f32)>,
}

/// Most queries a kernel takes at once.
const TILE_QUERIES: usize = 4;

impl AttendScratch {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "the definition needs no buffers")
    )]
    pub(crate) fn reset(&mut self, n_queries: usize, head_dim: usize) {
        self.scores.resize(TILE_QUERIES * KV_CHUNK, 0.0);
        self.out.resize(TILE_QUERIES * head_dim, 0.0);
        self.state.clear();
        self.state.resize(n_queries, (0.0, 0.0));
    }
}

impl Kernels {
    /// Stores the key and value (`[head_dim]` each, rounded to f16) of position `p_in_chunk` of a chunk.
    ///
    /// # Panics
    /// If `p_in_chunk` is not below 256 or the lengths do not match.
    pub fn store_kv(self, chunk_k: &mut [u16], chunk_v: &mut [u16], p_in_chunk: usize, k: &[f32], v: &[f32]) {
        let head_dim = k.len();
        assert!(p_in_chunk < KV_CHUNK && v.len() == head_dim);
        assert!(chunk_k.len() == KV_CHUNK * head_dim && chunk_v.len() == KV_CHUNK * head_dim);
        self.narrow(v, &mut chunk_v[p_in_chunk * head_dim..][..head_dim]);
        let mut narrowed = [0; 64];
        let (lines, _) =
            chunk_k[KvChunk::key_index(head_dim, 0, p_in_chunk - p_in_chunk % KEY_PIECE)..].as_chunks_mut();
        for (k, lines) in k.chunks(64).zip(lines.chunks_mut(64)) {
            let narrowed = &mut narrowed[..k.len()];
            self.narrow(k, narrowed);
            for (line, &k) in lines.iter_mut().zip(&*narrowed) {
                let line: &mut [u16; KEY_PIECE] = line;
                line[p_in_chunk % KEY_PIECE] = k;
            }
        }
    }

    /// Rounds to f16 bits, see [`f16::from_f32_rne`].
    fn narrow(self, x: &[f32], out: &mut [u16]) {
        dispatch!(self, narrow(x, out), x.iter().zip(out).for_each(|(&x, out)| *out = f16::from_f32_rne(x)));
    }

    /// Attention of the query `q: [head_dim]` over the first `n_keys` positions into `out: [head_dim]`.
    ///
    /// # Panics
    /// If `n_keys` or the window is 0, `n_keys` is above the positions of `chunks`, or a length does not match.
    pub fn attend(
        self,
        q: &[f32],
        chunks: &[KvChunk<'_>],
        n_keys: usize,
        scoring: impl Into<Scoring>,
        scratch: &mut AttendScratch,
        out: &mut [f32],
    ) {
        self.attend_many(q, &[n_keys], chunks, scoring, scratch, out);
    }

    /// Attention of several queries `q: [n, head_dim]` over the same keys into `out: [n, head_dim]`; query i sees the
    /// first `n_keys[i]` positions, or the last of these if there is a window. The bits are those of n calls of [`Kernels::attend`]; keys and values are
    /// read once for several queries (heads of a group, tokens of a prompt).
    ///
    /// # Panics
    /// As [`Kernels::attend`].
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(unused_variables, reason = "the definition needs no buffers")
    )]
    pub fn attend_many(
        self,
        q: &[f32],
        n_keys: &[usize],
        chunks: &[KvChunk<'_>],
        scoring: impl Into<Scoring>,
        scratch: &mut AttendScratch,
        out: &mut [f32],
    ) {
        let (n, scoring) = (n_keys.len(), scoring.into());
        if n == 0 {
            return;
        }
        let head_dim = q.len() / n;
        assert!(head_dim > 0 && q.len() == n * head_dim && out.len() == q.len(), "queries are not [{n}, head_dim]");
        assert!(n_keys.iter().all(|&n| n > 0 && n <= chunks.len() * KV_CHUNK), "n_keys outside the cache");
        assert!(scoring.window != Some(0), "a window of no keys");
        assert!(
            chunks.iter().all(|c| c.k.len() == KV_CHUNK * head_dim && c.v.len() == KV_CHUNK * head_dim),
            "chunk lengths"
        );
        dispatch!(
            self,
            attend_many(q, n_keys, chunks, scoring, scratch, out),
            attend_scalar(q, n_keys, chunks, scoring, out)
        );
    }
}

fn attend_scalar(q: &[f32], n_keys: &[usize], chunks: &[KvChunk<'_>], scoring: Scoring, out: &mut [f32]) {
    let head_dim = q.len() / n_keys.len();
    for ((q, &n_keys), out) in q.chunks_exact(head_dim).zip(n_keys).zip(out.chunks_exact_mut(head_dim)) {
        scalar::attend(q, chunks, n_keys, scoring, out);
    }
}
