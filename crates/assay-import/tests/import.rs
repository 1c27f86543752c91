//! Folders as they are published: what comes out runs and gives the right vectors; what is missing, unknown or
//! contradicts itself is named with file and key.

mod support;

use assay_engine::encoder::{Embedder, Encoder, TooLong};
use assay_gguf::{GgmlType, Gguf};
use assay_import::{Options, Pooling, Precision, plan};
use assay_testkit::encoders::{TinyBert, tiny_bert};
use serde_json::{Value, json};
use support::Files;

fn import(files: &Files, options: Options) -> Result<Vec<u8>, String> {
    let folder = files.folder();
    plan(&folder, options).and_then(|import| import.to_bytes()).map_err(|error| error.to_string())
}

const F32: Options = Options { precision: Precision::F32, pooling: None };

#[test]
fn an_imported_encoder_gives_the_vectors_of_the_same_weights() {
    let texts = ["The cat and the hat.", "dog 42, house", "x".repeat(120).as_str(), "cat ".repeat(40).as_str()]
        .map(str::to_owned);
    let vectors = |bytes: &[u8]| {
        let encoder = Encoder::load(&Gguf::parse(bytes).unwrap(), bytes).unwrap();
        Embedder::new(1).embed_texts(&encoder, &texts, TooLong::Refuse).unwrap()
    };
    for pooling in [1, 2] {
        let model = TinyBert { pooling, ..TinyBert::default() };
        let expect = vectors(&tiny_bert(model));
        assert_eq!(vectors(&import(&Files::bert(model), F32).unwrap()), expect);
        // A vocab.txt says the same as the tokenizer.json.
        let mut files = Files::bert(model);
        files.remove("tokenizer.json");
        assert_eq!(vectors(&import(&files, F32).unwrap()), expect);
        // Weights in two files, as heads of pre-training and with the old names of norms.
        let mut files = Files::bert(model);
        files.split_weights();
        files.rename_tensors(|name| {
            format!(
                "bert.{}",
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            )
        });
        assert_eq!(vectors(&import(&files, F32).unwrap()), expect);
    }
}

#[test]
fn formats_are_as_asked_where_rows_are_whole_blocks() {
    let check = |precision: &str, width: u32, expect: GgmlType| {
        let precision: Precision = precision.parse().unwrap();
        let model = TinyBert { width, heads: 2, layers: 1, ..TinyBert::default() };
        let bytes = import(&Files::bert(model), Options { precision, pooling: None }).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        for tensor in gguf.tensors() {
            let matrix =
                tensor.name == "token_embd.weight" || (tensor.name.starts_with("blk.") && tensor.dims.len() == 2);
            let expect = match () {
                () if !matrix => GgmlType::F32,
                () if tensor.dims[0] == u64::from(width) => expect,
                () => precision_of_ffn(precision),
            };
            assert_eq!(tensor.ty, expect, "{precision} {}", tensor.name);
        }
        assert!(Encoder::load(&gguf, &bytes).is_ok());
    };
    // The feed-forward width is 128: no whole super-block.
    fn precision_of_ffn(precision: Precision) -> GgmlType {
        match precision {
            Precision::F32 => GgmlType::F32,
            Precision::F16 => GgmlType::F16,
            Precision::BF16 => GgmlType::BF16,
            Precision::Q4_0 => GgmlType::Q4_0,
            _ => GgmlType::Q8_0,
        }
    }
    check("f32", 64, GgmlType::F32);
    check("F16", 64, GgmlType::F16);
    check("bf16", 64, GgmlType::BF16);
    check("q8_0", 64, GgmlType::Q8_0);
    check("q4_0", 64, GgmlType::Q4_0);
    check("q6_k", 256, GgmlType::Q6_K);
    check("q4_k", 64, GgmlType::Q8_0);
    check("q8_0", 48, GgmlType::F16);
    assert_eq!("q9".parse::<Precision>().unwrap_err().to_string().split(';').next(), Some("unknown format \"q9\""));
}

#[test]
fn metadata_says_what_the_folder_says() {
    let mut files = Files::bert(TinyBert::default());
    files.set("sentence_bert_config.json", |json| json["max_seq_length"] = json!(77));
    files.set("tokenizer.json", |json| {
        json["normalizer"]["lowercase"] = json!(false);
    });
    let bytes = import(&files, F32).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let encoder = Encoder::load(&gguf, &bytes).unwrap();
    assert_eq!((encoder.name(), encoder.config().input_length, encoder.config().positions), ("tiny", 77, 640));
    assert_eq!(gguf.u32("general.file_type").unwrap(), Some(0));
    assert_eq!(gguf.bool("tokenizer.ggml.normalizer.strip_accents").unwrap(), Some(false));
    assert_eq!(gguf.u32("tokenizer.ggml.mask_token_id").unwrap(), Some(4));
}

