"""tuneserve schema."""

import json

import pytest

from tuneserve import schema

from ..conftest import tuneserve


@pytest.mark.parametrize("name", schema.FILES)
def test_schemas_are_printed(name):
    assert json.loads(tuneserve("schema", name).stdout) == schema.json_schema(name)
