//! Encoders of the BERT family: texts in, one vector for each out.
//!
//! Owns what differs from the decoders beside it: no cache, no causal mask, learned positions, layer norms with biases,
//! pooling. Weights, kernels and team are the same, and so is the promise: the same vector for the same text, bit for
//! bit, on every instruction set, with any number of threads, alone or among others.
//!
//! ```text
//! Gguf + bytes --Encoder::load--> Encoder (config, tokenizer, weights)
//!   texts --Embedder::embed_texts--> tokens --steps of bounded size--> hidden states --pool, normalise--> Embedding
//! ```
//!
//! For each token at position p of its text, with layer norm as [`assay_num::scalar::layer_norm`]:
//! `x = layer_norm((token_embd[token] + token_types[0]) + position_embd[p])`. Per layer, `q|k|v = W_qkv x`, then one
//! addition per element: `q|k|v += b`; k and v rounded to f16; `a = attention(q, all keys of the text)`, in chunks of 256
//! keys as [`assay_num::scalar::attend`]; `x = layer_norm((W_o a + b_o) + x)`; `h = gelu(W_up x + b_up)` with
//! [`assay_num::scalar::gelu_erf`]; `x = layer_norm((W_down h + b_down) + x)`. Then the text's vector is its first row
//! (`cls`), or the sum of its rows in order from +0, divided by their number (`mean`); and that is multiplied by
//! `1 / sqrt(dot(v, v))`.
//!
//! Gelu is the one with the error function, which published BERT models were trained with and GGUF has no key for.
//! (llama.cpp takes the tanh form there, from a table of f16 values.)

mod config;
mod embed;
mod model;

pub use config::{EncoderConfig, Pooling};
pub use embed::{EmbedError, Embedder, Embedding, TooLong};
pub use model::Encoder;
