"""The two commands that docs/answers.md begins with, on a real encoder: what was never said in these words is found."""

import json
import subprocess
import sys

import pytest
import yaml

from tuneserve import samples
from tuneserve.serving import launched

pytestmark = pytest.mark.engine

DOCUMENTS = [
    {"id": "deposit", "title": "Who pays the deposit?", "text": "The tenant pays it. It is at most three rents."},
    {"id": "pets", "text": "Cats and dogs are welcome. Please keep them on a lead in the yard."},
    {"id": "part", "text": "Ask for spare part XJ-2000 if the heating fails."},
    {"id": "salaries", "text": "Cats cost the house nothing.", "readers": ["group:hr"]},
]


def test_documents_are_found_by_meaning_and_by_words(tmp_path):
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    models = {"encoder": {"path": str(samples.embedding_model())}}
    indexes = {"docs": {"path": "docs", "embedding": "encoder"}}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump({"models": models, "indexes": indexes}))
    with launched("--config", str(tmp_path / "server.yaml")) as server:

        def tuneserve(*arguments: str) -> str:
            command = [sys.executable, "-m", "tuneserve.cli", *arguments, "--target", server.addresses.grpc]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        def found(query: str, *options: str) -> list[str]:
            answer = json.loads(tuneserve("call", "search", "--index", "docs", "--json", *options, query))
            return [one["document_id"] for one in answer["passages"]]

        said = [tuneserve("index", "docs", str(tmp_path / "docs.jsonl")).partition(", version")[0] for _ in range(2)]
        assert said == ["docs: 4 documents written, 0 unchanged", "docs: 0 documents written, 4 unchanged"]
        assert found("Am I allowed to have a kitten?")[0] == "pets"
        assert found("How much money does the landlord want first?")[0] == "deposit"
        assert found("xj 2000")[0] == "part"
        assert "salaries" not in found("cats")
        assert "salaries" in found("cats", "--reader", "group:hr")
