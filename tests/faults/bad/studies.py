"""Malformed study files, each with what its one sentence must say: the place, the value and the fix."""

from pathlib import Path

from tests.faults.bad.cases import Case

SMOKE = (Path(__file__).parents[3] / "pipelines" / "studies" / "smoke.yaml").read_text(encoding="utf-8")


def study(what: str, written: str, wrong: str, says: str) -> Case:
    """The smoke study with one text in place of another, which occurs in it."""
    assert written in SMOKE, written

    def words(folder: Path) -> list[str]:
        (folder / "mine.yaml").write_text(SMOKE.replace(written, wrong, 1), encoding="utf-8")
        return ["pipelines.study", str(folder / "mine.yaml")]

    return Case(f"study: {what}", words, rf"^error: \S+mine\.yaml(, line \d+)?: {says}")


def file(what: str, content: str | bytes, says: str) -> Case:
    """A study file with this content."""

    def words(folder: Path) -> list[str]:
        (folder / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["pipelines.study", str(folder / "mine.yaml")]

    return Case(f"study: {what}", words, rf"^error: \S+mine\.yaml(, line \d+)?: {says}")


RL = "algorithm: grpo,"
DEEP = "a: " + "[" * 3000
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))
CASES = [
    file("empty", "", "expected a mapping of settings"),
    file("a list", "- a\n- b\n", "expected a mapping of settings"),
    file("a word", "hello", "expected a mapping of settings"),
    file("an open bracket", "a: [", "not YAML: .*line 1"),
    file("a tab", "study: x\n\tseeds: [0]\n", "not YAML: .*line 2"),
    file("not text", b"\xff\xfe\x00\x01study", "not text in UTF-8"),
    file("a zero byte", b"study: x\x00y\n", "not YAML: .*special characters are not allowed"),
    file("a Python object", "study: !!python/object/apply:os.system ['true']", "not YAML: .*python/object"),
    file("two documents", "study: x\n---\nstudy: y\n", "not YAML: expected a single document"),
    file("brackets 3,000 deep", DEEP, "not YAML: nested too deeply"),
    file("an alias that grows", BOMB, r"the study, key: '\w' is unknown"),
    file("an alias of nothing", "study: *x\n", "not YAML: .*undefined alias"),
    file("a circle of aliases", "study: &a [*a]\n", "its aliases make more than 100,000 values of it"),
    file("a number for a name", "study: 3\ntask: {name: word_problems}\n", r"study must be text, got 3"),
    file("a date for a name", "study: 2024-01-01\n", "study must be text|.* is missing"),
    file("a number of 5,000 digits", f"study: x\nseed: {'9' * 5000}\n", "a value that cannot be read"),
    file("the 31st of April", "study: x\nseed: 2026-04-31\n", "a value that cannot be read .day is out of range"),
    study("results in ~", "study: smoke\n", "study: smoke\nresults: ~/smoke\n", "results: ~ is not read as your home"),
    file("a key twice", "study: x\nstudy: y\n", "the key 'study' stands in line 1 already"),
    study("a truth value as a key", "seed: 0\n", "seed: 0\non: 1\n", "the study: the key True is no text"),
    study("an unknown key", "seed: 0\n", "sede: 0\n", "the study, key: 'sede' is unknown. Did you mean 'seed'"),
    study("a name with dots", "study: smoke", "study: ..", "study: '..' is no name of a folder; choose another"),
    study("a name with a slash", "study: smoke", "study: ../x", "study: '../x' is no name of a folder; choose another"),
    study(
        "an absolute name", "study: smoke", "study: /etc/x", "study: '/etc/x' is no name of a folder; choose another"
    ),
    study("a name like an option", "study: smoke", "study: -rf", "study: '-rf' is no name of a folder; choose another"),
    study("a name with a line end", "study: smoke", 'study: "a\\nb"', r"study: 'a\\nb' is no name of a folder; choose"),
    study("results above the study", "study: smoke", "study: smoke\nresults: ../x", "results: '../x' leads out of"),
    study(
        "results in place of the project", "study: smoke", "study: smoke\nresults: .", "results: '.' holds this folder"
    ),
    study("results with braces", "study: smoke", "study: smoke\nresults: 'a{b}'", "results: Snakemake reads braces"),
    study("a stage with dots", "  grpo: {", "  ../../x: {", r"stages\.\.\./\.\./x: a name is lower-case letters"),
    study("a stage with a slash", "  grpo: {", "  a/b: {", "stages.a/b: a name is lower-case letters, digits and _"),
    study(
        "a stage with a shell's words", "  grpo: {", "  '$(id)': {", r"stages.\$\(id\): a name is lower-case letters"
    ),
    study("a stage with SQL's words", "  grpo: {", '  "x\'; drop": {', "stages.x'; drop: a name is lower-case letters"),
    study(
        "a stage with letters that look alike", "  grpo: {", "  grро: {", "stages.grро: a name is lower-case letters"
    ),
    study("a model with dots", "  base: {", "  ..: {", r"models\.\.\.: a name is lower-case letters"),
    study("a seed of text", "seeds: [0]\n", "seeds: ['../x']\n", r"seeds\[0\] must be a whole number, got '../x'"),
    study("a huge seed", "seeds: [0]\n", f"seeds: [{10**30}]\n", "seeds.*(below|at most|whole number)"),
    study("a negative seed", "seeds: [0]\n", "seeds: [-1]\n", "seeds must be different whole numbers from 0"),
    study("a seed of a fraction", "seeds: [0]\n", "seeds: [0.5]\n", r"seeds\[0\] must be a whole number, got 0.5"),
    study("seeds without end", "seeds: [0]\n", "seeds: .inf\n", "seeds must be a list, got (inf|.*Infinity)"),
    study("not a number", "seed: 0\n", "seed: .nan\n", "seed must be a whole number"),
    study("a device that is none", "dtype: float32", "dtype: float16", "dtype: 'float16' is unknown. .*bfloat16"),
    study("an algorithm by a path", RL, "algorithm: ../x.py,", r"stages.grpo.*there is no file '\.\./x\.py'"),
    study(
        "a model by a path",
        "  base: {",
        "  gone: {path: /no/such}\n  base: {",
        "models.gone.path: '/no/such' is neither",
    ),
    study(
        "remote code",
        "  base: {",
        "  far: {trust_remote_code: true}\n  base: {",
        "models.far, key: 'trust_remote_code'",
    ),
    study("a rewards' path", RL, RL + " rewards: {'/x.py:f': 1.0},", r"stages.grpo.*there is no file '/x\.py'"),
    study(
        "an edge to nothing",
        "  grpo: {",
        "  x: {kind: rl, from: gone, algorithm: grpo}\n  grpo: {",
        "stages.x.from: 'gone'",
    ),
    study("a circle", "  grpo: {", "  x: {like: x}\n  grpo: {", "stages.x.like: a circle, x -> x; remove one `like`"),
]
