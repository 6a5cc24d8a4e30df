"""The fixed prompts of every benchmark: 64 texts of 16 to 200 tokens or so, the same on every machine."""

import random

_OPENINGS = (
    "Write a short story about",
    "Explain in simple words",
    "The following is an encyclopedia article about",
    "A letter to a friend who wants to know everything about",
    "Question: what should everybody know about",
    "Notes of a lecture on",
    "Once upon a time there was a town that was famous for",
    "A news report about",
)
_SUBJECTS = (
    "a lighthouse keeper and the storm of the century",
    "how bread is baked in a stone oven",
    "the water cycle and the clouds above the mountains",
    "an old clock that runs backwards",
    "the history of paper and printing",
    "a robot that learns to paint",
    "bees, their dances and their honey",
    "the railway between two rival villages",
)
_SENTENCES = (
    "It begins in the early morning, before anybody else is awake.",
    "Three things matter more than all others, and the first is patience.",
    "Visitors often ask why nobody has ever tried to change it.",
    "In the year of the great flood, everything looked different.",
    "The oldest people still remember how their parents spoke of it.",
    "A careful reader will notice that the numbers do not quite add up.",
    "There is a small museum with a garden behind the main square.",
    "Every winter the work stops for some weeks, and the tools are mended.",
    "What happens next depends on the weather, on luck and on the price of wood.",
    "Some call it an art, others a science, and most simply call it work.",
)


def prompts(count: int = 64, seed: int = 20) -> list[str]:
    """Prompts of different lengths, in an order that mixes short and long ones."""
    rng = random.Random(seed)  # noqa: S311
    made = []
    for index in range(count):
        opening = f"{_OPENINGS[index % 8]} {_SUBJECTS[index // 8 % 8]}."
        made.append(" ".join([opening, *rng.choices(_SENTENCES, k=index * 7 % 13)]))
    rng.shuffle(made)
    return made


def long_prompt(number: int, num_characters: int) -> str:
    """A text of exactly so many characters; texts of one number begin alike, those of different ones do not."""
    rng = random.Random(number)  # noqa: S311
    text = f"{number}."
    while len(text) < num_characters:
        text += " " + rng.choice(_SENTENCES)
    return text[:num_characters]


def numbered_prompts(number: int, count: int) -> list[str]:
    """So many prompts, again from the first when they end, each with its number before it.

    What carries another `number` shares no beginning with these, so no server can reuse what it computed for others.
    """
    texts = prompts()
    return [f"{number}.{index}. {texts[index % len(texts)]}" for index in range(count)]
