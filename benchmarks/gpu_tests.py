"""Runs the GPU tests and notes each one's outcome as soon as it is over: what comes after a killed process goes on.

python -m benchmarks.gpu_tests RECORD [TESTS…]     (tests/test_gpu.py where they are left out)

RECORD is a file of ``make gpu``. Tests that have an outcome in it are not run. Exit code 0 where all others got one.
"""

import faulthandler
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.children import ROOT
from benchmarks.gpu_record import BROKE_OFF, Record, read_record

LONGEST_TEST = 240  # seconds; a test that waits for a GPU that hangs holds Python's lock, and only a thread of C helps
LONGEST_REASON = 3000  # characters


class Outcomes:
    """A pytest plugin."""

    def __init__(self, record: Record):
        self.record = record
        self.stderr = os.fdopen(os.dup(2), "w")  # pytest takes the one that there is
        self.now: dict[str, Any] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.record.tests[report.nodeid] = {"outcome": "failed", "seconds": 0.0, "why": reason(report)}
            self.record.save()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.record.tests]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = {"outcome": BROKE_OFF, "seconds": 0.0, "why": "the process did not survive it"}
        self.record.tests[nodeid] = self.now
        self.record.save()
        faulthandler.dump_traceback_later(LONGEST_TEST, exit=True, file=self.stderr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.now["seconds"] += report.duration
        if report.failed:
            self.now |= {"outcome": "failed", "why": reason(report)}
        elif report.skipped:
            self.now |= {"outcome": "skipped", "why": reason(report)}
        elif report.when == "call":
            self.now |= {"outcome": "passed", "why": ""}

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.record.save()

    def pytest_keyboard_interrupt(self) -> None:
        """The time is up, which is no fault of the test's: it is run by the next call."""
        self.record.tests = {name: test for name, test in self.record.tests.items() if test is not self.now}
        self.record.save()


def reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):  # of a skipped test: file, line, why
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return report.longreprtext[-LONGEST_REASON:]


def main() -> int:
    file, *tests = sys.argv[1:]
    words = ["-m", "gpu", "-p", "no:cacheprovider", *(tests or [str(ROOT / "tests" / "test_gpu.py")])]
    code = pytest.main(words, plugins=[Outcomes(read_record(Path(file)))])
    told = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    return 0 if code in told else int(code)


if __name__ == "__main__":
    sys.exit(main())
