"""Cuts that the PyPI package `tokenizers` makes in random text, for every expression in src/pretokenize/stages.rs.

    python pretokenize_vectors.py [TEXTS [SEED]] > vectors/pretokenize.json

The expressions are those of the published tokenizer.json files. Texts are drawn from the alphabets that the expressions
tell apart; no character is newer than Unicode 14, so that every library agrees on what it is.
"""

import json
import random
import re
import sys
import unicodedata
from pathlib import Path

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LARGE, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{LARGE}*{SMALL}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{LARGE}+{SMALL}*SUFFIX"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# DeepSeek's own list of letters with a case, as the table in the source has it.
STAGES = (Path(__file__).parent / "../src/pretokenize/stages.rs").read_text()
CASED = "".join(
    rf"\x{{{first}}}-\x{{{last}}}"
    for first, last in re.findall(r"\('\\u\{(\w+)\}', '\\u\{(\w+)\}'\)", STAGES[STAGES.index("const CASED") :])
)
# By the value of tokenizer.ggml.pre.
EXPRESSIONS = {
    "gpt-2": [GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}$+<=>^~|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
    "qwen35": [QWEN35],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{CASED}]+",
        r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
        r"\s+$",
        r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+", r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "tekken": [TEKKEN.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")],
    "gpt-4o": [TEKKEN.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")],
}

random.seed(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
KNOWN = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
ALPHABETS = [
    " ",
    " \t\n\r\v\f\u0085\u00a0\u2003\u2028\u3000",
    "\r\n",
    "'",
    ["'s", "'T", "'re", "'VE", "'m", "'ll", "'lL", "'d", "'x", "'ſ"],
    "abcxyz",
    "ABCXYZ",
    "0123456789",
    "!\"#$%&()*+,-./:;<=>?@[]^_`{|}~",
    "éßÀΩя\u0301\u0308\u0939\u0940ǅʰªºـ",
    "½²٣Ⅷ〇",
    "日本語かなカナ가힣ༀ、。！",
    "\u200b\u200d\ufeff\u00ad\x00\x01\x7f",
    ["😀", "👍🏽", "€", "±", "‘", "’", "…", "„", "\ufffd"],
    KNOWN,
]


def text():
    pieces = []
    for _ in range(random.randrange(1, 12)):
        alphabet = random.choice(ALPHABETS)
        pieces += random.choices(alphabet, k=random.choice([1, 1, 2, 3, 5]))
    return "".join(pieces)


def main():
    texts = [text() for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 150)]
    cuts = {}
    for name, expressions in EXPRESSIONS.items():
        cutter = Sequence([Split(Regex(expression), "isolated") for expression in expressions])
        # Where each word ends, in characters.
        cuts[name] = [[end for _, (_, end) in cutter.pre_tokenize_str(text)] for text in texts]
    lines = [f'{json.dumps(name)}: {json.dumps(ends, separators=(",", ":"))}' for name, ends in cuts.items()]
    print('{"texts": ' + json.dumps(texts) + ',\n"cuts": {' + ",\n".join(lines) + "}}")


main()
