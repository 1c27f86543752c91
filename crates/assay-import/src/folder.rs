//! The files of a model folder, and the tensors in those of them that hold weights.

use std::collections::BTreeMap;

use assay_num::f16;

use crate::ImportError;
use crate::json::Json;
use crate::safetensors::{Dtype, SafeTensor, Safetensors};

/// Files by their path in the folder, with `/` between parts.
#[derive(Debug, Default)]
pub struct Folder<'a> {
    name: String,
    files: BTreeMap<String, &'a [u8]>,
}

impl<'a> Folder<'a> {
    /// Every file that an import may look at, weights aside.
    pub const TEXT_FILES: &'static [&'static str] = &[
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "generation_config.json",
        "chat_template.jinja",
    ];

    /// An empty folder. `name` becomes the model's name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Folder { name: name.into(), files: BTreeMap::new() }
    }

    /// Adds a file; one whose name ends in `.safetensors` holds weights.
    pub fn add(&mut self, file: impl Into<String>, bytes: &'a [u8]) {
        self.files.insert(file.into(), bytes);
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn bytes(&self, file: &str) -> Option<&'a [u8]> {
        self.files.get(file).copied()
    }

    pub(crate) fn json(&self, file: &str) -> Result<Option<Json>, ImportError> {
        self.bytes(file).map(|bytes| Json::parse(file, bytes)).transpose()
    }

    pub(crate) fn weights(&self) -> Result<Weights<'a>, ImportError> {
        let mut files = Vec::new();
        for (file, bytes) in self.files.iter().filter(|(file, _)| file.ends_with(".safetensors")) {
            let parsed =
                Safetensors::parse(bytes).map_err(|source| ImportError::Safetensors { file: file.clone(), source })?;
            files.push(WeightFile { file: file.clone(), bytes, parsed });
        }
        if files.is_empty() {
            let hint = " (weights as pytorch_model.bin or ONNX are not read)";
            return Err(ImportError::MissingFile { file: "model.safetensors".to_owned(), hint });
        }
        Ok(Weights { files })
    }
}

/// The weights of a folder.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    files: Vec<WeightFile<'a>>,
}

#[derive(Debug)]
struct WeightFile<'a> {
    file: String,
    bytes: &'a [u8],
    parsed: Safetensors,
}

/// One tensor, of a type that widens to f32.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    file: String,
    name: String,
    dtype: Dtype,
    data: &'a [u8],
}

impl<'a> Weights<'a> {
    /// Every tensor's name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| file.parsed.tensors()).map(|tensor| tensor.name.as_str())
    }

    /// The tensor called `name`, of shape `shape`.
    pub fn tensor(&self, name: &str, shape: &[u64]) -> Result<Tensor<'a>, ImportError> {
        let (file, tensor) = self.find(name).ok_or_else(|| ImportError::MissingTensor {
            name: name.to_owned(),
            files: self.files.iter().map(|file| file.file.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let fail = |reason| ImportError::Tensor { file: file.file.clone(), name: name.to_owned(), reason };
        if tensor.shape != shape {
            return Err(fail(format!("has shape {:?}, config.json asks for {shape:?}", tensor.shape)));
        }
        if !matches!(tensor.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(fail(format!("has type {:?}; F64, F32, F16 and BF16 are read", tensor.dtype)));
        }
        let data = tensor.data(file.bytes).ok_or_else(|| fail("lies outside the file".to_owned()))?;
        Ok(Tensor { file: file.file.clone(), name: name.to_owned(), dtype: tensor.dtype, data })
    }

    fn find(&self, name: &str) -> Option<(&WeightFile<'a>, &SafeTensor)> {
        self.files.iter().find_map(|file| Some((file, file.parsed.tensor(name)?)))
    }
}

impl Tensor<'_> {
    /// Values `from..from + out.len()` as f32, F64 rounded to nearest.
    ///
    /// # Errors
    /// A value that is not finite as an f32.
    pub fn read(&self, from: usize, out: &mut [f32]) -> Result<(), ImportError> {
        match self.dtype {
            Dtype::F64 => copy(self.data, from, out, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F32 => copy(self.data, from, out, f32::from_le_bytes),
            Dtype::F16 => copy(self.data, from, out, |bytes| f16::to_f32(u16::from_le_bytes(bytes))),
            _ => copy(self.data, from, out, |bytes| f16::bf16_to_f32(u16::from_le_bytes(bytes))),
        }
        match out.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(ImportError::Tensor {
                file: self.file.clone(),
                name: self.name.clone(),
                reason: format!("has a value that is not finite ({} at {})", out[at], from + at),
            }),
        }
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64
    }
}

fn copy<const N: usize>(data: &[u8], from: usize, out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (values, _) = data.as_chunks::<N>();
    for (out, bytes) in out.iter_mut().zip(&values[from..]) {
        *out = read(*bytes);
    }
}
