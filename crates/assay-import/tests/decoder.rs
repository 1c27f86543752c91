//! Folders of models that write text: what comes out is the file that the weights came from; what is unknown is named.

mod support;

use assay_engine::{Model, ModelConfig};
use assay_gguf::{Gguf, Tokenizer};
use assay_import::{Options, Precision, plan};
use assay_testkit::models::{Family, TinyLlama, tiny_llama};
use serde_json::{Value, json};
use support::Files;

const F32: Options = Options { precision: Precision::F32, pooling: None };

const FAMILIES: [Family; 3] = [Family::Llama { scaled: false }, Family::Qwen2, Family::Qwen3];

fn import(files: &Files) -> Result<Vec<u8>, String> {
    let folder = files.folder();
    plan(&folder, F32).and_then(|import| import.to_bytes()).map_err(|error| error.to_string())
}

fn tensors(bytes: &[u8]) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    let gguf = Gguf::parse(bytes).unwrap();
    let data = |info| gguf.tensor_bytes(bytes, info).unwrap().to_vec();
    let mut tensors: Vec<_> =
        gguf.tensors().iter().map(|info| (info.name.clone(), info.dims.clone(), data(info))).collect();
    tensors.sort();
    tensors
}

#[test]
fn what_comes_out_is_the_file_that_the_weights_came_from() {
    for family in FAMILIES {
        let model = TinyLlama { family, vocab: 700, ..TinyLlama::default() };
        let (expect, found) = (tiny_llama(model), import(&Files::decoder(model)).unwrap());
        assert_eq!(tensors(&found), tensors(&expect), "{family:?}");
        let (expect, found_gguf) = (Gguf::parse(&expect).unwrap(), Gguf::parse(&found).unwrap());
        let config = |gguf| ModelConfig::from_gguf(gguf, 700).unwrap();
        assert_eq!(config(&found_gguf), config(&expect), "{family:?}");
        let keys = |gguf: &Gguf| {
            let keys = gguf.metadata().filter(|(key, _)| key.starts_with("tokenizer."));
            let mut keys: Vec<String> = keys.map(|(key, value)| format!("{key}: {value:?}")).collect();
            keys.retain(|key| !key.starts_with("tokenizer.ggml.add_eos_token: Bool(false)"));
            keys
        };
        assert_eq!(keys(&found_gguf), keys(&expect), "{family:?}");
        let encode = |gguf| Tokenizer::from_gguf(gguf).unwrap().encode("the cat, 42 <|end|>\n", true, true);
        assert_eq!(encode(&found_gguf), encode(&expect), "{family:?}");
        Model::load(&found_gguf, &found).unwrap();
    }
}

