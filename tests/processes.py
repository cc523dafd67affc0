"""Scripts of tests in a process of their own, which start more of them."""

import os
import subprocess
import sys


def run_script(script, *args):
    """Run a script, one thread a process; the test fails with what it said if it does."""
    done = subprocess.run(
        [sys.executable, script, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
