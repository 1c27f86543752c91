//! The rotary position tables that a file asks for. One definition for the engine, which uses the tables, and the
//! manifest, which commits to them.

use crate::ggml::GgmlType;
use crate::gguf::{Gguf, GgufError, TensorInfo};
use assay_num::{RopeTable, RopeTableError};

/// Widest rotated part of a head, the widest that published models have; bounds the memory of the table.
const ROPE_DIMS_MAX: u32 = 256;

/// Why a file has no usable table.
#[derive(Debug, thiserror::Error)]
pub enum RopeError {
    /// A key is missing or has the wrong type, or `rope_freqs.weight` cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A value that makes no sense.
    #[error("{key} is {found}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is expected.
        reason: &'static str,
    },
    /// `rope_freqs.weight` is not one F32 per rotated pair.
    #[error("rope_freqs.weight is {ty} {dims:?}, expected F32 [{pairs}]")]
    Factors {
        /// Its format.
        ty: GgmlType,
        /// Its sizes.
        dims: Vec<u64>,
        /// Pairs of a head.
        pairs: u32,
    },
    /// The table's parameters are out of range.
    #[error(transparent)]
    Table(#[from] RopeTableError),
}

/// The tables of one model.
#[derive(Debug, Clone)]
pub struct RopeTables {
    /// Of the layers that see all positions.
    pub global: RopeTable,
    /// Of the layers with a sliding window, where theirs is another one.
    pub local: Option<RopeTable>,
}

impl RopeTables {
    /// The bytes whose hash stands for the tables in a manifest: [`RopeTable::hash_bytes`] of the global and then, if
    /// there is one, of the local table.
    pub fn hash_bytes(&self) -> Vec<u8> {
        let mut bytes = self.global.hash_bytes();
        bytes.extend(self.local.iter().flat_map(RopeTable::hash_bytes));
        bytes
    }
}

/// The tables of the first `min(context_length, positions_max)` positions of the model in `bytes`, parsed as `gguf`:
/// [`rope_table`], and for architecture "gemma3" with `.attention.sliding_window` above 0 a second one without scaling
/// and of base `.rope.freq_base_swa` (default 10000).
///
/// # Errors
/// [`RopeError`], by key.
pub fn rope_tables(gguf: &Gguf, bytes: &[u8], positions_max: u32) -> Result<RopeTables, RopeError> {
    let global = rope_table(gguf, bytes, positions_max)?;
    let architecture = gguf.architecture()?;
    let window = gguf.u32(&format!("{architecture}.attention.sliding_window"))?;
    if architecture != "gemma3" || window.unwrap_or(0) == 0 {
        return Ok(RopeTables { global, local: None });
    }
    let theta = gguf.f32(&format!("{architecture}.rope.freq_base_swa"))?.unwrap_or(10_000.0);
    let local = RopeTable::new(global.n_positions(), global.rope_dims(), f64::from(theta), None)?;
    Ok(RopeTables { global, local: Some(local) })
}

/// The table of the first `min(context_length, positions_max)` positions of the model in `bytes`, parsed as `gguf`.
///
/// Keys `{architecture}.rope.dimension_count` (default: the head width), `.rope.freq_base` (default 10000),
/// `.rope.scaling.type` `none` or `linear` with `.rope.scaling.factor`; tensor `rope_freqs.weight` divides the
/// frequency of each pair, the linear factor all of them: `freq_factors[i] = rope_freqs[i] * factor`, in f32.
///
/// # Errors
/// [`RopeError`], by key.
pub fn rope_table(gguf: &Gguf, bytes: &[u8], positions_max: u32) -> Result<RopeTable, RopeError> {
    let architecture = gguf.architecture()?;
    let key = |name: &str| format!("{architecture}.{name}");
    let dims = match gguf.u32(&key("rope.dimension_count"))? {
        Some(dims) => dims,
        None => head_dim(gguf, &key)?,
    };
    if dims == 0 || dims % 2 != 0 || dims > ROPE_DIMS_MAX {
        let key = key("rope.dimension_count");
        return Err(RopeError::Value { key, found: dims.to_string(), reason: "expected an even width of at most 256" });
    }
    let theta = gguf.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let factor = match gguf.str(&key("rope.scaling.type"))? {
        None | Some("none") => 1.0,
        Some("linear") => gguf.require::<f32>(&key("rope.scaling.factor"))?,
        Some(other) => {
            let (key, found) = (key("rope.scaling.type"), crate::parse::shown(other));
            return Err(RopeError::Value { key, found, reason: "expected none or linear" });
        }
    };
    let mut factors = match gguf.tensor("rope_freqs.weight") {
        Some(tensor) => stored_factors(gguf, bytes, tensor, dims / 2)?,
        None => vec![1.0; dims as usize / 2],
    };
    factors.iter_mut().for_each(|f| *f *= factor);
    let positions = gguf.context_length()?.min(positions_max);
    let factors = factors.iter().any(|&f| f != 1.0).then_some(factors.as_slice());
    Ok(RopeTable::new(positions as usize, dims as usize, f64::from(theta), factors)?)
}

fn head_dim(gguf: &Gguf, key: &dyn Fn(&str) -> String) -> Result<u32, RopeError> {
    if let Some(dim) = gguf.u32(&key("attention.key_length"))? {
        return Ok(dim);
    }
    let width: u32 = gguf.require(&key("embedding_length"))?;
    let heads: u32 = gguf.require(&key("attention.head_count"))?;
    match width.checked_rem(heads) {
        Some(0) => Ok(width / heads),
        _ => Err(RopeError::Value {
            key: key("attention.head_count"),
            found: heads.to_string(),
            reason: "expected a divisor of the embedding length",
        }),
    }
}