/// Tied weights, old and new ways to say the rotation, weights in two files, a base without a bos of its own.
#[test]
fn ways_to_publish_the_same() {
    let model = TinyLlama::default();
    let changed = |change: &dyn Fn(&mut Files)| {
        let mut files = Files::decoder(model);
        change(&mut files);
        let bytes = import(&files).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        Model::load(&gguf, &bytes).unwrap();
        (bytes, gguf)
    };
    let config = |files: &mut Files, change: &dyn Fn(&mut Value)| files.set("config.json", |config| change(config));
    let (plain, _) = changed(&|_| ());
    assert_eq!(tensors(&changed(&Files::split_weights).0), tensors(&plain));
    // A copy of what is tied is left out.
    let (tied, gguf) = changed(&|files| config(files, &|config| config["tie_word_embeddings"] = json!(true)));
    assert!(gguf.tensor("output.weight").is_none());
    assert_eq!(tensors(&tied).len() + 1, tensors(&plain).len());
    let (_, gguf) = changed(&|files| {
        config(files, &|config| {
            config["rope_theta"] = json!(null);
            config["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0});
        });
    });
    assert_eq!(gguf.f32("llama.rope.freq_base").unwrap(), Some(5e5));
    assert_eq!(gguf.f32("llama.rope.scaling.factor").unwrap(), Some(4.0));
    let (bytes, gguf) = changed(&|files| {
        config(files, &|config| {
            config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        });
    });
    // Waves of pairs 0 to 7 have 6.3 (unscaled below 64 / 4), 19.9 (in between), 62.8 and more (above 64) positions.
    let factors = gguf.tensor_bytes(&bytes, gguf.tensor("rope_freqs.weight").unwrap()).unwrap();
    let factors: Vec<f32> = factors.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(factors, [1.0, 1.293_975_8, 7.667_385, 8.0, 8.0, 8.0, 8.0, 8.0]);
    let (_, gguf) = changed(&|files| {
        files.set("tokenizer.json", |json| {
            let merges = json["model"]["merges"].as_array().unwrap().iter();
            let pairs = merges.map(|merge| json!(merge.as_str().unwrap().split(' ').collect::<Vec<_>>()));
            json["model"]["merges"] = pairs.collect();
            json["post_processor"] = json!({"type": "ByteLevel"});
        });
        files.set("config.json", |config| {
            config["model_type"] = json!("mistral");
            config["use_sliding_window"] = json!(null);
            config["sliding_window"] = json!(100);
        });
        files.remove("tokenizer_config.json");
    });
    assert_eq!(gguf.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    assert_eq!(ModelConfig::from_gguf(&gguf, 384).unwrap().context, 100);
}

#[test]
fn what_a_folder_lacks_or_contradicts_is_named() {
    let check = |file: &str, change: &dyn Fn(&mut Value), expect: &str| {
        let mut files = Files::decoder(TinyLlama::default());
        files.set(file, |json| change(json));
        let error = import(&files).expect_err(expect);
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    let config =
        |key: &str, value: Value, expect: &str| check("config.json", &|config| config[key] = value.clone(), expect);
    config("model_type", json!("mixtral"), "key model_type is \"mixtral\"");
    config("hidden_act", json!("gelu"), "key hidden_act is \"gelu\"; only \"silu\"");
    config("attention_bias", json!(true), "attention_bias");
    config("mlp_bias", json!(true), "mlp_bias");
    config("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5; only 1");
    config("quantization_config", json!({"bits": 4}), "quantization_config");
    config("layer_types", json!(["full_attention", "linear_attention"]), "layer_types");
    config("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "key rope_scaling.type is \"yarn\"");
    config("rope_scaling", json!({"rope_type": "longrope"}), "key rope_scaling.rope_type is \"longrope\"");
    config("rope_scaling", json!({"factor": 4.0}), "key rope_scaling.rope_type is missing");
    config("rope_scaling", json!({"type": "linear"}), "key rope_scaling.factor is missing");
    config("rope_scaling", json!({"type": "llama3", "factor": -8.0}), "key rope_scaling.factor is -8");
    config("hidden_size", json!(null), "key hidden_size is missing");
    config(
        "hidden_size",
        json!(128),
        "tensor model.embed_tokens.weight has shape [384, 64], config.json asks for [384, 128]",
    );
    config("head_dim", json!(0), "head_dim");
    config("head_dim", json!(1 << 20), "head_dim");
    config("num_attention_heads", json!(0), "num_attention_heads");
    config("num_hidden_layers", json!(3), "tensor model.layers.2.input_layernorm.weight is in none of");
    config("num_hidden_layers", json!(1), "tensor model.layers.1.");
    config("vocab_size", json!(385), "tensor model.embed_tokens.weight has shape");

    let tokenizer = |path: &str, value: Value, expect: &str| {
        check("tokenizer.json", &|json| *json.pointer_mut(path).unwrap() = value.clone(), expect);
    };
    tokenizer("/model/type", json!("Unigram"), "key model.type is \"Unigram\"");
    tokenizer("/model/byte_fallback", json!(true), "key model.byte_fallback is true");
    tokenizer("/model/dropout", json!(0.1), "key model.dropout");
    tokenizer("/model/ignore_merges", json!(true), "key model.ignore_merges is true");
    tokenizer("/model/merges/3", json!("abc"), "key model.merges.3 is \"abc\"");
    tokenizer("/model/vocab/t", json!(400), "the id of \"t\" is not below vocab_size of config.json, 384");
    tokenizer("/model/vocab/t", json!(0), "have the same id, 0");
    tokenizer("/added_tokens/0/id", json!(-1), "key added_tokens");
    tokenizer("/added_tokens/0/content", json!(null), "key added_tokens");
    tokenizer("/normalizer", json!({"type": "Lowercase"}), "key normalizer.type is \"Lowercase\"");
    tokenizer("/pre_tokenizer/add_prefix_space", json!(true), "key pre_tokenizer");
    tokenizer("/pre_tokenizer/type", json!("Whitespace"), "key pre_tokenizer");
    tokenizer("/post_processor/processors/1/type", json!("RobertaProcessing"), "key post_processor");
    tokenizer("/post_processor/processors/1/single/0/SpecialToken/id", json!("<|end|>"), "the bos_token is expected");
    check("tokenizer_config.json", &|config| config["bos_token"] = json!("<s>"), "key bos_token is \"<s>\"");

    let mut files = Files::decoder(TinyLlama::default());
    files.remove("tokenizer.json");
    let error = import(&files).unwrap_err();
    assert!(error.contains("tokenizer.json is missing (a SentencePiece tokenizer.model is not read)"), "{error}");
    let mut files = Files::decoder(TinyLlama::default());
    files.edit_tensor("model.norm.weight", |values| values[3] = f32::NAN);
    let error = import(&files).unwrap_err();
    assert!(error.contains("tensor model.norm.weight has a value that is not finite (NaN at 3)"), "{error}");
}

/// Expressions that published tokenizers have, by the name that GGUF has for them.
#[test]
fn words_are_cut_as_the_file_says() {
    let pre = |split: &str, ignores_merges: bool| {
        let mut files = Files::decoder(TinyLlama::default());
        files.set("tokenizer.json", |json| {
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]});
            json["model"]["ignore_merges"] = json!(ignores_merges);
            json["normalizer"] = json!({"type": "NFC"});
        });
        let bytes = import(&files)?;
        Ok::<_, String>(Gguf::parse(&bytes).unwrap().str("tokenizer.ggml.pre").unwrap().unwrap().to_owned())
    };
    let digits = |n: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    assert_eq!(pre(&digits("{1,3}"), true).unwrap(), "llama-bpe");
    assert_eq!(pre(&digits("{1,3}"), false).unwrap(), "dbrx");
    assert_eq!(pre(&digits(""), false).unwrap(), "qwen2");
    for (split, ignores_merges) in [(digits("{1,2}"), false), (digits(""), true)] {
        let error = pre(&split, ignores_merges).unwrap_err();
        assert!(error.contains("key pre_tokenizer is") && error.contains("Llama 3, Qwen 2"), "{error}");
    }
}
