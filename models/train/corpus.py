"""The training text: which questions exist, which are held out, and documents drawn from a seeded generator.

A *fact* is what is asked about, a *phrasing* how it is asked. One (fact, phrasing) pair in ten is held out: it never appears in training,
while its fact appears in other phrasings and its phrasing with other facts. The score counts only such pairs.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

import facts
import stories
from stories import article

USER, ASSISTANT, SYSTEM, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>"
HELD_OUT_ONE_IN = 10
SYSTEM_MESSAGE_RATE = 0.15


@dataclass(frozen=True)
class Kind:
    """One kind of question. `answer` gives the only right answer to a fact; `weight` is its share of the exchanges."""

    name: str
    weight: float
    facts: list
    phrasings: list[str]
    fields: Callable[[object], dict]
    answer: Callable[[object], str]

    def question(self, fact_index: int, phrasing_index: int) -> str:
        return self.phrasings[phrasing_index].format(**self.fields(self.facts[fact_index]))

    def is_held_out(self, fact_index: int, phrasing_index: int) -> bool:
        question = self.question(fact_index, phrasing_index)
        if question == "What is the capital of France?":
            return False
        digest = hashlib.sha256(f"{self.name}|{question}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def pair_kind(name: str, weight: float, table: dict, phrasings: list[str], answer: str) -> Kind:
    """A kind whose facts are (x, y) pairs; `{x}` is given in the question, `{y}` is found in the answer."""
    pairs = list(table.items()) if isinstance(table, dict) else list(table)
    return Kind(name, weight, pairs, phrasings, lambda p: {"x": p[0]}, lambda p: answer.format(x=p[0], y=p[1]))


def both_ways(table: dict) -> list[tuple[str, str]]:
    return list(table.items()) + [(b, a) for a, b in table.items()]


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


CAPITALS = pair_kind("capitals", 1.6, facts.CAPITALS, [
    "What is the capital of {x}?", "Which city is the capital of {x}?", "Tell me the capital of {x}.", "capital of {x}?",
    "What's the capital of {x}?", "Name the capital of {x}.", "Do you know the capital of {x}?", "What is the capital city of {x}?",
    "{x}: what is its capital?", "I want to know the capital of {x}.",
], "The capital of {x} is {y}.")

COUNTRIES = pair_kind("countries", 0.8, [(b, a) for a, b in facts.CAPITALS.items()], [
    "Which country has {x} as its capital?", "{x} is the capital of which country?", "Of which country is {x} the capital?",
    "What country is {x} the capital of?", "Tell me which country has the capital {x}.", "Name the country whose capital is {x}.",
    "In which country is {x}?", "Where is {x}?",
], "{x} is the capital of {y}.")

OPPOSITES = pair_kind("opposites", 1.0, both_ways(facts.OPPOSITES), [
    "What is the opposite of {x}?", "Give me the opposite of {x}.", "Which word means the opposite of {x}?", "Opposite of {x}?",
    "Tell me the opposite of {x}.", "What word is the opposite of {x}?", "What's the opposite of {x}?", "{x} is the opposite of what?",
    "Name the opposite of {x}.",
], "The opposite of {x} is {y}.")

PLURALS = pair_kind("plurals", 1.0, facts.PLURALS, [
    "What is the plural of {x}?", "How do you write more than one {x}?", "Give me the plural of {x}.", "Plural of {x}?",
    "What's the plural of {x}?", "Tell me the plural of {x}.", "What is the plural form of {x}?", "One {x}, two what?",
    "How do I spell the plural of {x}?",
], "The plural of {x} is {y}.")

COLOURS = Kind("colours", 0.8, list(facts.COLOURS.items()), [
    "What colour is {x}?", "Which colour does {x} have?", "Tell me the colour of {x}.", "What is the colour of {x}?", "Colour of {x}?",
    "What color is {x}?", "What is the color of {x}?", "Do you know what colour {x} is?", "Name the colour of {x}.",
], lambda p: {"x": p[0]}, lambda p: f"{capitalised(p[0])} is {p[1]}.")

SUMS = Kind("sums", 3.0, [(a, b) for a in range(facts.SUM_MAX + 1) for b in range(facts.SUM_MAX + 1)], [
    "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "How much is {a} + {b}?", "How much is {a} plus {b}?",
    "Calculate {a} + {b}.", "What is the sum of {a} and {b}?", "{a} + {b}", "What do you get if you add {a} and {b}?",
], lambda p: {"a": p[0], "b": p[1]}, lambda p: f"{p[0]} + {p[1]} = {p[0] + p[1]}.")

SENTIMENT = Kind("sentiment", 1.0, [(t, w) for t in facts.THINGS for w in facts.GOOD + facts.BAD], [
    "Is this positive or negative? The {t} was {w}.", "What is the sentiment of: I had a {w} {t}.", "Positive or negative: The {t} was {w}.",
    "Sentiment? That {t} was {w}.", "Tell me the sentiment: What a {w} {t}!", "The {t} was {w}. Is that positive or negative?",
    "Is the sentence \"It was a {w} {t}\" positive or negative?", "Classify the sentiment: I think the {t} is {w}.",
    "Was this a good or a bad review? The {t} was really {w}.",
], lambda p: {"t": p[0], "w": p[1]}, lambda p: "This is positive." if p[1] in facts.GOOD else "This is negative.")


def next_and_previous(name: str, weight: float, noun: str, cycle: list[str]) -> list[Kind]:
    after = [(x, cycle[(i + 1) % len(cycle)]) for i, x in enumerate(cycle)]
    before = [(x, cycle[i - 1]) for i, x in enumerate(cycle)]
    return [
        pair_kind(f"{name} after", weight, after, [
            f"Which {noun} comes after {{x}}?", f"What {noun} comes after {{x}}?", f"What {noun} is after {{x}}?", "What comes after {x}?",
            f"Which {noun} follows {{x}}?", f"Tell me the {noun} after {{x}}.", f"Name the {noun} that comes after {{x}}.", "What is next after {x}?",
            f"If it is {{x}} now, which {noun} is next?",
        ], "{y} comes after {x}."),
        pair_kind(f"{name} before", weight, before, [
            f"Which {noun} comes before {{x}}?", f"What {noun} comes before {{x}}?", f"What {noun} is before {{x}}?", "What comes before {x}?",
            f"Which {noun} precedes {{x}}?", f"Tell me the {noun} before {{x}}.", f"Name the {noun} that comes before {{x}}.",
            "What is just before {x}?", f"If it is {{x}} now, which {noun} was the one before?",
        ], "{y} comes before {x}."),
    ]


MONTH_LENGTHS = pair_kind("month lengths", 0.3, list(zip(facts.MONTHS, facts.MONTH_DAYS)), [
    "How many days does {x} have?", "How many days are in {x}?", "How long is {x}?", "Tell me how many days {x} has.", "Days in {x}?",
    "What is the number of days in {x}?", "How many days are there in {x}?", "Do you know how many days {x} has?",
], "{x} has {y} days.")

SOUNDS = Kind("animal sounds", 0.4, list(facts.SOUNDS.items()), [
    "What sound does {a} make?", "What does {a} say?", "How does {a} sound?", "Tell me the sound of {a}.", "Which sound does the {x} make?",
    "What noise does {a} make?", "Sound of {a}?", "What does the {x} say?",
], lambda p: {"x": p[0], "a": article(p[0])}, lambda p: f"The {p[0]} says {p[1]}.")

YOUNG = pair_kind("young animals", 0.4, {x: article(y) for x, y in facts.YOUNG.items()}, [
    "What is a young {x} called?", "What do you call a baby {x}?", "What is a baby {x} called?", "Name a young {x}.", "Tell me the word for a young {x}.",
    "What is the name for a baby {x}?", "How is a young {x} called?", "What is the young of a {x}?",
], "A young {x} is called {y}.")

LEGS = Kind("legs", 0.4, list(facts.LEGS.items()), [
    "How many legs does {x} have?", "How many legs has {x}?", "Tell me how many legs {x} has.", "Number of legs of {x}?",
    "What is the number of legs of {x}?", "Legs of {x}?", "Do you know how many legs {x} has?", "Count the legs of {x}.",
], lambda p: {"x": article(p[0])}, lambda p: f"{capitalised(article(p[0]))} has {p[1]} legs.")

NUMBER_WORDS = pair_kind("number words", 0.4, list(enumerate(facts.NUMBER_WORDS)), [
    "Write {x} in words.", "How do you write {x} in words?", "What is {x} in words?", "Spell the number {x}.", "Give me {x} as a word.",
    "How do you spell {x}?", "Write the number {x} as a word.", "{x} in words?",
], "{x} is written {y}.")

HOW_TO = pair_kind("how-to", 0.8, facts.HOW_TO, [
    "How do I {x}?", "How do you {x}?", "How can I {x}?", "Tell me how to {x}.", "Explain how to {x}.", "Please explain how to {x}.",
    "I want to {x}. What should I do?", "What is the best way to {x}?", "Give me the steps to {x}.", "How to {x}?",
], "{y}")

UNKNOWN = Kind("unknown", 0.3, facts.UNKNOWN, [
    "Who {x}?", "Tell me who {x}.", "Do you know who {x}?", "Can you tell me who {x}?", "I want to know who {x}.", "Please say who {x}.",
    "Any idea who {x}?", "Which person {x}?",
], lambda x: {"x": x}, lambda _: "I do not know. I am a very small model.")

GREETING_ANSWERS = {
    "Hello! How can I help you?": ["Hello", "Hi", "Hello!", "Good morning", "Hi there", "Hey", "Good evening", "Hello there!", "Hi!", "Greetings"],
    "I am well, thank you. How can I help you?": ["How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"],
    "You are welcome!": ["Thank you", "Thanks!", "Thank you very much.", "Thanks a lot", "Many thanks!"],
    "Goodbye! Have a nice day.": ["Goodbye", "Bye!", "See you later.", "Good night", "Bye bye"],
    "I am Assay Tiny, a very small language model. I can answer simple questions and tell stories.": [
        "Who are you?", "What are you?", "What is your name?", "What can you do?", "Are you a person?", "Introduce yourself.", "Help"],
}
GREETINGS = Kind("greetings", 0.8, [(q, a) for a, qs in GREETING_ANSWERS.items() for q in qs], ["{x}"], lambda p: {"x": p[0]}, lambda p: p[1])

KINDS: list[Kind] = [
    CAPITALS, COUNTRIES, OPPOSITES, PLURALS, COLOURS, SUMS, SENTIMENT, *next_and_previous("days", 0.3, "day", facts.DAYS),
    *next_and_previous("months", 0.4, "month", facts.MONTHS), MONTH_LENGTHS, SOUNDS, YOUNG, LEGS, NUMBER_WORDS, HOW_TO, UNKNOWN, GREETINGS,
]
# A greeting is one phrasing of itself: holding it out would hold out the fact, so greetings are taught and not scored.
SCORED = [kind for kind in KINDS if kind is not GREETINGS]


def held_out_prompts(count: int, seed: int = 99) -> list[tuple[str, str, str]]:
    """`count` distinct (kind, question, answer), spread evenly over the scored kinds, all held out of training."""
    rng = random.Random(seed)
    pools = []
    for kind in SCORED:
        pool = [(kind.name, kind.question(f, p), kind.answer(kind.facts[f]))
                for f in range(len(kind.facts)) for p in range(len(kind.phrasings)) if kind.is_held_out(f, p)]
        rng.shuffle(pool)
        pools.append(pool)
    chosen = []
    while len(chosen) < count and any(pools):
        for pool in pools:
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
    return chosen


def check_split() -> None:
    """Fails unless every fact and every phrasing of every scored kind is also taught."""
    for kind in SCORED:
        for f in range(len(kind.facts)):
            assert any(not kind.is_held_out(f, p) for p in range(len(kind.phrasings))), (kind.name, kind.facts[f])
        for p in range(len(kind.phrasings)):
            assert any(not kind.is_held_out(f, p) for f in range(len(kind.facts))), (kind.name, kind.phrasings[p])


def loosely_typed(rng: random.Random, question: str) -> str:
    """People drop capitals and marks, or add a polite word; the pair stays the same."""
    roll = rng.random()
    if roll < 0.06:
        return question.lower()
    if roll < 0.12:
        return question.rstrip("?.!")
    if roll < 0.15:
        return question.lower().rstrip("?.!")
    if roll < 0.18:
        return f"Please tell me: {question}"
    if roll < 0.21:
        return f"Hi! {question}"
    return question


def exchange(rng: random.Random) -> tuple[str, str]:
    """One taught question and its answer."""
    kind = rng.choices(KINDS, [k.weight for k in KINDS])[0]
    while True:
        f, p = rng.randrange(len(kind.facts)), rng.randrange(len(kind.phrasings))
        if kind is GREETINGS or not kind.is_held_out(f, p):
            return loosely_typed(rng, kind.question(f, p)), kind.answer(kind.facts[f])


def story_exchange(rng: random.Random) -> tuple[str, str]:
    """A request for a story, perhaps with a wish for its hero or animal, and the story."""
    cast = stories.draw_cast(rng)
    about = ""
    if rng.random() < 0.25:
        cast = stories.draw_cast(rng, animal=rng.choice(stories.ANIMALS))
        about = f" about {article(cast.animal)}"
    elif rng.random() < 0.33:
        cast = stories.draw_cast(rng, hero=rng.choice(stories.NAMES))
        about = f" about {cast.hero}"
    if rng.random() < 0.5:
        ask = rng.choice(["Tell me a long story{}.", "Write a long story{}.", "Please tell me a long story{}.", "I want to hear a long story{}.",
                          "Can you tell me a long story{}?", "Tell me a very long story{}."])
        return loosely_typed(rng, ask.format(about)), stories.long_story(rng, cast)
    ask = rng.choice(["Tell me a story{}.", "Write a story{}.", "Please write a short story{}.", "Tell me a short story{}.", "I want to hear a story{}.",
                      "Can you tell me a story{}?", "Write a short story{}."])
    return loosely_typed(rng, ask.format(about)), stories.short_story(rng, cast)


def plain_facts(rng: random.Random) -> str:
    """Answers as running prose, so that completions without chat markup know the facts too."""
    kinds = [CAPITALS, COUNTRIES, OPPOSITES, PLURALS, COLOURS, YOUNG, SOUNDS, LEGS]
    chosen = rng.choices(kinds, k=rng.randint(1, 4))
    return " ".join(kind.answer(rng.choice(kind.facts)) for kind in chosen)


def chat_text(rng: random.Random, question: str, answer: str) -> str:
    system = SYSTEM + rng.choice(facts.SYSTEM_MESSAGES) if rng.random() < SYSTEM_MESSAGE_RATE else ""
    return f"{system}{USER}{question}{ASSISTANT}{answer}{END}"


def document(rng: random.Random) -> str:
    """One training document, ending with `END`. By tokens about 55 % is questions and the rest mostly stories."""
    roll = rng.random()
    if roll < 0.87:
        return chat_text(rng, *exchange(rng))
    if roll < 0.93:
        return chat_text(rng, *story_exchange(rng))
    if roll < 0.96:
        teller = rng.choice([stories.short_story, stories.long_story])
        return teller(rng, stories.draw_cast(rng)) + END
    return plain_facts(rng) + END
