//! A loaded model: config, tokenizer, chat template, and weights in the layout the kernels read.
//!
//! Owns the list of tensors that a file of each family must have, their shapes, and nothing about the computation
//! (`forward.rs`) or where the packed weights are kept ([`PackedStore`]). The file's bytes are not needed afterwards.
//! Tensor names and shapes: the GGUF specification and llama.cpp's models of the same names. A tensor that is not used is an error:
//! ignoring one (a bias, an adapter) would compute something else than the file's author meant.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use assay_gguf::{
    ChatTemplate, GgmlType, Gguf, GgufError, RopeError, RopeTables, TemplateError, TensorInfo, Tokenizer,
    TokenizerError, rope_tables, shown,
};
use assay_grammar::{Vocabulary, VocabularyError};
use assay_num::{Format, InMemory, Matrix, MatrixError, PackedStore, PackedStoreError, Packing, SourceRows, Team, f16};

use crate::kv::KvShape;
use assay_graph::{ConfigError, ModelConfig};

/// Default of [`LoadOptions::context_max`].
pub const CONTEXT_MAX_DEFAULT: usize = 16_384;

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Upper bound on the context in tokens; the model's own `*.context_length` bounds it too.
    pub context_max: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { context_max: CONTEXT_MAX_DEFAULT }
    }
}

/// Everything that running a model needs. Immutable; shared between threads and engines in an [`Arc`].
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    context: usize,
    tokenizer: Arc<Tokenizer>,
    /// Made for the first job with a grammar.
    vocabulary: OnceLock<Result<Vocabulary, VocabularyError>>,
    template: Result<Option<ChatTemplate>, TemplateError>,
    name: String,
    weights: Weights,
}

/// Weight matrices are `[rows, k]` as in [`Matrix`]; norms are `[width]`.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab, width]`; also the output matrix of models that tie the two.
    pub token_embd: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    /// `[vocab, width]`, absent if tied.
    pub output: Option<Matrix>,
    pub rope: RopeTables,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub attn_norm: Vec<f32>,
    /// q, k and v below each other: `[(n_heads + 2 n_kv_heads) * head_dim, width]`.
    pub qkv: Stack,
    /// Added to `qkv`'s product, in the same order; Qwen2.
    pub qkv_bias: Option<Vec<f32>>,
    /// Norms of each head of q and of k, `[head_dim]` each; Qwen3 and Gemma3.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// `[width, n_heads * head_dim]`
    pub attn_output: Matrix,
    /// Norm of what attention adds to the residual stream; Gemma2 and Gemma3.
    pub attn_post_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    /// gate above up: `[2 * feed_forward, width]`.
    pub gate_up: Stack,
    /// `[width, feed_forward]`
    pub ffn_down: Matrix,
    /// As `attn_post_norm`, of the feed-forward part.
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// Matrices that read the same input, as one product where their formats agree: fewer barriers, same bits, because
/// every output row is computed on its own.
#[derive(Debug)]
pub(crate) struct Stack {
    /// In output order; one entry where the formats agree.
    pub parts: Vec<Matrix>,
    /// Rows of all parts.
    pub rows: usize,
}

/// Why a file is not a model this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file's directory and its bytes disagree.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The rotation table.
    #[error("rope keys and rope_freqs.weight: {0}")]
    Rope(#[from] RopeError),
    /// Tokenizer metadata.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A required tensor is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor whose shape contradicts the metadata.
    #[error("tensor {name} has shape {found:?}, the metadata asks for {expected:?} (innermost first)")]
    Shape {
        /// Its name.
        name: String,
        /// Dimensions in the file.
        found: Vec<u64>,
        /// Dimensions that follow from the config.
        expected: Vec<u64>,
    },
    /// A number format the engine does not compute with.
    #[error(
        "tensor {name} has type {found:?}; this engine runs matrices in F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K, and norms in F32, F16 and BF16"
    )]
    Type {
        /// Its name.
        name: String,
        /// The format.
        found: GgmlType,
    },
    /// The kernels refuse the matrix.
    #[error("tensor {name}: {source}")]
    Matrix {
        /// Its name.
        name: String,
        /// Why.
        source: MatrixError,
    },
    /// Where the weights are kept refuses the matrix.
    #[error("tensor {name}: {source}")]
    Store {
        /// Its name.
        name: String,
        /// Why.
        source: PackedStoreError,
    },
    /// A tensor the architecture does not use.
    #[error(
        "tensor {name} is not part of a plain \"{family}\" model (other biases, experts, adapters, long-context factors)"
    )]
    UnknownTensor {
        /// The file's architecture.
        family: &'static str,
        /// Its name.
        name: String,
    },
    /// Tokenizer and embedding disagree.
    #[error("the tokenizer has {tokenizer} tokens, token_embd.weight has {rows} rows")]
    VocabMismatch {
        /// Entries of the tokenizer.
        tokenizer: u32,
        /// Rows of the embedding.
        rows: usize,
    },
}

