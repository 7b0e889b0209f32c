#!/usr/bin/env python3
"""The program on the real model: answers, cache, comparison, errors, capture, inspection.

Needs TACTIC_TEST_MODEL (SmolLM2-135M) and TACTIC_TEST_BIN (folder of the program); TACTIC_TEST_TEXT is used where it exists.
"""
import html.parser
import csv
import json
import os
import pathlib
import re
import resource
import signal
import struct
import subprocess
import tempfile
import unittest

MODEL = os.environ.get("TACTIC_TEST_MODEL", "")
TACTIC = os.path.join(os.environ.get("TACTIC_TEST_BIN", "build/bin"), "tactic")
TEXT = os.environ.get("TACTIC_TEST_TEXT", "")
COMPARE_KEYS = """model context_tokens mass method prefill_seconds cluster_seconds decode_tokens_per_second
    stock_fa_on_tokens_per_second stock_fa_off_tokens_per_second full_tokens_per_second full_kl_mean stock_noise_kl_mean
    paper_tokens_per_second paper_kl_mean paper_bytes_read_share kl_mean kl_p99 top1_agreement attended_share_mean
    estimated_mass_mean bytes_read_share stock_noise_top1_agreement full_top1_agreement paper_top1_agreement""".split()


def words(count):
    """A text without any file: numbered sentences, so that no two are equal."""
    names = ["hacker", "kludge", "daemon", "parser", "kernel", "cookie", "thunk", "vector"]
    return " ".join(f"In note {i} the {names[i % 8]} met the {names[(i * 5 + i // 8) % 8]} and wrote it down." for i in range(count))


def run(*arguments, code=0, **more):
    done = subprocess.run([TACTIC, *map(str, arguments)], capture_output=True, text=True, timeout=600, **more)
    if code is not None and done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}, not {code}: {arguments}\n{done.stderr}")
    return done


