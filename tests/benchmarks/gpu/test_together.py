"""Systems that start together and end together, as processes."""

import json
import subprocess
import sys
import textwrap


def test_those_that_are_up_in_time_are_used_and_none_outlives_the_block() -> None:
    # In a process of its own, because all of its children are killed.
    program = textwrap.dedent("""
        import json, subprocess, sys, time
        from contextlib import contextmanager
        import psutil
        from tuneserve.benchmarks import processes
        from tuneserve.benchmarks.gpu.together import together
        from tuneserve.benchmarks.serving.systems import System
        from tuneserve.errors import StepFailed

        # Its child is in a session of its own, as an engine may be.
        NESTED = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"

        @contextmanager
        def system(seconds, fails=False):
            with subprocess.Popen([sys.executable, "-c", NESTED], start_new_session=True) as process:
                time.sleep(seconds)
                if fails:
                    process.kill()
                    raise StepFailed("it ended", "its last words")
                yield System(process.pid, None, "model")

        processes.adopt_orphans()
        starts = {"late": lambda: system(60), "up": lambda: system(0.5), "broken": lambda: system(0.5, fails=True)}
        begun = time.monotonic()
        with together(starts, 5) as found:
            shown = {name: [one.system is not None, one.why] for name, one in found.items()}
            counted = len(psutil.Process().children(recursive=True))
        left = len(psutil.Process().children(recursive=True))
        print(json.dumps([shown, counted >= 4, left]))
    """)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert ended.stdout, ended.stderr
    shown, were_running, left = json.loads(ended.stdout)
    assert shown == {
        "late": [False, "not up within 5 s"],
        "up": [True, ""],
        "broken": [False, "it ended\nits last words"],
    }
    assert list(shown) == ["late", "up", "broken"]
    assert were_running
    assert left == 0
