//! Safetensors files, and folders of a published model around them.

use crate::limit::{bounded, printable};
use assay_gguf::Gguf;
use assay_import::{Folder, Options, Safetensors, plan};

/// Files of a folder are separated by this; the last one has the weights.
const SEPARATOR: u8 = 0xff;
/// In their order.
const FILES: &[&str] =
    &["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"];
/// What a plan may take per byte of its folder, and besides.
const GROWTH_MAX: usize = 64;
const SLACK: usize = 1 << 20;

pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((kind, data)) if kind % 2 == 0 => file(data),
        Some((_, data)) => folder(data),
        None => (),
    }
}

fn file(data: &[u8]) {
    let parsed = bounded("parsing", 2 * data.len() + (1 << 20), || Safetensors::parse(data));
    let tensors = match &parsed {
        Ok(parsed) => parsed.tensors(),
        Err(error) => return printable(error),
    };
    let mut ranges: Vec<(u64, u64)> = tensors.iter().map(|tensor| (tensor.start, tensor.end)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors overlap");
    for tensor in tensors {
        let bytes = tensor.data(data).expect("inside the file").len() as u64;
        assert_eq!(bytes, tensor.end - tensor.start);
        if let Some(size) = tensor.dtype.bytes() {
            assert_eq!(tensor.shape.iter().product::<u64>() * size, bytes);
        }
        assert_eq!(parsed.as_ref().ok().and_then(|parsed| parsed.tensor(&tensor.name)), Some(tensor));
    }
    assert!(tensors.windows(2).all(|pair| pair[0].name < pair[1].name), "names are sorted, each once");
}

fn folder(data: &[u8]) {
    let mut folder = Folder::new("x");
    let mut rest = data;
    for file in FILES {
        let Some(at) = rest.iter().position(|&byte| byte == SEPARATOR) else { break };
        if at > 0 {
            folder.add(*file, &rest[..at]);
        }
        rest = &rest[at + 1..];
    }
    folder.add("model.safetensors", rest);
    let bytes_max = GROWTH_MAX * data.len() + SLACK;
    match bounded("a plan", bytes_max, || plan(&folder, Options::default())) {
        Ok(import) => {
            if let Ok(bytes) = import.to_bytes() {
                let gguf = Gguf::parse(&bytes).expect("what is written can be read");
                assert_eq!(gguf.tensors().len(), import.n_tensors());
            }
        }
        Err(error) => printable(&error),
    }
}

/// A file of `header` and `data` bytes of data.
fn made(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |entry: &str, data| made(&format!(r#"{{"a":{entry}}}"#), data);
    let files = [
        made(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[],"data_offsets":[16,18]}}"#,
            18,
        ),
        one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#, 0),
        one(r#"{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,18446744073709551612]}"#, 0),
        one(r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#, 0),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4),
        one(r#"{"dtype":"X9","shape":[1],"data_offsets":[0,7]}"#, 7),
        one(r#"{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}"#, 1),
        made(
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
            6,
        ),
        made(
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
            2,
        ),
        made(r#"{"a":[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]}"#, 0),
        u64::MAX.to_le_bytes().to_vec(),
        (1_u64 << 40).to_le_bytes().to_vec(),
        made("{}", 3),
    ];
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| [&[0][..], file].concat()).collect();
    let texts = [
        r#"{"architectures":["BertModel"],"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":8,"max_position_embeddings":4,"vocab_size":5,"type_vocab_size":2,"layer_norm_eps":1e-12,"hidden_act":"gelu","position_embedding_type":"absolute"}"#,
        r###"{"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4}},"normalizer":{"type":"BertNormalizer","lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"}}"###,
        r#"{"do_lower_case":true,"cls_token":"[CLS]","sep_token":"[SEP]","tokenizer_class":"BertTokenizer"}"#,
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\na",
        r#"{"pooling_mode_mean_tokens":true}"#,
    ];
    for file in &files[..2] {
        let mut seed = vec![1];
        for text in texts {
            seed.extend_from_slice(text.as_bytes());
            seed.push(SEPARATOR);
        }
        seed.extend_from_slice(file);
        seeds.push(seed);
    }
    seeds
}
