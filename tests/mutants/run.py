#!/usr/bin/env python3
"""Breaks important lines one by one (mutants.txt) and runs the suite that should notice: a test of the tests.

    tests/mutants/run.py BUILD [--only WORD]... [--ninja "ninja"]

BUILD is a configured build folder of this checkout, which must have no changes of its own in the files that are broken: they are
put back after each run. A mutant is killed when its suite fails or hangs. One that does not compile says nothing about the tests: mend it. The
exit code is the number of survivors and of those.
"""
import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds that a suite may take


def mutants():
    for block in (ROOT / "tests/mutants/mutants.txt").read_text().split("\n\n"):
        lines = [line for line in block.strip("\n").split("\n") if not line.startswith("#")]
        if len(lines) < 2:
            continue
        file, suite, what = lines[0].split(" ", 2)
        old = "\n".join(line[1:] for line in lines[1:] if line.startswith("-"))
        new = "\n".join(line[1:] for line in lines[1:] if line.startswith("+"))
        yield ROOT / file, suite, what, old, new


def outcome(build, ninja, suite):
    target = f"test_{suite}"
    if subprocess.run([*ninja.split(), "-C", build, target], capture_output=True).returncode != 0:
        return "does not compile"
    try:
        done = subprocess.run([f"{build}/bin/{target}", "--gtest_fail_fast", "--gtest_brief=1"], capture_output=True, text=True,
                              timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return "SURVIVED"
    failed = [line.split()[3].rstrip(",") for line in done.stdout.split("\n") if line.startswith("[  FAILED  ]")]
    return failed[0] if failed else "crashes"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--ninja", default="ninja")
    options = parser.parse_args()
    survivors = 0
    sound = set()
    for path, suite, what, old, new in mutants():
        name = f"{path.relative_to(ROOT)}: {what}"
        if options.only and not any(word in f"{name} {suite}" for word in options.only):
            continue
        if suite not in sound and outcome(options.build, options.ninja, suite) != "SURVIVED":
            sys.exit(f"test_{suite} does not pass as it is")
        sound.add(suite)
        text = path.read_text()
        if text.count(old) < 1:
            print(f"{name}: the line is gone, mend mutants.txt", flush=True)
            survivors += 1
            continue
        try:
            path.write_text(text.replace(old, new, 1))
            result = outcome(options.build, options.ninja, suite)
        finally:
            path.write_text(text)
        survivors += result in ("SURVIVED", "does not compile")
        print(f"{name}: {result}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
