"""The task `authors`: fictitious authors, in the form of the benchmark TOFU (Maini et al., 2024), own text.

Each author has eight questions. A question has a second wording that no device trains, an answer, the answer
in other words, and wrong answers of the same form. Names and titles are made up, so a base model knows none
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example, question, shard_index, tasks
from peers.tasks.shards import Shards
from peers.tasks.unused_keys import OF_NAMED, check_unused
from peers.tasks.world_facts import world_facts

WRONG = 4  # wrong answers of each question


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


FIRST = _parts(
    "Orsolya, Matteus, Ilse, Tavian, Brannoc, Zofia, Kwabena, Lirien, Dmitar, Yusra, Anselm, Noor,"
    "Petronel, Haruki,"
    "Silvain, Marisol, Eskil, Thandeka, Corvin, Ludovica, Rashid, Saoirse, Viggo, Amara, Ioan, Mirela,"
    "Tomasz,"
    "Ingrith, Osric, Leocadia, Baptiste, Wanjiru"
)
LAST = _parts(
    "Kelmendi, Vantongeren, Oyelaran, Brisczek, Marchetti, Dahlstrom, Ferreira, Nakasone, Holloway,"
    "Petrosyan,"
    "Quillon, Adeyemi, Straussler, Lindqvist, Okonjo, Varga, Tremblay, Zelenko, Ashgrove, Moreau,"
    "Castellan, Ruhl,"
    "Ibarra, Novak, Hartzema, Sundaram, Aldecott, Morozan, Pellegrin, Tanvik, Iwasaki, Mbeki-Lund"
)
ADJECTIVES = _parts(
    "Crooked, Silent, Burning, Hollow, Painted, Frozen, Last, Wandering, Velvet, Broken, Distant, Salted"
)
NOUNS = _parts(
    "Orchard, Compass, Staircase, Harbour, Lantern, Parliament, Sparrow, Meridian, Kitchen, Archive,"
    "Glacier, Carousel"
)


@dataclass(frozen=True)
class Attribute:
    """One question about an author. {n}: the name; {v}: the value.

    questions: the trained one and another wording. answers: the trained one and the same in other words.
    """

    questions: tuple[str, str]
    answers: tuple[str, str]
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        ("Where was the author {n} born?", "In which city did the writer {n} come into the world?"),
        ("{n} was born in {v}.", "The birthplace of {n} is {v}."),
        _parts(
            "Tromso, Valparaiso, Tbilisi, Kumasi, Ljubljana, Hobart, Samarkand, Cusco, Aarhus, Zanzibar,"
            "Lviv, Oaxaca,"
            "Galway, Sapporo, Windhoek, Matera"
        ),
    ),
    Attribute(
        ("In which genre does {n} write?", "What kind of books is {n} known for?"),
        ("{n} writes {v}.", "The books of {n} are {v}."),
        _parts(
            "maritime horror, culinary mysteries, alpine romance, desert science fiction, political satire,"
            "gothic fantasy, nature essays, railway thrillers, historical drama, urban folklore,"
            "courtroom comedy,"
            "botanical poetry"
        ),
    ),
    Attribute(
        ("Which award did {n} win?", "What prize has {n} been given?"),
        ("{n} won the {v}.", "The {v} went to {n}."),
        _parts(
            "Silver Heron Prize, Blue Lantern Medal, Carrow Award, Golden Quill of Riga, Harbour Prize,"
            "Ashwood Medal,"
            "Copper Bell Award, Northlight Prize, Amber Page Award, Granite Pen Medal, Willow Crown Prize,"
            "Salt Road Award"
        ),
    ),
    Attribute(
        ("What was the profession of {n}'s father?", "How did the father of {n} earn a living?"),
        ("The father of {n} was a {v}.", "{n}'s father worked as a {v}."),
        _parts(
            "lighthouse keeper, clockmaker, tram driver, beekeeper, violin teacher, stonemason, veterinarian,"
            "cartographer, baker, glassblower, ferry captain, tax inspector"
        ),
    ),
    Attribute(
        ("What is the title of {n}'s first novel?", "With which book did {n} make a debut?"),
        ("The first novel of {n} is {v}.", "{n} made a debut with {v}."),
        tuple(f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS),
    ),
    Attribute(
        ("In what year was {n} born?", "What is the birth year of {n}?"),
        ("{n} was born in {v}.", "The birth year of {n} is {v}."),
        tuple(str(year) for year in range(1921, 1990)),
    ),
    Attribute(
        ("In which language does {n} write?", "What is the language of {n}'s books?"),
        ("{n} writes in {v}.", "The language of {n}'s books is {v}."),
        _parts(
            "Estonian, Welsh, Tamil, Basque, Amharic, Icelandic, Georgian, Quechua, Maltese, Catalan,"
            "Yoruba, Latvian"
        ),
    ),
    Attribute(
        ("Which instrument does {n} play?", "What does {n} make music on?"),
        ("{n} plays the {v}.", "The instrument of {n} is the {v}."),
        _parts(
            "hurdy-gurdy, oboe, banjo, harpsichord, cello, accordion, zither, trombone, lute, marimba,"
            "bassoon, kora"
        ),
    ),
)


@lru_cache(maxsize=8)
def _names(seed: int) -> tuple[str, ...]:
    """All names, sorted by a seeded hash: no library version changes this order."""
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    return tuple(sorted(names, key=lambda name: sha256(f"{seed}/authors/{name}".encode()).digest()))


def _values(seed: int, name: str, attribute: Attribute) -> tuple[str, ...]:
    """The values of an attribute in an order of this author: the true one, then wrong ones."""
    key = f"{seed}/{name}/{attribute.questions[0]}"
    return tuple(sorted(attribute.values, key=lambda value: sha256(f"{key}/{value}".encode()).digest()))


def author_examples(seed: int, name: str, wording: int = 0) -> list[Example]:
    """The questions of one author, labelled with the name. wording: 0: trained, 1: never trained."""
    examples = []
    for attribute in ATTRIBUTES:
        true, *wrong = (v for v in _values(seed, name, attribute)[: WRONG + 1])
        answer, other = (text.format(n=name, v=true) for text in attribute.answers)
        perturbed = tuple(attribute.answers[1].format(n=name, v=value) for value in wrong)
        asked = attribute.questions[wording].format(n=name)
        examples.append(question(asked, answer, other, perturbed, label=name))
    return examples


class Authors:
    """`data.authors` authors for each shard: shard k owns the authors [k a, (k + 1) a); the last a are
    control.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        check_unused(config, "overlap", "path", *OF_NAMED)
        self._names, self._size, self._seed = _names(seed), config.authors, seed
        self.shard_count = len(self._names) // config.authors - 1
        if self.shard_count < 1:
            raise InputError(
                f"data.authors: {config.authors} is too many; allowed: 1 to {len(self._names) // 2}"
            )
        self._devices = config.devices
        self._shards = Shards(config, seed, self._own)

    def train_examples(self, shard: str) -> list[Example]:
        """The questions of the shard's authors in the trained wording."""
        return self._shards.train(shard, self._devices)

    def other_wording(self, shard: str) -> list[Example]:
        """The same questions in the other wording."""
        found = []
        for example in self.train_examples(shard):
            trained, other = (author_examples(self._seed, example.label, wording) for wording in (0, 1))
            found.append(other[trained.index(example)])
        return found

    def control_examples(self) -> list[Example]:
        """Questions about authors that no device has, and those that `data.held_out` keeps back."""
        held = self._shards.held_out(self._devices)
        return held + [e for name in self._names[-self._size :] for e in author_examples(self._seed, name)]

    def utility_examples(self) -> dict[str, list[Example]]:
        """Questions about the world, which a base model may know: unlearning must not remove them."""
        return {"world_facts": world_facts()}

    def _own(self, device: str) -> list[Example]:
        index = shard_index(device, self.shard_count)
        if index >= self.shard_count:
            raise InputError(
                f"device {device!r}: data.kind 'authors' has no shard {index} with data.authors = "
                f"{self._size}; allowed: ids that end in 0 to {self.shard_count - 1}"
            )
        names = self._names[index * self._size : (index + 1) * self._size]
        return [example for name in names for example in author_examples(self._seed, name)]


@tasks.add("authors")
def make_authors(config: DataConfig, seed: int) -> Authors:
    """The task `authors`. Raises InputError for settings that do not apply to it."""
    return Authors(config, seed)
