"""Jobs: the same work for every system."""

from tuneserve.benchmarks.serving.workers import job


def test_jobs_are_made_of_their_seed() -> None:
    assert job.prompts(3, 8, 1000, seed=1) == job.prompts(3, 8, 1000, seed=1) != job.prompts(3, 8, 1000, seed=2)
    ids = [id_ for prompt in job.prompts(50, 50, 200, seed=1) for id_ in prompt]
    assert (min(ids) >= 100, max(ids) < 200) == (True, True)
    assert sorted(job.texts(64, 1)) == sorted(job.texts(64, 2))
    assert job.texts(64, 1) != job.texts(64, 2)
