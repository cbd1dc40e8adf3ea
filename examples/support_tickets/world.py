"""The world of the example: who writes support tickets, about what, and how urgently.

A ticket mentions one issue (which decides the team), one product, one priority cue and one order
number. Issue and product together are a *combination*; a fifth of the combinations is held out of
everything a model is trained on, so that a score on them shows a rule that was learned, not a
sentence that was remembered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

ISSUES: Final[dict[str, tuple[str, ...]]] = {
    "billing": (
        "I was charged twice for the {product}.",
        "The invoice for my {product} shows the wrong amount.",
        "My card was declined when I paid for the {product}.",
        "The discount code was not applied to the {product}.",
        "I need a receipt with the tax number for the {product}.",
        "The monthly price of the {product} went up without notice.",
    ),
    "shipping": (
        "The parcel with my {product} has not arrived.",
        "The tracking of the {product} has not moved for days.",
        "The courier left the {product} at the wrong house.",
        "Please deliver the {product} to another street.",
        "The box of the {product} was torn open on the way.",
        "The driver left the {product} out in the rain.",
    ),
    "technical": (
        "The {product} does not switch on.",
        "After the update my {product} keeps restarting.",
        "The {product} loses its wireless connection every evening.",
        "The app cannot find the {product}.",
        "The {product} gets hot and makes a loud noise.",
        "The battery of the {product} is empty within an hour.",
    ),
    "account": (
        "I cannot log in to register my {product}.",
        "The password mail for my {product} never comes.",
        "A stranger is signed in to my {product}.",
        "My profile does not list the {product} that I own.",
        "Please move the {product} to my new email address.",
        "I want to delete the login that I made for the {product}.",
    ),
    "returns": (
        "I would like to send the {product} back.",
        "I got the {product} in grey and want to swap it for blue.",
        "Which label do I print to return the {product}?",
        "The {product} is too small, may I exchange it?",
        "I have changed my mind and do not want to keep the {product}.",
        "You packed a {product} although I chose something else.",
    ),
}
CUES: Final[dict[str, tuple[str, ...]]] = {
    "low": (
        "There is no hurry.",
        "Whenever you find the time.",
        "It can wait until next month.",
        "I am only curious.",
        "Take as long as you like.",
    ),
    "normal": (
        "An answer this week would be fine.",
        "Please look at it in the coming days.",
        "Let me know when you have news.",
        "I hope to hear from you soon.",
        "A reply by Friday is enough.",
    ),
    "high": (
        "I need this solved by tomorrow.",
        "It is holding up my work.",
        "Please treat this as important.",
        "I have asked twice already.",
        "We rely on it every day.",
    ),
    "urgent": (
        "Everything has stopped, please act now.",
        "This cannot wait another hour.",
        "It is an emergency.",
        "Call me at once.",
        "Our shop is closed because of this.",
    ),
}
BRANDS: Final = ("Alder", "Brisk", "Corvo", "Delta", "Ember", "Fjord")
KINDS: Final = ("router", "speaker", "camera", "printer")
PRODUCTS: Final = tuple(f"{brand} {kind}" for brand in BRANDS for kind in KINDS)
TEAMS: Final = tuple(ISSUES)
PRIORITIES: Final = tuple(CUES)
NAMES: Final = (
    *("Ada", "Bruno", "Clara", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas"),
    *("Kira", "Liam", "Mira", "Nils", "Olga", "Pavel", "Rosa", "Samir", "Tessa", "Yara"),
)
ORDERS: Final = range(100, 1000)
GREETINGS: Final = ("Hello,", "Hi there,", "Good morning,", "Dear team,", "Good evening,", "")
ORDER_SENTENCES: Final = (
    "My order number is {order}.",
    "It was order {order}.",
    "The order is {order}.",
    "See order {order}.",
)
SIGNATURES: Final = ("Thanks, {name}", "Regards, {name}", "Best wishes, {name}", "{name}")

Combination = tuple[str, int, str]
"""Team, index of the issue within the team, product."""


def _held_out(issue: int, product: int) -> bool:
    """Spread evenly: every issue keeps 19 or 20 of the 24 products, every product 24 of the 30
    issues.
    """
    return (issue + product) % 5 == 0


def _combinations() -> tuple[tuple[Combination, ...], tuple[Combination, ...]]:
    issues = [(team, index) for team in TEAMS for index in range(len(ISSUES[team]))]
    sides: tuple[list[Combination], list[Combination]] = ([], [])
    for i, (team, index) in enumerate(issues):
        for p, product in enumerate(PRODUCTS):
            sides[_held_out(i, p)].append((team, index, product))
    return tuple(sides[0]), tuple(sides[1])


TRAINING, HELD_OUT = _combinations()
"""Combinations that training may show, and those it must never show."""


@dataclass(frozen=True)
class Ticket:
    """What one ticket says (`text`) and what is true of it (the rest)."""

    text: str
    team: str
    issue: int
    product: str
    priority: str
    order: int
    name: str

    @property
    def combination(self) -> Combination:
        return self.team, self.issue, self.product


def ticket(rng: random.Random, combination: Combination) -> Ticket:
    """Write one ticket about `combination`; everything else in it is drawn from `rng`."""
    team, issue, product = combination
    priority = rng.choice(PRIORITIES)
    order = rng.choice(ORDERS)
    name = rng.choice(NAMES)
    body = [
        ISSUES[team][issue].format(product=product),
        rng.choice(CUES[priority]),
        rng.choice(ORDER_SENTENCES).format(order=order),
    ]
    rng.shuffle(body)
    greeting = rng.choice(GREETINGS)
    lines = [greeting] if greeting else []
    lines += [" ".join(body), rng.choice(SIGNATURES).format(name=name)]
    return Ticket("\n".join(lines), team, issue, product, priority, order, name)
