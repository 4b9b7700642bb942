"""What vLLM logs of itself: its errors, and nothing that repeats a request."""

import subprocess
import sys
from pathlib import Path

from tuneserve.server import engine

CODE = """
import json, logging, logging.config, sys
logging.config.dictConfig(json.load(open(sys.argv[1])))
logging.getLogger("vllm.v1.engine.core").error("the engine ended")
logging.getLogger("vllm.v1.engine.core").warning("a warning")
# With the stop strings and the forms of the requests that ran, with tokens, with a grammar, and with answers.
logging.getLogger("vllm.logging_utils.dump_input").error("CANARY")
logging.getLogger("vllm.v1.core.sched.scheduler").error("CANARY")
logging.getLogger("vllm.v1.structured_output.backend_guidance").error("CANARY")
for name in ("parser.qwen3", "reasoning.granite", "tool_parsers.hermes_tool_parser"):
    logging.getLogger(f"vllm.{name}").error("CANARY")
"""


def test_errors_are_logged_without_what_callers_sent():
    file = Path(engine.__file__).with_name("vllm_logging.json")
    result = subprocess.run([sys.executable, "-c", CODE, file], capture_output=True, text=True, check=True, timeout=60)
    assert "the engine ended" in result.stderr
    assert "a warning" not in result.stderr
    assert "CANARY" not in result.stderr + result.stdout
