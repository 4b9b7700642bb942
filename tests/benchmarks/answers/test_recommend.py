"""What is known at a click, and what is fitted on it; Search itself is tested with the server."""

import numpy as np
import pytest

from tuneserve.benchmarks.answers import recommend
from tuneserve.benchmarks.answers.recommend import Candidates, Click, Films


def document(number: int, genres: str, year: str) -> dict[str, object]:
    return {"id": f"f{number}", "title": "A", "text": f"{genres}.", "metadata": {"id": f"f{number}", "year": year}}


def test_only_what_was_rated_before_counts() -> None:
    documents = [document(0, "War, Drama", "1995"), document(1, "War", ""), document(2, "Comedy", "1985")]
    day = 86400
    times = np.array([0, 20 * day, 21 * day, 22 * day])
    films = Films(documents, times, np.array([0, 0, 1, 2]), np.array([5.0, 5, 1, 4]))
    often, lately, stars = films.rated(22 * day)
    assert (often.tolist(), lately.tolist()) == ([2, 1, 0], [1, 1, 0])
    assert stars[0] > stars[2] == 3.5 > stars[1]
    assert films.years.tolist() == [1995, 1990, 1985]
    assert films.genres @ films.genres[1] == pytest.approx([0.5**0.5, 1, 0])


def test_a_click_knows_what_came_before_it() -> None:
    # Of two people: one has enough likes, the other one too few.
    stars = [5, 1, 4, 3, *[5] * 6, 4, 4]
    people, films = [1] * 10 + [2, 2], [*range(10), 0, 1]
    [some] = recommend.clicks(*map(np.array, (people, films, stars, range(12))))
    assert [one.film for one in some] == [4, 5, 6, 7, 8, 9]
    first = some[0]
    assert (first.person, first.time, first.liked, first.disliked) == (1, 4, [0, 2], [1])
    assert first.seen == {0, 1, 2, 3}


def test_a_blend_learns_which_feature_tells() -> None:
    chance = np.random.default_rng(0)
    some = []
    for person in range(60):
        features = chance.normal(size=(30, 6))
        film = int(np.argmax(features[:, 3]))
        first = {"popularity": np.arange(10), "text": np.argsort(-features[:, 3])[:10]}
        some.append(Candidates(np.arange(30), features, Click(person % 30, film, 0, [], [], frozenset()), first))
    blend = recommend.fitted(some[:30])
    shares = recommend.hits(blend, some[30:])
    assert shares["text"].mean() == 1
    assert shares["blend"].mean() > 0.9 > 0.6 > shares["popularity"].mean()
    gain = recommend.compared(shares)
    assert gain.verdict == "kept"
    assert 1.15 < gain.interval.low < gain.interval.mean < gain.interval.high
    assert len(recommend.table(shares, blend, gain).rows) == 4 + len(recommend.FEATURES)


def test_the_first_of_equal_scores_is_first() -> None:
    assert recommend.best(np.array([1.0, 2, 2, 0]), np.array([0, 2, 1]), 2).tolist() == [2, 1]
