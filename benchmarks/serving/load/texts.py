"""Inputs of a benchmark run: a file's lines, or sentences of the kinds and lengths that people send."""

import random
from pathlib import Path

from tuneserve.errors import UserError

SENTENCES = [
    "Great value, arrived on time.",
    "The plot wanders for an hour before anything happens, and the ending makes no sense at all.",
    "I returned the headphones because the left side crackled whenever I turned my head.",
    "Maria Lopez flew from Lisbon to Toronto on Monday to meet the board of Northwind Energy.",
    "Not bad.",
    "Support answered within five minutes and replaced the charger without asking for a receipt.",
    "The battery lasts two days, but the screen is so dim that I can't read it in the sun.",
    "Shares of the airline fell 4.2 percent after it cut its forecast for the rest of the year.",
    "Would not recommend to anybody who values their sleep: the fan is louder than our dishwasher.",
    "A quiet, beautifully shot film about two brothers who inherit a farm that neither of them wants.",
    "My order 11873 says delivered, but nothing came. Who can I talk to?",
    "Researchers at the University of Nairobi and a team in Oslo described a protein that repairs damaged nerve "
    "cells in mice; trials with people could begin within three years, they said.",
    "The update fixed the crash on start-up, though syncing with the calendar still takes several tries.",
    "Lovely staff, tiny rooms, terrible coffee.",
    "We waited forty minutes for a table, the soup was cold, and then they charged us for bread that we never "
    "ordered; the manager apologised, took it off the bill and gave us dessert, which was excellent.",
    "Can you change the delivery address to 14 Mill Lane, Bristol?",
]

PROMPTS = [
    "What is the capital of Australia?",
    "Explain in simple words why the sky is blue.",
    "Write a short, polite email that asks a supplier for a delivery date.",
    "Give me three ideas for a rainy afternoon with children.",
    "How does a bicycle stay upright while it moves?",
    "Summarise the story of Romeo and Juliet in five sentences.",
    "My tomato plants have yellow leaves at the bottom. What could be the reason, and what should I do first?",
    "Write a haiku about a train station at night.",
    "What is the difference between weather and climate?",
    "I have eggs, rice, spinach and an onion. Suggest a dinner and tell me step by step how to cook it.",
    "Who wrote The Left Hand of Darkness, and what is it about?",
    "List the planets of the solar system from the largest to the smallest.",
]

# Words that most vocabularies have as one token.
WORDS = (  # noqa: SIM905
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name"
).split()


def words(count: int, seed: int) -> str:
    """Returns a text of so many words; another seed gives another one. It has about as many tokens."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def read(path: Path) -> list[str]:
    """Returns the lines of a text file that are not blank. Raises UserError if there are none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}", "give a UTF-8 text file, one input a line") from None
    if not (texts := [line for line in lines if line]):
        raise UserError(f"{path}: no text in it", "give one input a line")
    return texts