impl Model {
    /// Loads with default options and no progress report.
    ///
    /// # Errors
    /// See [`Model::load_with`].
    pub fn load(gguf: &Gguf, bytes: &[u8]) -> Result<Arc<Model>, LoadError> {
        Model::load_with(gguf, bytes, LoadOptions::default(), &mut |_, _| {})
    }

    /// [`Model::load_into`] memory. Takes about the size of the tensor data.
    ///
    /// # Errors
    /// The first contradiction, by key or tensor.
    pub fn load_with(
        gguf: &Gguf,
        bytes: &[u8],
        options: LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Model>, LoadError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Model::load_into(gguf, bytes, options, &mut InMemory::new(Team::new(threads)), progress)
    }

    /// Loads the model in `bytes`, of which `gguf` is the parsed directory, its matrices into `store`, one after the
    /// other and always in the same order. `progress(done, total)` is called with bytes of tensor data, a few times
    /// per block. Memory besides what `store` takes: tokenizer, norms and the rotation table.
    ///
    /// # Errors
    /// The first contradiction, by key or tensor, or what `store` says.
    pub fn load_into(
        gguf: &Gguf,
        bytes: &[u8],
        options: LoadOptions,
        store: &mut dyn PackedStore,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Model>, LoadError> {
        let embd = gguf
            .tensor("token_embd.weight")
            .ok_or_else(|| LoadError::MissingTensor { name: "token_embd.weight".to_owned() })?;
        let config = ModelConfig::from_gguf(gguf, embd.dims.get(1).copied().unwrap_or(1))?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        if tokenizer.vocab_size() as usize != config.vocab {
            return Err(LoadError::VocabMismatch { tokenizer: tokenizer.vocab_size(), rows: config.vocab });
        }
        let context = config.context.min(options.context_max.max(1));
        let mut loader = Loader::new(gguf, bytes, store, progress);
        let weights = loader.weights(&config, context)?;
        loader.finish(config.family.name())?;
        Ok(Arc::new(Model {
            config,
            context,
            tokenizer: Arc::new(tokenizer),
            vocabulary: OnceLock::new(),
            template: ChatTemplate::from_gguf(gguf),
            name: gguf.name().unwrap_or_default().to_owned(),
            weights,
        }))
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Positions a job may use: prompt and output together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The tokens as grammars see them.
    ///
    /// # Errors
    /// The model cannot follow grammars.
    pub fn vocabulary(&self) -> Result<&Vocabulary, VocabularyError> {
        let tokens = &self.tokenizer;
        let ids = || 0..tokens.vocab_size();
        let make = || {
            let ends: Vec<u32> = ids().filter(|id| tokens.is_eog(*id)).collect();
            Vocabulary::new(ids().map(|id| tokens.token_bytes(id)), &ends)
        };
        self.vocabulary.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The tokenizer in the file.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The chat template in the file, if it has one. A template that does not compile is an error here and not of
    /// loading: the model still continues texts.
    ///
    /// # Errors
    /// Why it does not compile.
    pub fn template(&self) -> Result<Option<&ChatTemplate>, &TemplateError> {
        self.template.as_ref().map(Option::as_ref)
    }

    /// `general.name` of the file, possibly empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape of the memory for keys and values.
    pub fn kv_shape(&self) -> KvShape {
        KvShape::of(&self.config)
    }

    /// Bytes of weights in memory: what one decoded token reads.
    pub fn weight_bytes(&self) -> usize {
        let weights = &self.weights;
        let layers = weights.layers.iter().map(|layer| {
            let stacks = layer.qkv.parts.iter().chain(&layer.gate_up.parts);
            stacks.chain([&layer.attn_output, &layer.ffn_down]).map(Matrix::bytes).sum::<usize>()
        });
        layers.sum::<usize>() + self.output_matrix().bytes()
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn output_matrix(&self) -> &Matrix {
        self.weights.output.as_ref().unwrap_or(&self.weights.token_embd)
    }
}

/// Takes tensors out of a file, each once.
pub(crate) struct Loader<'a> {
    gguf: &'a Gguf,
    bytes: &'a [u8],
    taken: HashSet<&'a str>,
    done: u64,
    total: u64,
    store: &'a mut dyn PackedStore,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Loader<'a> {
    pub fn new(
        gguf: &'a Gguf,
        bytes: &'a [u8],
        store: &'a mut dyn PackedStore,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let total = gguf.tensors().iter().map(|tensor| tensor.len).sum();
        Loader { gguf, bytes, taken: HashSet::new(), done: 0, total, store, progress }
    }

    fn weights(&mut self, config: &ModelConfig, context: usize) -> Result<Weights, LoadError> {
        let (width, vocab) = (config.width, config.vocab);
        let token_embd = self.matrix("token_embd.weight", vocab, width)?;
        let output = match self.gguf.tensor("output.weight") {
            Some(_) => Some(self.matrix("output.weight", vocab, width)?),
            None => None,
        };
        let output_norm = self.vector("output_norm.weight", width)?;
        // Bounded by `limits::CONTEXT`, so it fits.
        let rope = rope_tables(self.gguf, self.bytes, context as u32)?;
        self.taken.insert("rope_freqs.weight");
        let layers = (0..config.n_layers).map(|i| self.layer(config, i)).collect::<Result<_, _>>()?;
        Ok(Weights { token_embd, layers, output_norm, output, rope })
    }

    fn layer(&mut self, config: &ModelConfig, i: usize) -> Result<Layer, LoadError> {
        let (width, ffn) = (config.width, config.feed_forward);
        let (q, kv) = (config.q_width(), config.kv_width());
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let (fused, post_norms) = (config.family.is_fused(), config.family.has_post_norms());
        let qkv: &[_] =
            if fused { &[("attn_qkv", q + 2 * kv)] } else { &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)] };
        let gate_up: &[_] = if fused { &[("ffn_up", 2 * ffn)] } else { &[("ffn_gate", ffn), ("ffn_up", ffn)] };
        let names = |parts: &[(&str, usize)]| parts.iter().map(|(part, n)| (name(part), *n)).collect::<Vec<_>>();
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm"), width)?,
            qkv: self.stack(&names(qkv), width)?,
            qkv_bias: config.family.has_qkv_bias().then(|| self.biases(i, qkv)).transpose()?,
            qk_norm: config.family.has_qk_norm().then(|| self.qk_norm(i, config.head_dim)).transpose()?,
            attn_output: self.matrix(&name("attn_output"), width, q)?,
            attn_post_norm: post_norms.then(|| self.vector(&name("post_attention_norm"), width)).transpose()?,
            ffn_norm: self.vector(&name("ffn_norm"), width)?,
            gate_up: self.stack(&names(gate_up), width)?,
            ffn_down: self.matrix(&name("ffn_down"), width, ffn)?,
            ffn_post_norm: post_norms.then(|| self.vector(&name("post_ffw_norm"), width)).transpose()?,
        })
    }