#[test]
fn what_is_not_supported_is_named_with_file_and_key() {
    let check = |change: &dyn Fn(&mut Files), expect: &str| {
        let mut files = Files::bert(TinyBert { layers: 1, ..TinyBert::default() });
        change(&mut files);
        let error = import(&files, F32).unwrap_err();
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    let set = |file: &'static str, key: &'static str, value: Value| {
        move |files: &mut Files| files.set(file, |json| *json.pointer_mut(key).expect(key) = value.clone())
    };
    let add = |file: &'static str, key: &'static str, value: Value| {
        move |files: &mut Files| files.set(file, |json| json[key] = value.clone())
    };
    let remove = |file: &'static str| move |files: &mut Files| files.remove(file);
    check(&remove("config.json"), "config.json is missing");
    check(&remove("model.safetensors"), "model.safetensors is missing (weights as pytorch_model.bin");
    check(&remove("1_Pooling/config.json"), "1_Pooling/config.json is missing (it says how");
    let no_tokenizer = |files: &mut Files| {
        files.remove("tokenizer.json");
        files.remove("vocab.txt");
    };
    check(&no_tokenizer, "tokenizer.json is missing, and so is vocab.txt");
    check(
        &set("config.json", "/model_type", json!("t5")),
        "config.json: key model_type is \"t5\"; this release imports",
    );
    check(&set("config.json", "/hidden_act", json!("relu")), "hidden_act is \"relu\"; only \"gelu\" is supported");
    check(&set("config.json", "/hidden_size", json!("64")), "config.json: key hidden_size is \"64\"; a whole number");
    check(&set("config.json", "/hidden_size", json!(-1)), "config.json: key hidden_size is -1");
    check(&set("config.json", "/hidden_size", json!(null)), "config.json: key hidden_size is missing");
    check(
        &set("config.json", "/num_hidden_layers", json!(2)),
        "tensor encoder.layer.1.attention.self.query.weight is in none of model.safetensors",
    );
    check(&set("config.json", "/num_hidden_layers", json!(0)), "is not part of a plain BERT encoder of 0 layers");
    check(
        &set("config.json", "/vocab_size", json!(2_000_000_000)),
        "tensor embeddings.word_embeddings.weight has shape [85, 64], config.json asks for [2000000000, 64]",
    );
    check(
        &add("config.json", "position_embedding_type", json!("relative_key")),
        "key position_embedding_type is \"relative_key\"",
    );
    check(
        &set("modules.json", "/1/type", json!("sentence_transformers.models.Dense")),
        "modules.json: key 1.type is \"sentence_transformers.models.Dense\"",
    );
    check(&add("1_Pooling/config.json", "pooling_mode_cls_token", json!(true)), "one way of pooling at a time");
    // The second way by name, whose control character is not repeated.
    check(
        &add("1_Pooling/config.json", "pooling_mode_mean\u{7f}", json!(true)),
        "key pooling_mode_mean\u{fffd} is true",
    );
    check(
        &set("1_Pooling/config.json", "/pooling_mode_mean_tokens", json!(false)),
        "key pooling_mode is missing; mean and cls",
    );
    check(
        &set("tokenizer.json", "/model/type", json!("BPE")),
        "tokenizer.json: key model.type is \"BPE\"; only \"WordPiece\"",
    );
    check(&set("tokenizer.json", "/normalizer/type", json!("NFKC")), "key normalizer.type is \"NFKC\"");
    check(&set("tokenizer.json", "/normalizer/clean_text", json!(false)), "key normalizer.clean_text is false");
    check(
        &set("tokenizer.json", "/model/vocab", json!({"a": 85})),
        "the id of \"a\" is not below vocab_size of config.json, 85",
    );
    check(&set("tokenizer.json", "/model/vocab", json!({"a": 1, "b": 1})), "have the same id, 1");
    check(&set("tokenizer.json", "/model/vocab", json!([])), "key model.vocab is []; an object");
    check(
        &set("tokenizer_config.json", "/cls_token", json!("<s>")),
        "tokenizer_config.json: key cls_token is \"<s>\"; no token",
    );
    check(&set("sentence_bert_config.json", "/max_seq_length", json!(1)), "key max_seq_length is 1; at least 2");
    let broken = |files: &mut Files| files.put("config.json", b"{\"a\": ".to_vec());
    check(&broken, "config.json: EOF while parsing a value at line 1 column 6");
    let latin = |files: &mut Files| {
        files.remove("tokenizer.json");
        files.put("vocab.txt", b"[PAD]\nabc\xff".to_vec());
    };
    check(&latin, "vocab.txt: key its lines is not UTF-8 at byte 9");
    let nan = |files: &mut Files| files.edit_tensor("encoder.layer.0.output.dense.bias", |values| values[3] = f32::NAN);
    check(
        &nan,
        "model.safetensors: tensor encoder.layer.0.output.dense.bias has a value that is not finite (NaN at 3)",
    );
    let extra = |files: &mut Files| files.rename_tensors(|name| name.replace("position_ids", "adapter"));
    check(&extra, "tensor embeddings.adapter is not part of a plain BERT encoder of 1 layers");
}

#[test]
fn pooling_can_be_said_where_the_folder_does_not() {
    let mut files = Files::bert(TinyBert::default());
    files.remove("1_Pooling/config.json");
    files.remove("modules.json");
    for (pooling, expect) in [(Pooling::Mean, 1), (Pooling::Cls, 2)] {
        let bytes = import(&files, Options { pooling: Some(pooling), ..F32 }).unwrap();
        assert_eq!(Gguf::parse(&bytes).unwrap().u32("bert.pooling_type").unwrap(), Some(expect));
    }
}
