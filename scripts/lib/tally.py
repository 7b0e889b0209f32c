"""Counts what a ctest run (its JUnit file) passed and failed: GoogleTest cases one by one, other tests as one each."""
import re
import sys
import xml.etree.ElementTree as tree


def tally(path):
    passed = failed = 0
    for test in tree.parse(path).getroot().iter("testcase"):
        output = test.findtext("system-out") or ""
        good = len(re.findall(r"^\[       OK \]", output, re.MULTILINE))
        bad = len(set(re.findall(r"^\[  FAILED  \] (\S+?),? .*\(\d+ ms\)", output, re.MULTILINE)))
        ok = test.get("status") == "run"
        if good + bad == 0:
            good = int(ok)
        if not ok and bad == 0:  # crashed, timed out, or no GoogleTest program
            bad = 1
        passed += good
        failed += bad
    return passed, failed


if __name__ == "__main__":
    print(*tally(sys.argv[1]))