fn stored_factors(gguf: &Gguf, bytes: &[u8], tensor: &TensorInfo, pairs: u32) -> Result<Vec<f32>, RopeError> {
    if tensor.ty != GgmlType::F32 || tensor.dims.iter().product::<u64>() != u64::from(pairs) {
        return Err(RopeError::Factors { ty: tensor.ty, dims: tensor.dims.clone(), pairs });
    }
    let data = gguf.tensor_bytes(bytes, tensor)?;
    Ok(data.as_chunks::<4>().0.iter().map(|&v| f32::from_le_bytes(v)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::GgufWriter;

    fn file(change: impl FnOnce(&mut GgufWriter)) -> Result<RopeTable, RopeError> {
        let mut writer = GgufWriter::new();
        writer
            .set("general.architecture", "llama")
            .set("llama.context_length", 64_u32)
            .set("llama.embedding_length", 32_u32)
            .set("llama.attention.head_count", 4_u32);
        change(&mut writer);
        let bytes = writer.to_bytes(|tensor| vec![2.0; tensor.count() as usize]).unwrap();
        rope_table(&Gguf::parse(&bytes).unwrap(), &bytes, 16)
    }

    fn expect(factors: Option<&[f32]>, dims: usize, theta: f64) -> Vec<u8> {
        RopeTable::new(16, dims, theta, factors).unwrap().hash_bytes()
    }

    #[test]
    fn keys_choose_the_table() {
        let check =
            |change: fn(&mut GgufWriter), expect: Vec<u8>| assert!(file(change).unwrap().hash_bytes() == expect);
        check(|_| (), expect(None, 8, 10_000.0));
        check(
            |w| {
                w.set("llama.rope.freq_base", 5e5_f32);
            },
            expect(None, 8, 5e5),
        );
        check(
            |w| {
                w.set("llama.rope.dimension_count", 4_u32);
            },
            expect(None, 4, 10_000.0),
        );
        check(
            |w| {
                w.set("llama.attention.key_length", 16_u32);
            },
            expect(None, 16, 10_000.0),
        );
        let linear = |w: &mut GgufWriter| {
            w.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4.0_f32);
        };
        check(linear, expect(Some(&[4.0; 4]), 8, 10_000.0));
        let both = |w: &mut GgufWriter| {
            w.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4.0_f32);
            w.tensor("rope_freqs.weight", &[4], GgmlType::F32).unwrap();
        };
        check(both, expect(Some(&[8.0; 4]), 8, 10_000.0));
    }

    #[test]
    fn gemma3_with_a_window_has_a_second_table() {
        let tables = |window: Option<u32>, base: Option<f32>| {
            let mut writer = GgufWriter::new();
            writer
                .set("general.architecture", "gemma3")
                .set("gemma3.context_length", 64_u32)
                .set("gemma3.attention.key_length", 8_u32)
                .set("gemma3.rope.freq_base", 1e6_f32)
                .set("gemma3.rope.scaling.type", "linear")
                .set("gemma3.rope.scaling.factor", 8.0_f32);
            window.map(|window| writer.set("gemma3.attention.sliding_window", window).tensors().len());
            base.map(|base| writer.set("gemma3.rope.freq_base_swa", base).tensors().len());
            let bytes = writer.to_bytes(|_| vec![]).unwrap();
            rope_tables(&Gguf::parse(&bytes).unwrap(), &bytes, 16)
        };
        let global = expect(Some(&[8.0; 4]), 8, 1e6);
        assert!(tables(None, None).unwrap().hash_bytes() == global);
        assert!(tables(Some(0), Some(5e4)).unwrap().hash_bytes() == global);
        let both = |theta| [global.clone(), expect(None, 8, theta)].concat();
        assert!(tables(Some(512), None).unwrap().hash_bytes() == both(10_000.0));
        assert!(tables(Some(512), Some(5e4)).unwrap().hash_bytes() == both(5e4));
        assert!(tables(Some(512), Some(-1.0)).unwrap_err().to_string().contains("-1"));
    }

    #[test]
    fn contradictions_are_named() {
        let check = |change: fn(&mut GgufWriter), expect: &str| {
            let error = file(change).unwrap_err().to_string();
            assert!(error.contains(expect), "{error} does not contain {expect}");
        };
        check(
            |w| {
                w.set("llama.rope.dimension_count", 0_u32);
            },
            "dimension_count is 0",
        );
        check(
            |w| {
                w.set("llama.rope.dimension_count", 7_u32);
            },
            "dimension_count is 7",
        );
        check(
            |w| {
                w.set("llama.rope.dimension_count", 258_u32);
            },
            "dimension_count is 258",
        );
        check(
            |w| {
                w.set("llama.attention.head_count", 0_u32);
            },
            "head_count is 0",
        );
        check(
            |w| {
                w.set("llama.rope.scaling.type", "yarn");
            },
            "scaling.type is yarn",
        );
        check(
            |w| {
                w.set("llama.rope.freq_base", -1.0_f32);
            },
            "-1",
        );
        check(
            |w| {
                w.tensor("rope_freqs.weight", &[3], GgmlType::F32).unwrap();
            },
            "expected F32 [4]",
        );
        check(
            |w| {
                w.tensor("rope_freqs.weight", &[4], GgmlType::F16).unwrap();
            },
            "rope_freqs.weight is F16",
        );
    }
}
