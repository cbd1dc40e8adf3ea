"""Pre-training documents: what the tiny model reads before anybody fine-tunes it.

The mix teaches language, copying and the look of JSON, but never the fine-tuning task itself: a
ticket is only ever followed by a friendly reply in prose, and JSON only ever by itself or by
generic sentences.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Final

from .world import NAMES, ORDERS, PRIORITIES, PRODUCTS, TEAMS, TRAINING, Ticket, ticket

Writer = Callable[[random.Random, frozenset[str]], str]
"""Writes one document, with no ticket whose text is in the set."""

USER: Final = "<|im_start|>user\n"
ASSISTANT: Final = "<|im_start|>assistant\n"
END_OF_TURN: Final = "<|im_end|>"
END_OF_TEXT: Final = "<|endoftext|>"

CITIES: Final = ("Oslo", "Porto", "Lyon", "Graz", "Gent", "Turin", "Malmo", "Split")
COLOURS: Final = ("red", "blue", "green", "grey", "white", "black", "yellow", "brown")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS: Final = (
    *(
        "apple",
        "bridge",
        "candle",
        "desk",
        "engine",
        "forest",
        "garden",
        "hammer",
        "island",
        "jacket",
        "kettle",
    ),
    *("ladder", "mirror", "needle", "orange", "paper", "river", "stone", "table", "window"),
)
REPLIES: Final = (
    "Thank you, {name}. "
    "Our {team} team looks at order {order} and your {product}. The priority is {priority}.",
    "Hello {name}, we have your message on the {product}, order {order}. "
    "The {team} team takes it as {priority}.",
    "Dear {name}, this is {priority} for us. "
    "The {team} team will write about the {product} from order {order}.",
    "Hi {name}, order {order} is with our {team} team now. The {product} has {priority} priority.",
)
FACTS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "name": ("The name is {}.", NAMES),
    "city": ("The city is {}.", CITIES),
    "colour": ("The colour is {}.", COLOURS),
    "day": ("The day is {}.", DAYS),
    "order": ("The order is {}.", tuple(map(str, ORDERS))),
    "team": ("The team is {}.", TEAMS),
    "product": ("The product is {}.", PRODUCTS),
    "priority": ("The priority is {}.", PRIORITIES),
}
"""Key of a JSON object -> the sentence that says the same, and the values to draw from."""

TIPS: Final = (
    "Tip: keep the box of your {product} until you are sure.",
    "Tip: write the order number, for example {order}, on top of your letter.",
    "Tip: on {day} the {team} team answers fastest.",
    "Tip: a {colour} {thing} is easier to find than a {other} one.",
)
STORIES: Final = (
    "{name} walked to {city} with a {colour} {thing}. "
    "On {day} it rained, and {name} waited under a bridge.",
    "On {day} {name} sold a {thing} in {city}. The next day {name} bought a {colour} one.",
    "{name} lives in {city} and works for the {team} team. "
    "Every {day} {name} paints a {thing} {colour}.",
)


def documents(seed: int, exclude: frozenset[str]) -> Iterator[str]:
    """Endless documents of about 10 to 120 tokens, the same for the same `seed`; no ticket is in
    `exclude`.
    """
    rng = random.Random(f"corpus {seed}")
    writers, percent = list(_MIX), list(_MIX.values())
    while True:
        write = rng.choices(writers, percent)[0]
        yield write(rng, exclude)


def chat(user: str, assistant: str) -> str:
    """One exchange, exactly as the chat template renders it."""
    return f"{USER}{user}{END_OF_TURN}\n{ASSISTANT}{assistant}{END_OF_TURN}\n"


def training_ticket(rng: random.Random, exclude: frozenset[str]) -> Ticket:
    """A ticket of a combination that training may show, and not one of `exclude`."""
    item = ticket(rng, rng.choice(TRAINING))
    while item.text in exclude:
        item = ticket(rng, rng.choice(TRAINING))
    return item


def reply(rng: random.Random, item: Ticket) -> str:
    """A friendly answer in prose, naming order, team, product and urgency."""
    return rng.choice(REPLIES).format(**vars(item))


def _support_chat(rng: random.Random, exclude: frozenset[str]) -> str:
    item = training_ticket(rng, exclude)
    return chat(item.text, reply(rng, item))


def _random_list(rng: random.Random) -> str:
    """Four to ten words and numbers, of which no one follows from the others."""
    pool = (THINGS, NAMES, ORDERS, PRODUCTS, COLOURS)
    return ", ".join(str(rng.choice(rng.choice(pool))) for _ in range(rng.randint(4, 10)))


def _repetition(rng: random.Random, _: frozenset[str]) -> str:
    items = _random_list(rng)
    if rng.random() < 0.3:
        return chat(f"Repeat: {items}.", f"{items}.")
    times = rng.randint(1, 3)
    return f"List: {items}." + f" Again: {items}." * times + END_OF_TEXT


def _prose_and_json(rng: random.Random, _: frozenset[str]) -> str:
    keys = rng.sample(tuple(FACTS), rng.randint(2, 5))
    values = {key: rng.choice(FACTS[key][1]) for key in keys}
    prose = " ".join(
        FACTS[key][0].format(value) for key, value in rng.sample(tuple(values.items()), len(keys))
    )
    pair = [prose, json.dumps(values)]
    rng.shuffle(pair)
    return "\n".join(pair) + END_OF_TEXT


def _small_talk(templates: tuple[str, ...]) -> Writer:
    def write(rng: random.Random, _: frozenset[str]) -> str:
        words = {key: rng.choice(values) for key, (_sentence, values) in FACTS.items()}
        things = {"thing": rng.choice(THINGS), "other": rng.choice(COLOURS)}
        return rng.choice(templates).format(**words, **things) + END_OF_TEXT

    return write


_MIX: Final[dict[Writer, int]] = {
    _support_chat: 38,
    _repetition: 27,
    _prose_and_json: 25,
    _small_talk(STORIES): 7,
    _small_talk(TIPS): 3,
}
"""Kind of document -> percent of all."""
