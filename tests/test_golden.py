"""The golden fixture itself: it accepts with the flag, and shows a difference without."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
TEST = "def test_text(golden):\n    golden('folder/text.txt', {text!r})\n"

MISSED = """\
the text is not that of tests/golden/folder/text.txt
--- golden/folder/text.txt (accepted)
+++ golden/folder/text.txt (now)
@@ -1,2 +1,2 @@
 one
-two
+three
to accept: python -m pytest "test_it.py::test_text" --update-golden
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> object:
    """Run the inner test on a text, in a folder with a copy of our conftest."""
    pytester.makeconftest(CONFTEST.read_text())

    def go(text: str, *flags: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=TEST.format(text=text))
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *flags)

    return go


def test_a_text_is_accepted_and_then_holds(run, pytester) -> None:
    run("one\ntwo\n", "--update-golden").assert_outcomes(passed=1)
    assert (pytester.path / "golden/folder/text.txt").read_text() == "one\ntwo\n"
    run("one\ntwo\n").assert_outcomes(passed=1)


def test_another_text_shows_the_difference(run) -> None:
    run("one\ntwo\n", "--update-golden")
    result = run("one\nthree\n")
    result.assert_outcomes(failed=1)
    assert MISSED in result.stdout.str()


def test_an_empty_text_is_not_accepted_unseen(run) -> None:
    run("").assert_outcomes(failed=1)
