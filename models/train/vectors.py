"""Writes tokenizer test vectors: text -> token ids, for assay-tiny's BPE and for a small SentencePiece vocabulary.

The ids come from llama.cpp. For the BPE they must equal those of the `tokenizers` package, for SentencePiece those of `sentencepiece`;
where the reference libraries differ this script fails rather than choosing.
"""

import argparse
import io
import json
import random
from pathlib import Path

import gguf
import sentencepiece
from llama_cpp import Llama

import corpus
import tokenizer

N_SPM_VOCAB = 512
TEXTS = [
    "", " ", "  ", "   a", "\n", "\n\n", "\t", " \n ", "a\n\nb\n", "trailing   ", "hello", "Hello, world!", " Hello", "What is the capital of France?",
    "I'm sure you'll say it's what they've got, we'd go, don't they're?", "I'M SURE YOU'LL", "12 + 7 = 19.", "1234567890", "3.14159", "a1b2c3 4d",
    "naïve café déjà vu", "Ünïcödé ÆØÅ", "Привет, мир", "日本語のテキスト", "한국어 텍스트", "العربية", "हिन्दी में", "ไทย", "emoji 😀🎉👩‍👩‍👧‍👦 end", "x²+y³=½", "Ⅷ ٣٤ 五",
    "non\u00a0breaking\u2003space\u200bzero", "\u3000wide", "tab\tand  two   three    four", "line\r\nreturn\r", "a.b,c;d:e!f?g", "!!!???...---",
    "def f(x):\n    return x**2  # comment", "{\"key\": [1, 2.5, null]}", "https://example.org/a?b=c&d=%20", "snake_case camelCase kebab-case", "''' \"\" `",
    "e\u0301 combining", "\ufeffbom", "zero\u0000byte", "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\U0001f1eb\U0001f1f7 flag",
    "Once upon a time there was a kind child named Lily.", " 's 't 're 've 'm 'll 'd", "<|user|>Hi<|assistant|>Hello!<|end|>",
    "a <|end|> b<|pad|>", "<|system|>You are a helpful assistant.<|user|>What is 2 + 2?<|assistant|>", "<|user|", "<| end |>", "<s>x</s><unk><0x41>",
]


def open_vocabulary(path: Path) -> Llama:
    return Llama(str(path), vocab_only=True, verbose=False)


def llama_ids(llama: Llama, text: str, parse_special: bool) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=False, special=parse_special)


def write_json(path: Path, header: dict, cases: list[dict]) -> None:
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    path.write_text(json.dumps(header)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


def bpe_vectors(model: Path, out: Path) -> None:
    llama, reference = open_vocabulary(model), tokenizer.load()
    cases = []
    for text in TEXTS:
        for parse_special in (True, False):
            ids = llama_ids(llama, text, parse_special)
            if parse_special:
                assert ids == reference.encode(text).ids, (text, ids, reference.encode(text).ids)
            cases.append({"text": text, "parse_special": parse_special, "ids": ids})
    write_json(out, {"file": model.name, "add_bos": False}, cases)


def write_spm_vocabulary(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Trains on the model's own text, with byte fallback, the way Llama 2's vocabulary was made; a GGUF file without tensors."""
    rng, trained = random.Random(1), io.BytesIO()
    lines = [line for _ in range(4000) for line in (corpus.exchange(rng)[1] + " " + corpus.exchange(rng)[0]).splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, model_type="bpe", vocab_size=N_SPM_VOCAB, byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, num_threads=1, minloglevel=2)
    spm = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())

    def token_type(i: int) -> gguf.TokenType:
        if spm.is_unknown(i):
            return gguf.TokenType.UNKNOWN
        if spm.is_control(i):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if spm.is_byte(i) else gguf.TokenType.NORMAL

    ids = range(spm.get_piece_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("spm-vocab")
    writer.add_license("apache-2.0")
    writer.add_vocab_size(N_SPM_VOCAB)
    writer.add_context_length(1024)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([spm.id_to_piece(i) for i in ids])
    writer.add_token_scores([spm.get_score(i) for i in ids])
    writer.add_token_types([token_type(i) for i in ids])
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return spm


def spm_vectors(vocabulary: Path, out: Path) -> None:
    reference = write_spm_vocabulary(vocabulary)
    print(f"{vocabulary.name}: {vocabulary.stat().st_size} bytes")
    llama = open_vocabulary(vocabulary)
    cases = []
    for text in TEXTS:
        ids = llama_ids(llama, text, parse_special=False)
        assert ids == reference.encode(text), (text, ids, reference.encode(text))
        cases.append({"text": text, "parse_special": False, "ids": ids})
        if "<" in text:
            cases.append({"text": text, "parse_special": True, "ids": llama_ids(llama, text, parse_special=True)})
    write_json(out, {"file": vocabulary.name, "add_bos": False}, cases)


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, default=tokenizer.PATH.parent / "assay-tiny-q8_0.gguf")
    args.add_argument("--out", type=Path, default=tokenizer.PATH.parent / "vectors")
    args = args.parse_args()
    args.out.mkdir(exist_ok=True)
    bpe_vectors(args.model, args.out / "bpe.json")
    spm_vectors(args.out / "spm-vocab.gguf", args.out / "spm.json")
