"""Recommendations of films: by popularity, by text alone, and by a blend of both that was fitted on clicks.

    python -m tuneserve.benchmarks.answers.recommend [--report FILE]

The recipe of docs/recommendations.md on MovieLens-100k. A click is a film that somebody gave 4 or 5 stars; what is
known before it are that person's ratings until then, and everybody's. Each person's last three clicks measure, the
three before them fit the blend. Candidates are the 50 films that are nearest to the person's profile (Search with
`liked` and `disliked`) and the 50 most popular ones, without those that the person has rated; Search scores the popular
ones, too, by a filter on their ids. HR@10 is the share of clicks among the first ten. Intervals are paired, by person,
because a person's clicks are not independent. The last line of stdout is the result as JSON.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.csv
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tuneserve import samples
from tuneserve.benchmarks.answers import served
from tuneserve.benchmarks.claims import Claim, Interval, Ratio
from tuneserve.checkpoint import rows
from tuneserve.client import AsyncClient, Client, Document

Array = NDArray[np.float64]

CLAIM = Claim("blend, to popularity", "blend", "popularity", at_least=1.15)
FEATURES = ("popularity", "popularity in two weeks", "stars", "text", "genres", "year")
_SHOWN, _CANDIDATES, _MOST_LIKED = 10, 50, 100
_CLICKS = 3  # of each person, to measure, and as many to fit
_RECENT = 14 * 86400
_CALLERS = 8


@dataclass(frozen=True)
class Click:
    """A film that somebody liked, and what that person had rated before."""

    person: int
    film: int
    time: int
    liked: Sequence[int]
    disliked: Sequence[int]
    seen: frozenset[int]


class Films:
    """What is known of films, which are places in a list: genres, years, and what was rated until some time."""

    def __init__(self, documents: Sequence[Mapping[str, Any]], times: Array, films: NDArray[np.int64], stars: Array):
        """Ratings are in the order of their times."""
        self.ids = [str(one["id"]) for one in documents]
        self._times, self._films, self._stars = times, films, stars
        genres = [one["text"].rstrip(".").split(", ") for one in documents]
        names = sorted({name for some in genres for name in some})
        self.genres = np.array([[name in some for name in names] for some in genres], float)
        self.genres /= np.linalg.norm(self.genres, axis=1, keepdims=True)
        years = [float(one["metadata"]["year"] or "nan") for one in documents]
        self.years = np.nan_to_num(years, nan=float(np.nanmedian(years)))

    def rated(self, time: int) -> tuple[Array, Array, Array]:
        """Returns of each film how often it was rated until then, how often lately, and the mean of its stars."""
        end, lately = bisect_left(self._times, time), bisect_left(self._times, time - _RECENT)
        count = len(self.ids)
        often, recent = (np.bincount(self._films[start:end], minlength=count).astype(float) for start in (0, lately))
        total = np.bincount(self._films[:end], self._stars[:end], minlength=count)
        # A film that few have rated has nearly the stars of all.
        return often, recent, np.asarray((total + 5 * 3.5) / (often + 5))


def clicks(people: NDArray[np.int64], films: NDArray[np.int64], stars: Array, times: Array) -> Iterator[list[Click]]:
    """Yields the last clicks of each person who has enough of them; ratings are in the order of their times."""
    for person in np.unique(people):
        own = np.flatnonzero(people == person)
        good = np.flatnonzero(stars[own] >= 4)
        if len(good) < 2 * _CLICKS + 2:
            continue
        some = []
        for place in good[-2 * _CLICKS :]:
            before, given = films[own[:place]], stars[own[:place]]
            liked, disliked = (before[which][-_MOST_LIKED:].tolist() for which in (given >= 4, given <= 2))
            at = own[place]
            seen = frozenset(before.tolist())
            some.append(Click(int(person), int(films[at]), int(times[at]), liked, disliked, seen))
        yield some


def best(scores: Array, some: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns the best of some films; of equal ones, the first."""
    return some[np.argsort(-scores[some], kind="stable")[:count]]


async def texts(client: AsyncClient, films: Films, asked: Click, popular: NDArray[np.int64]) -> dict[int, float]:
    """Returns the cosine of the nearest films, and of the popular ones, by Search."""
    places = {id_: place for place, id_ in enumerate(films.ids)}
    liked, disliked = ([films.ids[place] for place in some] for some in (asked.liked, asked.disliked))
    found = {}
    for filters in (None, {"id": [films.ids[place] for place in popular]}):
        for one in await client.search("films", liked=liked, disliked=disliked, filters=filters, limit=100):
            found[places[one.document_id]] = one.dense_score
    return {place: score for place, score in found.items() if place not in asked.seen}


@dataclass(frozen=True)
class Candidates:
    """The films that may be shown, with their features, and which of them is the click."""

    films: NDArray[np.int64]
    features: Array
    click: Click
    first: Mapping[str, NDArray[np.int64]]  # the ten that are shown, by popularity and by text


