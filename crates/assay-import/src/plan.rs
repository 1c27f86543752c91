//! What a GGUF file will hold, and the writing of it.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use assay_gguf::write::GgufWriter;
use assay_gguf::{GgmlType, quant};

use crate::ImportError;
use crate::bert;
use crate::decoder;
use crate::folder::{Folder, Tensor};

/// Values read at once: bounds memory to this or one row.
const VALUES_AT_ONCE: usize = 1 << 20;

/// What to make of a folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Format of the matrices.
    pub precision: Precision,
    /// How an encoder's vectors are made, where the folder does not say.
    pub pooling: Option<Pooling>,
}

/// Format of matrices; vectors and small tables are always F32. A matrix whose rows are no whole number of the format's
/// blocks is written as Q8_0, or if they are no multiple of 32 either, as F16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "ggml's names")]
pub enum Precision {
    F32,
    F16,
    BF16,
    #[default]
    Q8_0,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
}

/// A name that is no precision.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown format {0:?}; there are f32, f16, bf16, q8_0, q4_0, q4_k, q5_k and q6_k")]
pub struct UnknownPrecision(pub String);

/// How the rows of a text become its vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first of them.
    Cls,
}

/// A planned file: everything about it but its bytes.
#[derive(Debug)]
pub struct Import<'a> {
    writer: GgufWriter,
    /// One for each tensor of `writer`, in its order.
    sources: Vec<Source<'a>>,
    architecture: &'static str,
    precision: Precision,
}

#[derive(Debug)]
enum Source<'a> {
    Tensor(Tensor<'a>),
    /// A matrix with rows of `k` whose heads of `head_dim` rows are published as two halves that rotate together, and
    /// written pair by pair: row 2i is row i, row 2i + 1 is row head_dim / 2 + i.
    Rotated {
        tensor: Tensor<'a>,
        k: usize,
        head_dim: usize,
    },
    /// Made here.
    Values(Vec<f32>),
}

/// Reads what `folder` says and plans the file. Weights are not read yet.
///
/// # Errors
/// The first thing that is missing, contradicts itself or is not supported, by file and key.
pub fn plan<'a>(folder: &Folder<'a>, options: Options) -> Result<Import<'a>, ImportError> {
    const CONFIG: &str = "config.json";
    let missing = || ImportError::MissingFile { file: CONFIG.to_owned(), hint: "" };
    let config = folder.json(CONFIG)?.ok_or_else(missing)?;
    match config.str("model_type")? {
        Some("bert") => bert::plan(folder, &config, options),
        Some(name) if decoder::is_known(name) => decoder::plan(folder, &config, options),
        _ => Err(config.unexpected(
            "model_type",
            "this release imports \"llama\", \"mistral\", \"qwen2\", \"qwen3\" and \"bert\"",
        )),
    }
}

impl<'a> Import<'a> {
    pub(crate) fn new(architecture: &'static str, folder: &Folder<'_>, precision: Precision) -> Self {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", architecture).set("general.type", "model");
        if !folder.name().is_empty() {
            writer.set("general.name", folder.name());
        }
        if let Some(file_type) = precision.file_type() {
            writer.set("general.file_type", file_type);
        }
        if precision.is_quantized() {
            writer.set("general.quantization_version", 2_u32);
        }
        Import { writer, sources: Vec::new(), architecture, precision }
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<assay_gguf::Value>) {
        self.writer.set(key, value);
    }

    /// Adds a matrix `[rows, k]` in the chosen format.
    pub(crate) fn matrix(&mut self, name: &str, tensor: Tensor<'a>, rows: u64, k: u64) -> Result<(), ImportError> {
        self.writer.tensor(name, &[k, rows], self.precision.of_rows(k))?;
        self.sources.push(Source::Tensor(tensor));
        Ok(())
    }

    /// As [`Import::matrix`], the two halves of each head's rows made neighbours.
    pub(crate) fn rotated(
        &mut self,
        name: &str,
        tensor: Tensor<'a>,
        (rows, k): (u64, u64),
        head_dim: u64,
    ) -> Result<(), ImportError> {
        self.writer.tensor(name, &[k, rows], self.precision.of_rows(k))?;
        self.sources.push(Source::Rotated { tensor, k: k as usize, head_dim: head_dim as usize });
        Ok(())
    }

    /// Adds a vector that is in no file.
    pub(crate) fn values(&mut self, name: &str, values: Vec<f32>) -> Result<(), ImportError> {
        self.writer.tensor(name, &[values.len() as u64], GgmlType::F32)?;
        self.sources.push(Source::Values(values));
        Ok(())
    }

    /// Adds a vector or a small table, `dims` fastest-varying first, as F32.
    pub(crate) fn exact(&mut self, name: &str, tensor: Tensor<'a>, dims: &[u64]) -> Result<(), ImportError> {
        self.writer.tensor(name, dims, GgmlType::F32)?;
        self.sources.push(Source::Tensor(tensor));
        Ok(())
    }

