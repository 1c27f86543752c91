//! Model graph, KV cache, continuous batching and sampling.
