from tuneserve.benchmarks.claims import Claim, Ratio, Spread, ratios, spread


def test_a_ratio_is_of_one_round() -> None:
    measured = {"a": [10.0, 20.0, 90.0], "b": [10.0, 10.0, 100.0]}
    [ratio] = ratios([Claim("a to b", "a", "b")], measured)
    # Medians of all rounds would give 2.
    assert ratio.spread == Spread(1.0, 0.9, 2.0)


def test_a_promise_is_of_the_median() -> None:
    low, high = spread([0.9, 0.94, 1.2]), spread([0.9, 0.96, 1.2])
    at_least, at_most = Claim("", "a", "b", at_least=0.95), Claim("", "a", "b", at_most=0.95)
    assert [Ratio(at_least, one).kept for one in (low, high)] == [False, True]
    assert [Ratio(at_most, one).kept for one in (low, high)] == [True, False]
    assert Ratio(Claim("", "a", "b"), low).kept is None


def test_what_did_not_run_makes_no_ratio() -> None:
    claims = [Claim("", "a", "b", at_least=1), Claim("", "a", "c", at_least=1)]
    assert [ratio.claim for ratio in ratios(claims, {"a": [1.0], "c": [1.0], "d": []})] == claims[1:]
    assert ratios([Claim("", "a", "d")], {"a": [], "d": []}) == []


def test_json() -> None:
    [ratio] = ratios([Claim("x", "a", "b", at_most=0.7)], {"a": [2.0], "b": [3.0]})
    assert ratio.to_json() == {"name": "x", "ratio": [0.6667, 0.6667, 0.6667], "promise": "≤ 0.7", "kept": True}
