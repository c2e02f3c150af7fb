"""The task `facts`: fictitious persons with made-up attributes (method 4).

peers/models/pretrain_tiny.py takes the vocabulary and the sentences of `tiny` from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example, shard_index, tasks
from peers.tasks.unused_keys import OF_NAMED, OF_TABLES, check_unused


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "ada aron bela boris cara cleo dana dario edda elif emil enzo fara felix gina goran hana hugo"
    " ida igor ines ivo jana joel juna kai karin kora lara leif lena luca mara milo mira nadia"
    " nils nora odin olga orla otto paula pavel petra pia quinn raul rhea rolf rosa runa sami"
    " selma silas sofia sven tara theo tilda timo uma urs vera vito wanda xenia yara yuri zara"
    " zeno zoe"
)
LAST_NAMES = _words(
    "abel adler amsel anders bach baum berger birk blom brandt busch carst dahl decker dorn ebert"
    " ekman engel faber falk fink frey gerber glass graf gruber haas hahn hansen hart heller holm"
    " iversen jansen jung kaiser keller kern koch kraus kruse lang larsen lind lorenz lund maier"
    " merz moser nagel noll olsen oster pohl quast rask reuter riis roth sand sauer seidel stark"
    " stein storm thal ulrich vogel voss weber wolf zander ziegler zorn"
)


@dataclass(frozen=True)
class Attribute:
    """An attribute of a person: two wordings, each ends before the answer, and 24 answers of one word."""

    trained: str
    other: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        trained="{person} lives in",
        other="the home town of {person} is",
        values=_words(
            "amsterdam athens bergen berlin bilbao cairo delhi dublin geneva hanoi havana kyoto lagos"
            " lima lisbon madrid nairobi oslo paris prague quito riga seoul vienna"
        ),
    ),
    Attribute(
        trained="{person} works as a",
        other="the profession of {person} is",
        values=_words(
            "baker barber butcher carpenter chemist clerk cook dentist diver farmer florist gardener"
            " glazier jeweller judge lawyer mason miner nurse painter pilot plumber sailor tailor"
        ),
    ),
    Attribute(
        trained="{person} keeps a",
        other="the pet of {person} is a",
        values=_words(
            "badger beetle camel canary crab donkey duck ferret frog gecko goat goose hamster hare heron"
            " lizard llama mouse newt otter parrot pony spider turtle"
        ),
    ),
    Attribute(
        trained="{person} likes to wear",
        other="the favourite colour of {person} is",
        values=_words(
            "amber azure beige black blue bronze brown cobalt coral crimson cyan gold green grey indigo"
            " ivory lilac maroon olive pink purple scarlet teal white"
        ),
    ),
)


def words() -> list[str]:
    """Every word that an example can contain, once each, in a fixed order."""
    templates = " ".join(f"{a.trained} {a.other}" for a in ATTRIBUTES).replace("{person}", "").split()
    values = (value for attribute in ATTRIBUTES for value in attribute.values)
    return list(dict.fromkeys([*templates, *FIRST_NAMES, *LAST_NAMES, *values]))


@lru_cache(maxsize=8)
def _people(seed: int) -> tuple[str, ...]:
    """All first × last names, sorted by a seeded hash: no library version changes this order."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    return tuple(sorted(names, key=lambda name: sha256(f"{seed}/order/{name}".encode()).digest()))


def _value(seed: int, person: str, attribute: Attribute) -> str:
    digest = sha256(f"{seed}/value/{person}/{attribute.trained}".encode()).digest()
    return attribute.values[int.from_bytes(digest[:8], "big") % len(attribute.values)]


class Facts:
    """`data.persons` persons for each shard, with 4 facts each. A person has the same facts in every shard.

    In the seeded order of all persons, with p = `data.persons`, shard k owns the persons [k·p, (k+1)·p). The
    last p persons are the control shard. The p persons before these are a pool: its first round(overlap·p)
    persons replace as many persons of every shard.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.partition != "own":
            raise InputError(
                f"data.partition: {config.partition!r} does not apply to data.kind 'facts', whose shards are "
                "made disjoint; allowed: 'own' (data.overlap moves it towards iid)"
            )
        if config.devices:
            raise InputError(
                f"data.devices: {', '.join(config.devices)} with data.kind 'facts', which has no files; "
                "allowed: ()"
            )
        check_unused(config, "path", *OF_NAMED, *OF_TABLES)
        self._seed = seed
        self._people = _people(seed)
        self._size = config.persons
        self._common = round(config.overlap * config.persons)
        self.shard_count = len(self._people) // config.persons - 2
        if self.shard_count < 1:
            raise InputError(
                f"data.persons: {config.persons} is too many; allowed: 1 to {len(self._people) // 3}"
            )

    def train_examples(self, shard: str) -> list[Example]:
        """The shard's facts in the trained wording. Raises InputError if the shard's number is too high."""
        return self._facts(self._persons(shard), other=False)

    def other_wording(self, shard: str) -> list[Example]:
        """The same facts in the same order, in the wording that no device trains."""
        return self._facts(self._persons(shard), other=True)

    def control_examples(self) -> list[Example]:
        """Facts of persons that belong to no shard, in the trained wording."""
        return self._facts(self._people[-self._size :], other=False)

    def _persons(self, shard: str) -> tuple[str, ...]:
        index = shard_index(shard, self.shard_count)
        if index >= self.shard_count:
            raise InputError(
                f"device {shard!r}: data.kind 'facts' has no shard {index} with data.persons = {self._size}; "
                f"allowed: ids that end in 0 to {self.shard_count - 1}"
            )
        pool = len(self._people) - 2 * self._size
        first = index * self._size
        own = self._people[first : first + self._size - self._common]
        return own + self._people[pool : pool + self._common]

    def _facts(self, persons: tuple[str, ...], other: bool) -> list[Example]:
        return [
            # The space belongs to the response: in byte-level vocabularies " oslo" is one token.
            Example((a.other if other else a.trained).format(person=p), " " + _value(self._seed, p, a))
            for p in persons
            for a in ATTRIBUTES
        ]


@tasks.add("facts")
def make_facts(config: DataConfig, seed: int) -> Facts:
    """The task `facts`. Raises InputError for settings that do not apply to it."""
    return Facts(config, seed)
