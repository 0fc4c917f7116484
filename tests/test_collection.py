"""The tests as a whole: what they are called."""

import os
import subprocess
import sys

import pytest
from jobs import ROOT


@pytest.mark.slow
def test_collecting_again_finds_the_same_names(request: pytest.FixtureRequest) -> None:
    """At another time, with other hashes: workers of pytest-xdist that disagree run nothing at all."""
    options = ("-o", "addopts=", "-p", "no:cacheprovider", "--collect-only", "-q")
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    again = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stdout
    assert {item.nodeid for item in request.session.items} <= set(again.stdout.splitlines())
