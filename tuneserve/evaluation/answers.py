"""Written answers beside the expected ones, as translations and summaries are measured.

    chrf                      character n-grams: chrF (Popović 2015), 0 to 100, by sacrebleu
    bleu                      word n-grams: BLEU (Papineni et al. 2002), 0 to 100, by sacrebleu, with its tokenizer 13a,
                              or zh where answers have a script without spaces
    rouge1, rouge2, rougeL    words, pairs of words, longest common subsequence: the mean F1 of ROUGE (Lin 2004), 0 to
                              1, by rouge-score, without its stemmer; a word is a character in scripts without spaces

Rows without an expected answer (tool calls) are not compared.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence

from google.protobuf import json_format

from tuneserve.checkpoint.examples import Example
from tuneserve.evaluation import quality
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# By the names of the setting `answer_metrics`.
PACKAGES: Mapping[str, str] = {"chrf": "sacrebleu", "bleu": "sacrebleu", "rouge": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL")


def missing(names: Sequence[str]) -> list[str]:
    """Returns the packages that these metrics need, and that are not installed."""
    return sorted({PACKAGES[name] for name in names if importlib.util.find_spec(PACKAGES[name]) is None})


def chosen(manifest: pb.Checkpoint) -> list[str]:
    """Returns the metrics that the last training was set to measure, if their packages are installed."""
    trained = next((step for step in reversed(manifest.lineage) if step.name == "finetune"), pb.Step())
    names: list[str] = json_format.MessageToDict(trained.config).get("answer_metrics", [])
    if absent := missing(names):
        logger.warning("%s can't be measured: pip install %s", ", ".join(names), " ".join(absent))
        return []
    return names


def room(asked: Sequence[Example], limit: int) -> int:
    """Returns how many tokens an answer may have: half as many again as the longest expected one, at most half of the
    limit.
    """
    longest = max((sum(one.counted) for one in asked), default=0)
    return min(limit // 2, longest * 3 // 2)


def measure(names: Sequence[str], expected: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of these names; none if no row has an expected answer."""
    pairs = [(gold.strip(), guess.strip()) for gold, guess in zip(expected, given, strict=True) if gold.strip()]
    if not names or not pairs:
        return {}
    golds, guesses = ([pair[side] for pair in pairs] for side in (0, 1))
    found: dict[str, float] = {}
    if "chrf" in names:
        from sacrebleu.metrics import CHRF

        found["chrf"] = float(CHRF().corpus_score(guesses, [golds]).score)
    if "bleu" in names:
        from sacrebleu.metrics import BLEU

        tokens = "zh" if quality.is_spaceless("".join(golds)) else "13a"
        found["bleu"] = float(BLEU(tokenize=tokens).corpus_score(guesses, [golds]).score)
    if "rouge" in names:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(ROUGE, tokenizer=_Words())
        scores = [scorer.score(gold, guess) for gold, guess in pairs]
        found |= {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGE}
    return found


class _Words:
    """A tokenizer of rouge-score, whose own knows English letters alone."""

    def tokenize(self, text: str) -> list[str]:
        return quality.words(text)