    /// `general.architecture` of the file.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Tensors in the file.
    #[must_use]
    pub fn n_tensors(&self) -> usize {
        self.sources.len()
    }

    /// Writes the file. `progress(done, total)` is called with bytes of weights read.
    ///
    /// # Errors
    /// Those of `out`, and weights that are not finite.
    pub fn write<W: Write>(&self, out: &mut W, progress: &mut dyn FnMut(u64, u64)) -> Result<(), ImportError> {
        let total = self.sources.iter().map(Source::bytes).sum();
        let (mut done, mut failed) = (0, None);
        let mut sources = self.sources.iter();
        let (mut values, mut encoded) = (Vec::new(), Vec::new());
        let written = self.writer.write(out, |spec, sink| {
            // There is one for each tensor.
            let Some(source) = sources.next() else { return Ok(()) };
            // The writer refused dimensions that are 0 or overflow.
            let (row, count) = (spec.dims[0] as usize, spec.count() as usize);
            let at_once = (VALUES_AT_ONCE / row).max(1) * row;
            for from in (0..count).step_by(at_once) {
                values.resize(at_once.min(count - from), 0.0);
                if let Err(error) = source.read(from, &mut values) {
                    failed = Some(error);
                    return Err(std::io::Error::other("the weights cannot be read"));
                }
                encoded.clear();
                assert!(quant::encode(spec.ty, &values, &mut encoded), "whole rows of a format that is written");
                sink.write_all(&encoded)?;
            }
            done += source.bytes();
            progress(done, total);
            Ok(())
        });
        match (written, failed) {
            (_, Some(error)) => Err(error),
            (written, None) => Ok(written?),
        }
    }

    /// The whole file in memory.
    ///
    /// # Errors
    /// As [`Import::write`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, &mut |_, _| {})?;
        Ok(bytes)
    }
}

impl Source<'_> {
    fn read(&self, from: usize, out: &mut [f32]) -> Result<(), ImportError> {
        match self {
            Source::Tensor(tensor) => tensor.read(from, out),
            Source::Rotated { tensor, k, head_dim } => {
                for (row, out) in (from / k..).zip(out.chunks_exact_mut(*k)) {
                    let (head, place) = (row / head_dim, row % head_dim);
                    let published = head * head_dim + place % 2 * (head_dim / 2) + place / 2;
                    tensor.read(published * k, out)?;
                }
                Ok(())
            }
            Source::Values(values) => {
                out.copy_from_slice(&values[from..from + out.len()]);
                Ok(())
            }
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Source::Tensor(tensor) | Source::Rotated { tensor, .. } => tensor.bytes(),
            Source::Values(values) => size_of_val(&values[..]) as u64,
        }
    }
}

impl Precision {
    /// Every precision, with its name.
    pub const ALL: [(Precision, &'static str); 8] = [
        (Precision::F32, "f32"),
        (Precision::F16, "f16"),
        (Precision::BF16, "bf16"),
        (Precision::Q8_0, "q8_0"),
        (Precision::Q4_0, "q4_0"),
        (Precision::Q4K, "q4_k"),
        (Precision::Q5K, "q5_k"),
        (Precision::Q6K, "q6_k"),
    ];

    fn ggml(self) -> GgmlType {
        match self {
            Precision::F32 => GgmlType::F32,
            Precision::F16 => GgmlType::F16,
            Precision::BF16 => GgmlType::BF16,
            Precision::Q8_0 => GgmlType::Q8_0,
            Precision::Q4_0 => GgmlType::Q4_0,
            Precision::Q4K => GgmlType::Q4_K,
            Precision::Q5K => GgmlType::Q5_K,
            Precision::Q6K => GgmlType::Q6_K,
        }
    }

    /// The format of a matrix with rows of `k` values.
    fn of_rows(self, k: u64) -> GgmlType {
        let fits = |ty: &GgmlType| ty.block_len().is_some_and(|block| k.is_multiple_of(block));
        [self.ggml(), GgmlType::Q8_0].into_iter().find(fits).unwrap_or(GgmlType::F16)
    }

    fn is_quantized(self) -> bool {
        !matches!(self, Precision::F32 | Precision::F16 | Precision::BF16)
    }

    /// `enum llama_ftype` of llama.cpp, where it has a name for a file whose matrices are all of one format.
    fn file_type(self) -> Option<u32> {
        match self {
            Precision::F32 => Some(0),
            Precision::F16 => Some(1),
            Precision::Q4_0 => Some(2),
            Precision::Q8_0 => Some(7),
            Precision::Q6K => Some(18),
            Precision::BF16 => Some(32),
            Precision::Q4K | Precision::Q5K => None,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.into_iter().find(|(precision, _)| precision == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        let found = Self::ALL.into_iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
        found.map(|(precision, _)| precision).ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}
