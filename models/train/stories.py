"""Short and long children's stories, told by a small grammar from one random generator.

A story keeps one cast (hero, friend, animal, object, place) from beginning to end. Its parts follow the hours of a day, so even a
greedy reader of the same grammar always moves forward and reaches the end.
"""

import random
from dataclasses import dataclass

NAMES = "Lily Tom Anna Ben Mia Sam Zoe Max Ella Leo Nina Jack Ruby Oscar Emma Noah".split()
PLACES = ["park", "garden", "forest", "beach", "farm", "lake", "village", "market", "valley", "meadow"]
ANIMALS = "dog cat bird rabbit fox duck horse frog goat mouse owl bear".split()
OBJECTS = ["red ball", "blue kite", "little boat", "shiny stone", "old book", "yellow hat", "small drum", "green box",
           "silver key", "wooden flute"]
TRAITS = "brave kind clever quiet cheerful curious".split()
FOODS = ["bread and cheese", "warm soup", "apple pie", "sweet berries", "honey cakes", "fresh milk"]


@dataclass
class Cast:
    """Everything a story mentions; fixed for its whole length."""

    hero: str
    friend: str
    place: str
    animal: str
    thing: str
    trait: str
    food: str


def draw_cast(rng: random.Random, animal: str | None = None, hero: str | None = None) -> Cast:
    """A random cast; a given animal or hero is kept."""
    lead = hero or choose(rng, NAMES)
    friend = choose(rng, [name for name in NAMES if name != lead])
    return Cast(lead, friend, choose(rng, PLACES), animal or choose(rng, ANIMALS), choose(rng, OBJECTS), choose(rng, TRAITS),
                choose(rng, FOODS))


# Equal choices would leave the model near-ties, which rounding decides; with these odds the first wording wins clearly.
ODDS = 0.75


def choose(rng: random.Random, options: list):
    """An option, each `ODDS` times as likely as the one before it."""
    return rng.choices(options, [ODDS**i for i in range(len(options))])[0]


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def opening(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"Once upon a time there was a {c.trait} child named {c.hero}. {c.hero} lived near the {c.place} and had {article(c.thing)}.",
        f"Once upon a time, near the {c.place}, there lived a {c.trait} child named {c.hero}. {c.hero} loved {article(c.thing)} more than anything.",
        f"{c.hero} was a {c.trait} child who liked to play in the {c.place}. The best toy of all was {article(c.thing)}.",
    ])


def meeting(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"One day {c.hero} took the {c.thing} to the {c.place}. {article(c.animal).capitalize()} came close and looked at it.",
        f"One day {c.hero} met {article(c.animal)} in the {c.place}. The {c.animal} was looking at the {c.thing}.",
        f"One day {article(c.animal)} came out of the {c.place}. It wanted to see the {c.thing}.",
    ])


def trouble(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"Suddenly the {c.animal} took the {c.thing} and ran away. {c.hero} was sad and began to cry.",
        f"Then the {c.thing} was gone. {c.hero} looked everywhere, but could not find it.",
        f"Then a strong wind came and carried the {c.thing} away. {c.hero} did not know what to do.",
    ])


def help_arrives(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"{c.friend} heard {c.hero} and came to help. \"Do not worry,\" said {c.friend}. \"We will find the {c.thing} together.\"",
        f"{c.hero} asked {c.friend} for help. \"Of course,\" said {c.friend}. \"Let us look for the {c.thing}.\"",
        f"Then {c.friend} came by. \"Why are you sad?\" asked {c.friend}. \"I lost my {c.thing},\" said {c.hero}.",
    ])


def solution(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"They followed the small tracks of the {c.animal} and found the {c.thing} under a tree.",
        f"They looked behind every stone, and at last the {c.animal} brought the {c.thing} back.",
        f"The {c.animal} was sorry and showed them where the {c.thing} was.",
    ])


def ending(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"{c.hero}, {c.friend} and the {c.animal} became good friends. In the end they were all happy.",
        f"{c.hero} thanked {c.friend} and hugged the {c.animal}. Then they all went home.",
        f"From that day on {c.hero} and {c.friend} played with the {c.animal} every day. The end.",
    ])


def morning(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"In the morning the sun was warm. {c.hero} ate {c.food}, took the {c.thing} and walked to the {c.place}.",
        f"In the morning {c.hero} woke up early. After a breakfast of {c.food} it was time to go to the {c.place}.",
    ])


def midday(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"At noon they sat down to rest. {c.friend} had some {c.food} in a bag, and they shared it. \"I am glad you are here,\" said {c.hero}.",
        f"At noon it was very hot. {c.friend} gave {c.hero} some {c.food}, and they sat under a tall tree. \"We must not give up,\" said {c.friend}.",
    ])


def afternoon(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"In the afternoon they walked to the far side of the {c.place}. There they saw the {c.animal} again. {solution(rng, c)}",
        f"In the afternoon they crossed a little bridge and climbed a hill. From the top they could see the whole {c.place}. {solution(rng, c)}",
    ])


def evening(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"In the evening the sky turned red. {c.hero} and {c.friend} showed the {c.animal} how to play with the {c.thing}. They laughed until it was dark.",
        f"In the evening they made a small fire. {c.friend} sang a song, and the {c.animal} listened. The {c.thing} lay safe beside {c.hero}.",
    ])


def night(rng: random.Random, c: Cast) -> str:
    return choose(rng, [
        f"At night the stars came out. {c.hero} was tired but happy, and fell asleep with the {c.thing} in both arms. {ending(rng, c)}",
        f"At night they walked home under the moon. \"This was the best day of all,\" said {c.hero}. {ending(rng, c)}",
    ])


def short_story(rng: random.Random, c: Cast) -> str:
    """One paragraph, about 90 to 130 tokens."""
    parts = [opening, meeting, trouble, help_arrives, solution, ending]
    return " ".join(part(rng, c) for part in parts)


def long_story(rng: random.Random, c: Cast) -> str:
    """Six paragraphs, about 250 to 350 tokens."""
    return "\n\n".join([
        opening(rng, c),
        f"{morning(rng, c)} {meeting(rng, c)}",
        f"{trouble(rng, c)} {help_arrives(rng, c)}",
        midday(rng, c),
        afternoon(rng, c),
        evening(rng, c),
        night(rng, c),
    ])