async def candidates(client: AsyncClient, films: Films, asked: Click) -> Candidates:
    """Returns the candidates of a click."""
    often, lately, stars = films.rated(asked.time)
    unseen = np.array([place for place in range(len(films.ids)) if place not in asked.seen])
    popular = best(often, unseen, _CANDIDATES)
    cosines = await texts(client, films, asked, popular)
    chosen = np.array(sorted(cosines))
    text = np.array([cosines[place] for place in chosen])
    liked = list(asked.liked)
    genres = films.genres[chosen] @ films.genres[liked].mean(axis=0)
    years = -np.abs(films.years[chosen] - np.median(films.years[liked]))
    features = [np.log1p(often[chosen]), np.log1p(lately[chosen]), stars[chosen], text, genres, years]
    first = {"popularity": popular[:_SHOWN], "text": chosen[np.argsort(-text, kind="stable")[:_SHOWN]]}
    return Candidates(chosen, np.stack(features, axis=1), asked, first)


def fitted(some: Sequence[Candidates]) -> Pipeline:
    """Returns a logistic regression of whether a candidate is the click."""
    known = [one for one in some if one.click.film in one.films]
    features = np.concatenate([one.features for one in known])
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        features, np.concatenate([one.films == one.click.film for one in known])
    )


def hits(blend: Pipeline, some: Sequence[Candidates]) -> dict[str, Array]:
    """Returns the share of each person's clicks that are among the first ten, by popularity, text and the blend."""
    shown: dict[str, dict[int, list[bool]]] = {}
    for one in some:
        order = np.argsort(-blend.decision_function(one.features), kind="stable")[:_SHOWN]
        for name, first in {**one.first, "blend": one.films[order]}.items():
            shown.setdefault(name, {}).setdefault(one.click.person, []).append(one.click.film in first)
    return {name: np.array([np.mean(each) for each in people.values()]) for name, people in shown.items()}


def compared(shares: Mapping[str, Array]) -> Ratio:
    """Returns the ratio of two means over the same people, with its 95 % interval (BCa bootstrap)."""
    more, less = shares[CLAIM.of], shares[CLAIM.to]

    def of(some: Array, others: Array, axis: int = -1) -> Array:
        return np.asarray(some.mean(axis=axis) / others.mean(axis=axis))

    found = stats.bootstrap((more, less), of, paired=True, vectorized=True, random_state=0).confidence_interval
    return Ratio(CLAIM, Interval(float(of(more, less)), float(found.low), float(found.high), len(more)))


async def all_candidates(address: str, films: Films, asked: Sequence[Click]) -> list[Candidates]:
    """Returns the candidates of all clicks, in order."""
    found: dict[int, Candidates] = {}
    async with AsyncClient(address) as client:
        left = iter(enumerate(asked))

        async def caller() -> None:
            for place, one in left:
                found[place] = await candidates(client, films, one)

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return [found[place] for place in range(len(asked))]


def table(found: Mapping[str, Array], blend: Pipeline, gain: Ratio) -> Table:
    """Returns what was measured, for people."""
    drawn = Table("order", "HR@10", "to popularity", "promise", title=f"Films for {len(found['blend'])} people")
    for name, shares in found.items():
        drawn.add_row(name, f"{shares.mean():.4f}", f"{shares.mean() / found['popularity'].mean():.2f}", "")
    drawn.add_row(gain.claim.name, "", gain.interval.text(2), f"{gain.promise}: {gain.verdict}")
    drawn.add_section()
    for name, weight in zip(FEATURES, blend[-1].coef_[0], strict=True):
        drawn.add_row(f"weight of {name}", f"{weight:+.2f}", "", "")
    return drawn


@click.command()
@click.option("--people", type=click.IntRange(20), help="Only so many people, for a look.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
def main(people: int | None, report: Path | None) -> None:
    """Measure recommendations of films by popularity, by text, and by both blended."""
    folder = samples.movielens()
    documents = rows.read(folder / "films.jsonl")
    ratings = pyarrow.csv.read_csv(folder / "ratings.csv").sort_by([("time", "ascending"), ("person", "ascending")])
    persons, rated, stars, times = (ratings[name].to_numpy() for name in ("person", "film", "stars", "time"))
    places = {str(one["id"]): place for place, one in enumerate(documents)}
    rated = np.array([places[str(id_)] for id_ in rated])
    films = Films(documents, times, rated, stars)
    each = list(clicks(persons, rated, stars, times))[:people]
    fit, test = ([one for some in each for one in some[part]] for part in (slice(_CLICKS), slice(_CLICKS, None)))
    with served.answering({"encoder": samples.embedding_model()}, {"films": {"embedding": "encoder"}}) as (address, _):
        with Client(address) as client:
            served.write(client, "films", [Document(**one) for one in documents])
        found = asyncio.run(all_candidates(address, films, [*fit, *test]))
    blend = fitted(found[: len(fit)])
    shares = hits(blend, found[len(fit) :])
    gain = compared(shares)
    result = {"hr@10": {name: round(float(some.mean()), 4) for name, some in shares.items()}}
    served.conclude(table(shares, blend, gain), result | {"ratio": gain.to_json()}, report)


if __name__ == "__main__":
    main()