    /// The biases of a stack's parts, one after the other.
    fn biases(&mut self, layer: usize, parts: &[(&str, usize)]) -> Result<Vec<f32>, LoadError> {
        let parts = parts.iter().map(|(part, n)| self.vector(&format!("blk.{layer}.{part}.bias"), *n));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn qk_norm(&mut self, layer: usize, head_dim: usize) -> Result<(Vec<f32>, Vec<f32>), LoadError> {
        let mut norm = |part| self.vector(&format!("blk.{layer}.attn_{part}_norm.weight"), head_dim);
        Ok((norm("q")?, norm("k")?))
    }

    /// One matrix `[rows, k]`.
    pub fn matrix(&mut self, name: &str, rows: usize, k: usize) -> Result<Matrix, LoadError> {
        let (tensor, data) = self.take(name, &[k as u64, rows as u64])?;
        self.place(name, tensor.ty, (rows, k), &[data])
    }

    /// Matrices of equal width `k`, one below the other as one if they have one format.
    pub fn stack(&mut self, parts: &[(String, usize)], k: usize) -> Result<Stack, LoadError> {
        let taken = parts
            .iter()
            .map(|(name, rows)| Ok((name, *rows, self.take(name, &[k as u64, *rows as u64])?)))
            .collect::<Result<Vec<_>, LoadError>>()?;
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let ty = taken[0].2.0.ty;
        let parts = if taken.iter().all(|(_, _, (tensor, _))| tensor.ty == ty) {
            let data: Vec<&[u8]> = taken.iter().map(|(_, _, (_, data))| *data).collect();
            vec![self.place(taken[0].0, ty, (rows, k), &data)?]
        } else {
            let place = |(name, rows, (tensor, data)): &(&String, usize, (&TensorInfo, &[u8]))| {
                self.place(name, tensor.ty, (*rows, k), &[data])
            };
            taken.iter().map(place).collect::<Result<_, _>>()?
        };
        Ok(Stack { parts, rows })
    }

    /// The matrix `[rows, k]` of which `parts` are the rows.
    fn place(
        &mut self,
        name: &str,
        ty: GgmlType,
        (rows, k): (usize, usize),
        parts: &[&[u8]],
    ) -> Result<Matrix, LoadError> {
        let format = format_of(ty).ok_or_else(|| LoadError::Type { name: name.to_owned(), found: ty })?;
        let refused = |source| LoadError::Matrix { name: name.to_owned(), source };
        let packing = Packing::new(format, rows, k).map_err(refused)?;
        let source = SourceRows::new(&packing, parts).map_err(refused)?;
        self.store.place(packing, &source).map_err(|source| LoadError::Store { name: name.to_owned(), source })
    }

    /// A norm's weights or another short vector, widened to f32 exactly.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let (tensor, data) = self.take(name, &[len as u64])?;
        match tensor.ty {
            GgmlType::F32 => Ok(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            GgmlType::F16 => {
                Ok(data.as_chunks().0.iter().map(|bytes| f16::to_f32(u16::from_le_bytes(*bytes))).collect())
            }
            GgmlType::BF16 => {
                Ok(data.as_chunks().0.iter().map(|bytes| f16::bf16_to_f32(u16::from_le_bytes(*bytes))).collect())
            }
            found => Err(LoadError::Type { name: name.to_owned(), found }),
        }
    }

    /// A tensor's description and data, its shape checked.
    fn take(&mut self, name: &str, expected: &[u64]) -> Result<(&'a TensorInfo, &'a [u8]), LoadError> {
        let tensor = self.gguf.tensor(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })?;
        // Trailing dimensions of 1 are the same shape.
        let found: &[u64] = &tensor.dims;
        let significant = found.iter().rposition(|dim| *dim != 1).map_or(0, |last| last + 1);
        let wanted = expected.iter().rposition(|dim| *dim != 1).map_or(0, |last| last + 1);
        if found[..significant] != expected[..wanted] {
            return Err(LoadError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() });
        }
        self.taken.insert(&tensor.name);
        self.done += tensor.len;
        (self.progress)(self.done, self.total);
        Ok((tensor, self.gguf.tensor_bytes(self.bytes, tensor)?))
    }

    /// Fails if the file has a tensor nobody took.
    pub fn finish(&self, family: &'static str) -> Result<(), LoadError> {
        match self.gguf.tensors().iter().find(|tensor| !self.taken.contains(tensor.name.as_str())) {
            Some(tensor) => Err(LoadError::UnknownTensor { family, name: shown(&tensor.name) }),
            None => Ok(()),
        }
    }
}

/// The format of a matrix, if the kernels have it.
fn format_of(ty: GgmlType) -> Option<Format> {
    Some(match ty {
        GgmlType::F32 => Format::F32,
        GgmlType::F16 => Format::F16,
        GgmlType::BF16 => Format::Bf16,
        GgmlType::Q8_0 => Format::Q8_0,
        GgmlType::Q4_0 => Format::Q4_0,
        GgmlType::Q4_K => Format::Q4K,
        GgmlType::Q5_K => Format::Q5K,
        GgmlType::Q6_K => Format::Q6K,
        _ => return None,
    })
}
