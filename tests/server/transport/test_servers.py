"""The ports: which services each has, and what is not bound."""

import pytest

from tuneserve.errors import UserError
from tuneserve.server.app import App
from tuneserve.server.config import ModelConfig, ServerConfig


def bert_config(make_bert, **addresses: str) -> ServerConfig:
    return ServerConfig(
        models={"sentiment": ModelConfig(path=make_bert("ForSequenceClassification", ["neg", "pos"]))},
        **{"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", **addresses},
    )


async def test_a_port_in_use_is_refused_not_shared(served, make_bert):
    with pytest.raises(UserError, match="listen: can't bind"):
        App(bert_config(make_bert, listen=served.app.address))
    with pytest.raises(UserError, match="metrics_listen: can't bind"):
        App(bert_config(make_bert, metrics_listen=served.app.metrics_address))
