"""Byte-level BPE with the GPT-2 pre-tokenizer, trained on the generated text and committed beside the model."""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus

N_VOCAB = 2048
N_DOCUMENTS = 40_000
SPECIALS = [corpus.PAD, corpus.USER, corpus.ASSISTANT, corpus.SYSTEM, corpus.END]
PAD_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID, END_ID = range(5)
PATH = Path(__file__).resolve().parent.parent / "assay-tiny" / "tokenizer.json"


def train(seed: int) -> Tokenizer:
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (corpus.document(rng) for _ in range(N_DOCUMENTS)),
        trainers.BpeTrainer(vocab_size=N_VOCAB, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    assert tokenizer.get_vocab_size() == N_VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def load() -> Tokenizer:
    return Tokenizer.from_file(str(PATH))


if __name__ == "__main__":
    train(seed=1).save(str(PATH))
    print(f"wrote {PATH}")
