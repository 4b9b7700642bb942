import json

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.answers import citations
from tuneserve.benchmarks.answers.faqs import Faq
from tuneserve.checkpoint import rows
from tuneserve.errors import UserError
from tuneserve.server.answer import prompt
from tuneserve.server.answer.markers import NOT_FOUND
from tuneserve.v1 import answer_pb2 as pb

PASSAGES = [
    pb.Passage(document_id="3", text="The roof is red."),
    pb.Passage(document_id="7", text="Wait two weeks. The fee is 9.5 kronor. It may rise."),
]
GOOD = {"sentence": "Yes.", "cited": "Yes.", "holds": True}


def test_a_model_is_asked_as_the_server_asks_it():
    [served] = prompt.answering([pb.AnswerMessage(role="user")], "How high is the fee?", PASSAGES).messages
    assert citations.asked("How high is the fee?", PASSAGES) == served.content


def test_a_row_says_what_the_right_passage_says_and_its_number():
    _, answered = citations.row("How high is the fee?", 7, PASSAGES)["messages"]
    assert answered == {"role": "assistant", "content": "Wait two weeks. [2] The fee is 9.5 kronor. [2]"}


def test_a_row_without_the_right_passage_says_so():
    _, answered = citations.row("How high is the fee?", 8, PASSAGES)["messages"]
    assert answered["content"] == NOT_FOUND


def test_each_citation_is_judged_with_what_it_cites():
    faq = Faq("fees", ["Wait two weeks. The fee is 900 kronor."], [("How high is the fee?", 0)])
    citation = pb.Citation(start=5, end=22, document_id="0", document_start=16, document_end=38)
    answer = pb.AnswerResponse(text="Yes. It is 900 kronor.", end=pb.AnswerEnd(citations=[citation]))
    [row] = citations.cited(faq, "How high is the fee?", answer)
    assert (row["sentence"], row["cited"]) == ("It is 900 kronor.", "The fee is 900 kronor.")


def test_what_was_judged_is_counted(tmp_path):
    rows.write(tmp_path / "citations.jsonl", [GOOD] * 2 + [GOOD | {"sentence": "So"}] + [GOOD | {"holds": False}])
    (tmp_path / "outcomes.json").write_text(json.dumps({"answered": 4}))
    done = CliRunner().invoke(citations.main, [str(tmp_path), "--report", str(tmp_path / "report.md")])
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["hold"], result["judged"], result["copied"]) == (3, 4, 3)
    assert result["outcomes"] == {"answered": 4}
    assert "0.75 (0.30 to 0.95)" in (tmp_path / "report.md").read_text()


def test_a_citation_that_was_not_judged_is_named(tmp_path):
    rows.write(tmp_path / "citations.jsonl", [GOOD, GOOD | {"holds": None}])
    with pytest.raises(UserError, match="line 2 is not judged"):
        citations.judged(tmp_path / "citations.jsonl")
