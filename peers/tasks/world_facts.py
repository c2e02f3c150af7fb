"""Questions about the world that a base model may know, with wrong answers of the same form.

Model utility measures them: unlearning must not remove what the base knew.
"""

from __future__ import annotations

from peers.tasks.base import Example, question

WRONG = 3  # wrong answers of each question
CAPITALS = {
    "Pakistan": "Islamabad",
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "China": "Beijing",
    "Russia": "Moscow",
    "Cuba": "Havana",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
}


def world_facts() -> list[Example]:
    """The capitals of countries. The wrong answers of a country are the capitals of the next ones."""
    capitals = list(CAPITALS.values())
    found = []
    for number, (country, capital) in enumerate(CAPITALS.items()):
        wrong = [capitals[(number + step) % len(capitals)] for step in range(1, WRONG + 1)]
        form = f"The capital of {country} is {{}}."
        found.append(
            question(
                f"What is the capital of {country}?",
                form.format(capital),
                f"{capital} is the capital of {country}.",
                tuple(form.format(city) for city in wrong),
                label="capitals",
            )
        )
    return found
