"""The Llama architecture in JAX: shapes, initial weights, forward pass.

Follows GGUF `llama`: RMSNorm, rotary embedding over interleaved pairs, grouped-query attention, SwiGLU, tied output. All f32.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Shape:
    n_vocab: int = 2048
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 768
    n_context: int = 1024
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


def initial_weights(shape: Shape, seed: int) -> dict:
    """Matrices are [out, in], as GGUF stores them; residual outputs start smaller by sqrt(2 * n_layers)."""
    keys = iter(jax.random.split(jax.random.PRNGKey(seed), 1 + 7 * shape.n_layers))
    d, f, kv = shape.d_model, shape.d_ff, shape.n_kv_heads * shape.d_head
    residual = 1 / math.sqrt(2 * shape.n_layers)

    def matrix(n_out: int, n_in: int, scale: float = 1.0):
        return jax.random.normal(next(keys), (n_out, n_in)) * (scale / math.sqrt(n_in))

    def layer() -> dict:
        return {
            "attn_norm": jnp.ones(d), "attn_q": matrix(d, d), "attn_k": matrix(kv, d), "attn_v": matrix(kv, d),
            "attn_output": matrix(d, d, residual), "ffn_norm": jnp.ones(d), "ffn_gate": matrix(f, d), "ffn_up": matrix(f, d),
            "ffn_down": matrix(d, f, residual),
        }

    return {
        "token_embd": jax.random.normal(next(keys), (shape.n_vocab, d)) * 0.02,
        "output_norm": jnp.ones(d),
        "layers": [layer() for _ in range(shape.n_layers)],
    }


def rms_norm(x, weight, eps: float):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):
    """x: [batch, time, heads, d_head]; pairs are (2i, 2i + 1)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def logits(weights: dict, tokens, shape: Shape):
    """tokens: [batch, time] int32 -> logits [batch, time, n_vocab]; causal."""
    batch, time = tokens.shape
    groups = shape.n_heads // shape.n_kv_heads
    angle = jnp.arange(time)[:, None] / shape.rope_theta ** (jnp.arange(0, shape.d_head, 2) / shape.d_head)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    causal = jnp.tril(jnp.ones((time, time), bool))
    h = weights["token_embd"][tokens]
    for layer in weights["layers"]:
        x = rms_norm(h, layer["attn_norm"], shape.rms_eps)
        q = rotate((x @ layer["attn_q"].T).reshape(batch, time, shape.n_heads, shape.d_head), cos, sin)
        k = rotate((x @ layer["attn_k"].T).reshape(batch, time, shape.n_kv_heads, shape.d_head), cos, sin)
        v = (x @ layer["attn_v"].T).reshape(batch, time, shape.n_kv_heads, shape.d_head)
        q = q.reshape(batch, time, shape.n_kv_heads, groups, shape.d_head)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k) / math.sqrt(shape.d_head)
        attention = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
        mixed = jnp.einsum("bkgts,bskd->btkgd", attention, v).reshape(batch, time, shape.d_model)
        h = h + mixed @ layer["attn_output"].T
        x = rms_norm(h, layer["ffn_norm"], shape.rms_eps)
        h = h + (jax.nn.silu(x @ layer["ffn_gate"].T) * (x @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    return rms_norm(h, weights["output_norm"], shape.rms_eps) @ weights["token_embd"].T


def n_parameters(weights: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(weights))
