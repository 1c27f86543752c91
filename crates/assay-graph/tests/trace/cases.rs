//! Small models, their traces, and what is asked of them.

use std::sync::Arc;

use assay_gguf::Gguf;
use assay_graph::{Lie, Trace, TraceOptions, TracedModel, greedy};
use assay_testkit::models::{Family, Format, TinyLlama, tiny_llama};

pub const FORMATS: [Format; 8] =
    [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K];

/// One model of each family, the formats taking turns, and then the other formats with one family.
pub fn models() -> Vec<TinyLlama> {
    let families = Family::ALL.into_iter().zip(FORMATS.iter().copied().cycle().skip(3));
    let formats = FORMATS.into_iter().map(|format| (Family::Llama { scaled: false }, format));
    families.chain(formats).map(|(family, format)| model(family, format)).collect()
}

pub fn model(family: Family, format: Format) -> TinyLlama {
    // Blocks of K formats are as wide as these models are.
    let wide = matches!(format, Format::Q4K | Format::Q5K | Format::Q6K);
    // Heads of some families are wider than their share: 4 * (48 + 16) = 256.
    let (d_model, heads) = match (wide, family) {
        (false, _) => (64, 4),
        (true, Family::Qwen3 | Family::Gemma | Family::Gemma2 | Family::Gemma3) => (256, 16),
        (true, _) => (256, 4),
    };
    let (ffn, context) = (256, 1024);
    TinyLlama {
        family,
        format,
        d_model,
        heads,
        ffn,
        context,
        layers: 2,
        kv_heads: 2,
        vocab: 300,
        ..TinyLlama::default()
    }
}

pub fn file(model: TinyLlama) -> (Gguf, Arc<Vec<u8>>) {
    let bytes = tiny_llama(model);
    (Gguf::parse(&bytes).unwrap(), Arc::new(bytes))
}

pub fn traced(model: TinyLlama) -> Arc<TracedModel> {
    let (gguf, bytes) = file(model);
    Arc::new(TracedModel::new(&gguf, bytes).unwrap())
}

/// Tokens without meaning.
pub fn tokens(n: usize, vocab: u32) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect()
}

pub fn trace(model: &Arc<TracedModel>, tokens: &[u32], input: u32, lie: Option<Lie>) -> Trace {
    let options = TraceOptions { threads: 2, lie };
    Trace::compute(Arc::clone(model), tokens.to_vec(), input, options, &mut greedy, &mut |_, _| {}).unwrap()
}
