//! A loaded encoder: config, tokenizer and weights. Tensor names and shapes are those of llama.cpp's "bert".

use std::sync::Arc;

use assay_gguf::{Gguf, Tokenizer};
use assay_num::{InMemory, Matrix, PackedStore, Team};

use crate::encoder::config::{ARCHITECTURE, EncoderConfig};
use crate::model::{LoadError, Loader, Stack};
use assay_graph::limits;

/// Everything that embedding texts needs. Immutable; shared between threads in an [`Arc`].
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    tokenizer: Arc<Tokenizer>,
    name: String,
    weights: Weights,
}

#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab, width]`
    pub token_embd: Matrix,
    /// `[positions, width]`
    pub position_embd: Matrix,
    /// What is added for texts that are no second half of a pair: row 0 of the types' table, `[width]`.
    pub type_embd: Vec<f32>,
    pub embd_norm: Norm,
    pub layers: Vec<Layer>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// q, k and v below each other: `[3 * width, width]`.
    pub qkv: Stack,
    /// `[3 * width]`
    pub qkv_bias: Vec<f32>,
    /// `[width, width]`
    pub attn_output: Matrix,
    pub attn_output_bias: Vec<f32>,
    pub attn_norm: Norm,
    /// `[feed_forward, width]`
    pub ffn_up: Matrix,
    pub ffn_up_bias: Vec<f32>,
    /// `[width, feed_forward]`
    pub ffn_down: Matrix,
    pub ffn_down_bias: Vec<f32>,
    pub ffn_norm: Norm,
}

/// Weights of a layer norm, `[width]` each.
#[derive(Debug)]
pub(crate) struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Encoder {
    /// Loads without progress report.
    ///
    /// # Errors
    /// See [`Encoder::load_with`].
    pub fn load(gguf: &Gguf, bytes: &[u8]) -> Result<Arc<Encoder>, LoadError> {
        Encoder::load_with(gguf, bytes, &mut |_, _| {})
    }

    /// [`Encoder::load_into`] memory. Takes about the size of the tensor data.
    ///
    /// # Errors
    /// The first contradiction, by key or tensor.
    pub fn load_with(gguf: &Gguf, bytes: &[u8], progress: &mut dyn FnMut(u64, u64)) -> Result<Arc<Encoder>, LoadError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Encoder::load_into(gguf, bytes, &mut InMemory::new(Team::new(threads)), progress)
    }

    /// Loads the encoder in `bytes`, of which `gguf` is the parsed directory, its matrices into `store`.
    /// `progress(done, total)` is called with bytes of tensor data.
    ///
    /// # Errors
    /// The first contradiction, by key or tensor, or what `store` says.
    pub fn load_into(
        gguf: &Gguf,
        bytes: &[u8],
        store: &mut dyn PackedStore,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Encoder>, LoadError> {
        let config = EncoderConfig::from_gguf(gguf)?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let mut loader = Loader::new(gguf, bytes, store, progress);
        let weights = weights(&mut loader, gguf, &config, &tokenizer)?;
        loader.finish(ARCHITECTURE)?;
        let name = gguf.name().unwrap_or_default().to_owned();
        Ok(Arc::new(Encoder { config, tokenizer: Arc::new(tokenizer), name, weights }))
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The tokenizer in the file.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// `general.name` of the file, possibly empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Values of a text's vector.
    pub fn dimensions(&self) -> usize {
        self.config.width
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }
}

fn weights(
    loader: &mut Loader<'_>,
    gguf: &Gguf,
    config: &EncoderConfig,
    tokenizer: &Tokenizer,
) -> Result<Weights, LoadError> {
    let width = config.width;
    let rows = |name: &str, max: u32| {
        let tensor = gguf.tensor(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })?;
        let rows = tensor.dims.get(1).copied().unwrap_or(1);
        // A table that is too large fails as one of the wrong shape.
        Ok::<_, LoadError>(rows.min(u64::from(max)) as usize)
    };
    let vocab = rows("token_embd.weight", limits::VOCAB)?;
    if tokenizer.vocab_size() as usize != vocab {
        return Err(LoadError::VocabMismatch { tokenizer: tokenizer.vocab_size(), rows: vocab });
    }
    let types = loader.matrix("token_types.weight", rows("token_types.weight", limits::VOCAB)?, width)?;
    let mut type_embd = vec![0.0; width];
    types.row_f32(0, &mut type_embd);
    Ok(Weights {
        token_embd: loader.matrix("token_embd.weight", vocab, width)?,
        position_embd: loader.matrix("position_embd.weight", config.positions, width)?,
        type_embd,
        embd_norm: norm(loader, "token_embd_norm", width)?,
        layers: (0..config.n_layers).map(|i| layer(loader, config, i)).collect::<Result<_, _>>()?,
    })
}

fn layer(loader: &mut Loader<'_>, config: &EncoderConfig, i: usize) -> Result<Layer, LoadError> {
    let (width, ffn) = (config.width, config.feed_forward);
    let name = |part: &str| format!("blk.{i}.{part}.weight");
    let bias = |part: &str| format!("blk.{i}.{part}.bias");
    let parts = ["attn_q", "attn_k", "attn_v"];
    let biases = parts.map(|part| loader.vector(&bias(part), width)).into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Layer {
        qkv: loader.stack(&parts.map(|part| (name(part), width)), width)?,
        qkv_bias: biases.concat(),
        attn_output: loader.matrix(&name("attn_output"), width, width)?,
        attn_output_bias: loader.vector(&bias("attn_output"), width)?,
        attn_norm: norm(loader, &format!("blk.{i}.attn_output_norm"), width)?,
        ffn_up: loader.matrix(&name("ffn_up"), ffn, width)?,
        ffn_up_bias: loader.vector(&bias("ffn_up"), ffn)?,
        ffn_down: loader.matrix(&name("ffn_down"), width, ffn)?,
        ffn_down_bias: loader.vector(&bias("ffn_down"), width)?,
        ffn_norm: norm(loader, &format!("blk.{i}.layer_output_norm"), width)?,
    })
}

fn norm(loader: &mut Loader<'_>, name: &str, width: usize) -> Result<Norm, LoadError> {
    Ok(Norm {
        weight: loader.vector(&format!("{name}.weight"), width)?,
        bias: loader.vector(&format!("{name}.bias"), width)?,
    })
}
