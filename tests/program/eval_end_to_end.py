#!/usr/bin/env python3
"""tactic eval on the real model: kills at any moment, resumption, tasks, report, bad input.

Needs TACTIC_TEST_MODEL (SmolLM2-135M) and TACTIC_TEST_BIN (folder of the program).
"""
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import tempfile
import time
import unittest

MODEL = os.environ.get("TACTIC_TEST_MODEL", "")
TACTIC = os.path.join(os.environ.get("TACTIC_TEST_BIN", "build/bin"), "tactic")


def words(count):
    """A text without any file: numbered sentences, so that no two are equal."""
    names = ["hacker", "kludge", "daemon", "parser", "kernel", "cookie", "thunk", "vector"]
    return " ".join(f"In note {i} the {names[i % 8]} met the {names[(i * 5 + i // 8) % 8]} and wrote it down." for i in range(count))


def run(*arguments, code=0):
    done = subprocess.run([TACTIC, "eval", *map(str, arguments)], capture_output=True, text=True, timeout=900)
    if code is not None and done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}, not {code}: {arguments}\n{done.stderr}")
    return done


def samples(path):
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(record := json.loads(line))["key"]: record for line in lines if '"key"' in line}


@unittest.skipUnless(os.path.isfile(MODEL), "TACTIC_TEST_MODEL is not there")
class OnTheModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.folder.name)
        cls.text = cls.dir / "text.txt"
        cls.text.write_text(words(200), encoding="utf-8")
        cls.cache = cls.dir / "cache"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def closeness(self, output):
        return ["fig9", "-m", MODEL, "-f", self.text, "-c", 1200, "-s", 3, "-w", 1, "--methods", "full,paper,tactic,quest,h2o",
                "-p", "0.7,0.9", "--cache", self.cache, "-o", output]

    def test_finished_samples_survive_kills_at_any_moment(self):
        whole = self.dir / "whole"
        run(*self.closeness(whole))
        wanted = samples(whole / "fig9.jsonl")
        self.assertEqual(len(wanted), 13)  # full; for both masses paper, tactic, and quest and h2o at the budget of each
        broken = self.dir / "broken"
        path = broken / "fig9.jsonl"
        seed = random.randrange(1 << 30)
        moments = random.Random(seed)
        kept, kills = set(), 0
        while kills < 40:
            process = subprocess.Popen([TACTIC, "eval", *map(str, self.closeness(broken))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # Later and later, so that the work gets done in the end.
            deadline = time.monotonic() + moments.uniform(0.05, 0.8 + 0.4 * kills)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if process.poll() is not None:
                self.assertEqual(process.returncode, 0)
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            now = {json.loads(line)["key"] for line in text.splitlines(keepends=True) if line.endswith("\n") and '"key"' in line}
            self.assertLessEqual(kept, now, f"a finished sample vanished, seed {seed}")
            kept = now
        self.assertGreater(kills, 1)
        found = samples(path)
        self.assertEqual(found.keys(), wanted.keys(), f"seed {seed}")
        # Clusters that an earlier arm made are those that an arm makes itself: kills decide which arm has them from whom. Sums of
        # several threads differ by rounding.
        for key, record in wanted.items():
            self.assertAlmostEqual(found[key]["result"]["kl_mean"], record["result"]["kl_mean"], delta=1e-3, msg=f"{record['config']['arm']}, seed {seed}")
        keys = re.findall(r'"key":"([0-9a-f]+)"', path.read_text())
        self.assertEqual(len(keys), len(set(keys)), "a sample was measured twice")
        again = run(*self.closeness(broken))
        self.assertIn("13 samples", again.stdout)
        self.assertIn("0 measured now", again.stdout)

    def test_ruler_answers_and_report(self):
        output = self.dir / "tasks"
        run("table4", "-m", MODEL, "-f", self.text, "-c", 1500, "-n", 2, "--tasks", "niah_single_1,niah_multikey_2", "--methods",
            "full,tactic", "-p", "0.9", "--cache", self.cache, "-o", output)
        found = samples(output / "ruler.jsonl").values()
        self.assertEqual(len(found), 8)
        for record in found:
            self.assertLessEqual(record["config"]["context"], 1500)
            self.assertIn(record["result"]["score"], (0, 1))
        run("table1", "-m", MODEL, "-f", self.text, "-c", 1200, "-s", 1, "-w", 1, "-p", "0.9", "--methods", "paper", "--cache", self.cache,
            "-o", output)
        page = self.dir / "report.html"
        run("report", output, "-o", page)
        text = page.read_text(encoding="utf-8")
        for part in ("niah_single_1", "McNemar", "cluster optimal"):
            self.assertIn(part, text)

    def test_cluster_order_needs_no_fewer_tokens_than_exact_order(self):
        output = self.dir / "order"
        run("table1", "-m", MODEL, "-f", self.text, "-c", 1200, "-s", 2, "-w", 1, "-p", "0.5,0.9", "--cache", self.cache, "-o", output)
        found = list(samples(output / "table1.jsonl").values())
        self.assertGreater(len(found), 3)
        for record in found:
            by_error = record["config"]["arm"].startswith("tactic") and "goal=mass" not in record["config"]["arm"]
            self.assertEqual("alone" in record["result"], not by_error, "goal error has no budget of a head alone")
            for part in ("united",) if by_error else ("alone", "united"):
                figures = record["result"][part]
                self.assertLessEqual(figures["optimal"], figures["cluster_optimal"] + 1e-9)
                self.assertGreaterEqual(figures["achieved"], 0.5 * record["config"]["mass"])
                self.assertLessEqual(figures["achieved"], 1 + 1e-9)

    def test_groups_explain_a_share_of_the_variance_of_keys_and_of_scores(self):
        output = self.dir / "groups"
        run("fig6", "-m", MODEL, "-f", self.text, "-c", 1200, "-s", 2, "-w", 1, "--cache", self.cache, "-o", output)
        found = list(samples(output / "fig6.jsonl").values())
        self.assertEqual(len(found), 2)
        for record in found:
            self.assertEqual(len(record["result"]["heads"]), 30 * 3)
            for head in record["result"]["heads"]:
                for field in ("clusters", "pages", "score_clusters", "score_pages"):
                    self.assertTrue(0 < head[field] < 1, f"{field} of {head}")

    def test_bad_input_is_one_line_that_names_it(self):
        def message(*arguments):
            done = run(*arguments, code=None)
            self.assertNotEqual(done.returncode, 0)
            line = done.stderr.strip().splitlines()[-1]
            self.assertTrue(line.startswith("tactic: "), line)
            return line

        out = self.dir / "bad"
        self.assertIn("--text", message("fig9", "-m", MODEL, "-o", out))
        self.assertIn("--model", message("fig9", "-f", self.text, "-o", out))
        self.assertIn("--data", message("table2", "-m", MODEL, "-o", out))
        self.assertIn("hotpotqa.jsonl", message("table2", "-m", MODEL, "--data", self.dir, "-o", out))
        self.assertIn("context of 8192", message("fig9", "-m", MODEL, "-f", self.text, "-c", 9000, "-o", out))
        self.assertIn("fewer than a window", message("fig9", "-m", MODEL, "-f", self.text, "-c", 8000, "-s", 8, "-o", out))
        self.assertIn("has no results", message("report", self.dir))
        self.assertIn("is about a GPU", message("fig12", "-o", out))
        (out / "fig4.jsonl").write_text('{"tactic_eval":1,"version":"0.0.1","experiment":"fig4"}\n')
        self.assertIn("version 0.0.1", message("fig4", "-m", MODEL, "-f", self.text, "-o", out))


if __name__ == "__main__":
    unittest.main(verbosity=2)