@unittest.skipUnless(os.path.isfile(MODEL), "TACTIC_TEST_MODEL is not there")
class OnTheModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.folder.name)
        text = pathlib.Path(TEXT).read_text(encoding="utf-8")[:9000] if os.path.isfile(TEXT) else words(120)
        cls.long = cls.dir / "long.txt"   # about 2,000 tokens: long enough to be attended to sparsely
        cls.long.write_text(text, encoding="utf-8")
        cls.short = cls.dir / "short.txt"
        cls.short.write_text(text[:1200], encoding="utf-8")
        cls.cache = cls.dir / "cache"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def figures(self, *arguments, **more):
        path = self.dir / "figures.json"
        path.unlink(missing_ok=True)
        done = run(*arguments, "--json", path, **more)
        return json.loads(path.read_text()), done

    def test_a_second_question_reads_only_itself(self):
        common = ["run", "-m", MODEL, "-f", self.long, "-n", 6, "--cache", self.cache / "second"]
        first, _ = self.figures(*common, "-q", "What is described here?")
        second, _ = self.figures(*common, "-q", "Who wrote this text?")
        self.assertEqual(first["cached_tokens"], 0)
        self.assertGreater(first["prefilled_tokens"], 1000)
        self.assertLess(second["prefilled_tokens"], 60)
        self.assertEqual(second["cached_tokens"] + second["prefilled_tokens"], second["context_tokens"])
        self.assertEqual(second["cluster_seconds"], 0)
        uncached, _ = self.figures("run", "-m", MODEL, "-f", self.long, "-n", 6, "--no-cache", "-q", "Who wrote this text?")
        self.assertEqual(second["answer"], uncached["answer"])

    def test_a_comparison_has_every_figure_and_lossless_attention_is_as_near_as_the_engine_to_itself(self):
        figures, done = self.figures("run", "-m", MODEL, "-f", self.long, "-n", 12, "--rounds", 1, "--compare", "--no-cache")
        for key in COMPARE_KEYS:
            self.assertIn(key, figures)
        for key in COMPARE_KEYS:
            if key.endswith("per_second"):
                self.assertGreater(figures[key], 0, key)
        # A wrong transposition of V would give whole nats; the engine's own two differ by summation order only.
        self.assertGreater(figures["stock_noise_kl_mean"], 0)
        self.assertLess(figures["stock_noise_kl_mean"], 0.1)
        self.assertLess(figures["full_kl_mean"], 0.1)
        self.assertLess(figures["kl_mean"], 0.5)
        self.assertLess(figures["bytes_read_share"], 1)
        self.assertLess(figures["attended_share_mean"], 1)
        self.assertGreaterEqual(figures["estimated_mass_mean"], 0.85)
        self.assertIn("stock -fa off", done.stdout)

    def test_the_goal_is_the_users_by_option_or_environment(self):
        common = ["run", "-m", MODEL, "-f", self.long, "-n", 4, "--cache", self.cache / "goal"]
        error, _ = self.figures(*common)
        mass, _ = self.figures(*common, "--goal", "mass")
        named, _ = self.figures(*common, env={**os.environ, "TACTIC_GOAL": "mass"})
        over, _ = self.figures(*common, "--goal", "error", env={**os.environ, "TACTIC_GOAL": "mass"})
        promise, _ = self.figures(*common, "--promise")
        self.assertEqual([f["goal"] for f in (error, mass, named, over, promise)], ["error", "mass", "mass", "error", "mass"])
        self.assertEqual(named["attended_share_mean"], mass["attended_share_mean"])
        self.assertEqual(over["attended_share_mean"], error["attended_share_mean"])
        self.assertNotEqual(mass["attended_share_mean"], error["attended_share_mean"])
        self.assertGreater(promise["attended_share_mean"], mass["attended_share_mean"])
        self.assertIn("--goal", run(*common, code=2, env={**os.environ, "TACTIC_GOAL": "speed"}).stderr)

    def test_a_plug_in_that_is_told_to_stay_out_is_an_error_that_says_so_and_stock_still_runs(self):
        common = ["run", "-m", MODEL, "-f", self.short, "-n", 2, "--no-cache"]
        env = {**os.environ, "TACTIC_DISABLE": "1"}
        refused = run(*common, code=1, env=env)
        self.assertEqual(refused.stderr, "tactic: TACTIC_DISABLE is set, so the plug-in stays out of the engine: unset it, or pass "
                         "--method stock\n")
        self.assertEqual(refused.stdout, "")
        self.assertIn("tokens/s", run(*common, "--method", "stock", env=env).stderr)

    def test_bad_input_is_one_line_that_names_it_and_the_remedy(self):
        short, dir = self.short, self.dir
        (dir / "empty.txt").write_text("")
        (dir / "latin.txt").write_bytes(b"caf\xe9 " * 20)
        (dir / "no.gguf").write_text("this is no model")
        (dir / "cut.gguf").write_bytes(pathlib.Path(MODEL).read_bytes()[:3_000_000])
        model = bytearray(pathlib.Path(MODEL).read_bytes())
        at = model.index(b"llama", model.index(b"general.architecture") + 20)
        model[at:at + 5] = b"lxama"
        (dir / "strange.gguf").write_bytes(model)
        (dir / "too_long.txt").write_text(words(1200))
        stock = ["--method", "stock", "--no-cache"]
        cases = [
            (["run", "-m", dir / "none.gguf", "-f", short, *stock], 1, "none.gguf cannot be read"),
            (["run", "-m", dir / "no.gguf", "-f", short, *stock], 1, "not a GGUF file"),
            (["run", "-m", dir / "cut.gguf", "-f", short, *stock], 1, "cut.gguf cannot be loaded"),
            (["run", "-m", dir / "strange.gguf", "-f", short, *stock], 1, "architecture"),
            (["run", "-m", MODEL, "-f", dir / "none.txt", *stock], 1, "none.txt cannot be read"),
            (["run", "-m", MODEL, "-f", dir / "empty.txt", *stock], 1, "is empty"),
            (["run", "-m", MODEL, "-f", dir / "latin.txt", *stock], 1, "not UTF-8"),
            (["run", "-m", MODEL, "-f", dir / "too_long.txt", *stock], 1, "tokens (it has"),
            (["run", "-m", MODEL, "-f", short, "--method", "stock", "--cache", short / "x"], 1, "cache"),
            (["run", "-m", MODEL, "-f", short, "--json", dir / "nowhere" / "x.json", *stock], 1, "--json"),
            (["run", "-m", MODEL, "-f", short, "-p", "1.5"], 2, "(0, 1]"),
            (["run", "-m", MODEL, "-f", short, "-p", "0"], 2, "(0, 1]"),
            (["run", "-m", MODEL, "-f", short, "-p", "nan"], 2, "(0, 1]"),
            (["run", "-m", MODEL, "-f", short, "--method", "magic"], 2, "--method"),
            (["run", "-f", short], 2, "--model"),
            (["inspect"], 2, "--capture"),
            (["inspect", "-c", short], 1, "cannot be used"),
            (["capture", "-m", MODEL, "-f", short, "-n", 5000, "-s", 4, "-o", dir / "x.safetensors"], 1, "fewer than"),
            ([], 2, "--help"),
        ]
        for arguments, code, part in cases:
            with self.subTest(arguments=[str(a) for a in arguments]):
                done = run(*arguments, code=code)
                message = done.stderr.strip().split("\n")[-1]
                self.assertTrue(message.startswith("tactic: "), done.stderr)
                self.assertIn(part, message)
                self.assertEqual(len([line for line in done.stderr.split("\n") if line.startswith("tactic:")]), 1)
        self.assertEqual([p.name for p in self.dir.iterdir() if p.name.endswith(".part")], [])

    def test_a_document_that_is_too_long_loses_its_middle_when_asked_to(self):
        common = ["run", "-m", MODEL, "-f", self.long, "-n", 4, "--context", 300, "--method", "stock", "--no-cache"]
        self.assertIn("too long by", run(*common, code=1).stderr)
        figures, _ = self.figures(*common, "--truncate", "middle")
        self.assertEqual(figures["context_tokens"], 300 - 4)

    def test_a_damaged_cache_is_named(self):
        cache = self.cache / "damaged"
        common = ["run", "-m", MODEL, "-f", self.short, "-n", 2, "--cache", cache, "--method", "stock"]
        run(*common)
        state, = cache.glob("*.state")
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        self.assertIn(f"{state} is damaged (its checksum differs): delete it", run(*common, code=1).stderr)
        state.write_bytes(content[:100])
        self.assertIn("is damaged", run(*common, code=1).stderr)
        state.unlink()
        run(*common)

    def test_a_full_disk_leaves_nothing_half_written(self):
        cache = self.cache / "full"
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        done = run("run", "-m", MODEL, "-f", self.short, "-n", 2, "--cache", cache, "--method", "stock", code=1, preexec_fn=limit)
        self.assertIn("cannot be written (File too large)", done.stderr)
        self.assertIn("--no-cache", done.stderr)
        self.assertEqual(list(cache.iterdir()), [])

    def test_ctrl_c_stops_the_answer_and_shows_the_summary(self):
        process = subprocess.Popen([TACTIC, "run", "-m", MODEL, "-f", str(self.short), "-n", "4000", "-q", "Count to ten thousand, in words.",
                                    "--method", "stock", "--no-cache", "--temperature", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertRegex(said.decode(), r"interrupted: \d+ tokens at [\d.]+ tokens/s")

    def test_a_capture_can_be_inspected(self):
        capture = self.dir / "capture.safetensors"
        run("capture", "-m", MODEL, "-f", self.long, "-n", 1400, "-s", 3, "-o", capture)
        content = capture.read_bytes()
        length, = struct.unpack("<Q", content[:8])
        header = json.loads(content[8:8 + length])
        self.assertEqual(header["q"]["shape"], [3, 30, 9, 64])
        self.assertEqual(header["prompt_q"]["shape"], [128, 30, 9, 64])
        self.assertEqual(header["k"]["shape"], [30, 3, 1403, 64])
        self.assertEqual(header["__metadata__"]["rotary_layout"], "interleaved")
        self.assertEqual(len(header["__metadata__"]["rotary_frequency"].split()), 32)
        everything, _ = self.figures("inspect", "-c", capture, "--method", "full")
        self.assertAlmostEqual(everything["all"]["true_mass"], 1, places=12)
        self.assertEqual(everything["all"]["attended_share"], 1)
        kept, done = self.figures("inspect", "-c", capture, "--promise")
        self.assertIn("dense heads", done.stdout)
        promise = kept["all"]["promise"]
        self.assertEqual(promise["kv_heads"], 30 * 3)
        self.assertEqual(promise["dense_kv_heads"], sum(layer["promise"]["dense_kv_heads"] for layer in kept["by_layer"]))
        rows, page = self.dir / "rows.csv", self.dir / "page.html"
        sparse, done = self.figures("inspect", "-c", capture, "-p", 0.9, "--csv", rows, "--html", page)
        self.assertLess(sparse["all"]["attended_share"], 1)
        self.assertGreater(sparse["all"]["success_rate"], 0.5)
        with open(rows, newline="") as file:
            table = list(csv.DictReader(file))
        self.assertEqual(len(table), 30 * 9 * 3)
        self.assertEqual({row["margin"] for row in table}, {"1"})
        mean = sum(float(row["true_mass"]) for row in table) / len(table)
        self.assertAlmostEqual(mean, sparse["all"]["true_mass"], places=6)
        success = sum(int(row["success"]) for row in table) / len(table)
        self.assertAlmostEqual(success, sparse["all"]["success_rate"], places=9)
        self.check_page(page.read_text(encoding="utf-8"), sparse)

    def check_page(self, page, figures):
        stack, found = [], []

        class Parser(html.parser.HTMLParser):
            def handle_starttag(self, tag, attributes):
                if tag not in ("meta", "link", "br", "img", "input"):
                    stack.append(tag)
                for name, value in attributes:
                    if name in ("src", "href"):
                        found.append(value)

            def handle_endtag(self, tag):
                assert stack.pop() == tag, tag

        Parser().feed(page)
        self.assertEqual(stack, [])
        self.assertEqual(found, [], "the page needs another file")
        data = json.loads(re.search(r"const data = (.*);\n", page).group(1))
        self.assertEqual((len(data["maps"]["share"]), len(data["maps"]["share"][0])), (30, 9))
        self.assertAlmostEqual(data["summary"]["mass"], figures["all"]["true_mass"], places=4)
        self.assertEqual(data["target"], 0.9)


if __name__ == "__main__":
    unittest.main(verbosity=2)
