"""What these tests share with those of the server and of training."""

from ...finetune.conftest import encoder, run  # noqa: F401
from ...server.conftest import until  # noqa: F401
