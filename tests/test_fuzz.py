"""Thousands of odd prompts and sets of parameters: an answer, or one sentence, never a traceback.

KOALA_NB_FUZZ=100000 sets how many; `make test-all` tries 10,000.
"""

import json
import os
import warnings
from functools import cache

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koala_nb import cli, generate
from koala_nb.generation import plan as plans
from koala_nb.generation.generate import find_unread
from koala_nb.models import session
from koala_nb.probes import base
from koala_nb.report import audit, results, sweep
from koala_nb.report import run as reports

FUZZ = int(os.environ.get("KOALA_NB_FUZZ", "1000"))
NOTEBOOKS = sorted(reports.NOTEBOOKS.glob("*.ipynb"))
SIZE = {"height": 64, "width": 64}

anything = st.characters()  # surrogates, too
texts = st.text(anything, max_size=60) | st.text(anything, max_size=10).map(lambda t: t * 60)
plain = st.text(max_size=12)
numbers = st.integers() | st.floats() | st.integers(0, 100) | st.booleans()
atoms = st.none() | numbers | texts | st.binary(max_size=8)
values = st.recursive(
    atoms,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(plain, inside, max_size=3),
    max_leaves=8,
)
prompts = texts | st.lists(texts, max_size=4) | values
seeds = st.lists(st.integers(0, 9), max_size=4) | st.lists(st.lists(numbers, max_size=3)) | values
sizes = st.sampled_from([8, 64, 72]) | values
arguments = st.fixed_dictionaries(
    {"prompts": prompts, "seeds": seeds},
    optional={
        "negative_prompt": texts | values,
        "steps": st.integers(-1, 30) | values,
        "guidance": st.floats(0, 30) | values,
        "height": sizes,
        "width": sizes,
        "batch_size": st.integers(-1, 30) | values,
        "timestep_spacing": st.sampled_from(plans.SPACINGS) | values,
    },
)


def examples(share):
    return settings(max_examples=max(1, round(FUZZ * share)))


def is_sentence(error):
    """Whether an error is one that tells a user what to do: of one line, and not endless."""
    said = str(error)
    return bool(said.strip()) and "\n" not in said and len(said) < 1000


@given(arguments)
@example({"prompts": ["koala " * 100, "\0"], "seeds": [0]})
@examples(0.5)
def test_what_is_asked_of_generate(loaded, given_arguments):
    try:
        asked = dict(given_arguments)
        of_what = asked.pop("prompts"), asked.pop("seeds")
        plan = plans.make_plan(loaded, *of_what, plans.Settings(**{**SIZE, **asked}))
    except ValueError as error:
        assert is_sentence(error)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        unread = find_unread(loaded, plan)
    asked = {request.prompt for request in plan.requests} | {plan.negative_prompt or ""}
    assert unread.keys() <= asked
    assert len({request.file for request in plan.requests}) == len(plan.requests)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=2), st.integers(0, 2**63 - 2))
@examples(0.01)
def test_odd_prompts_are_drawn(loaded, asked, seed):
    try:
        run = generate(loaded, asked, [seed], steps=1, height=64, width=64, progress=False)
    except ValueError as error:  # a NUL
        assert is_sentence(error) and "\0" in "".join(asked)
        return
    assert run.records.prompt.tolist() == asked
    assert [image.size for image in run.images] == [(64, 64)] * len(asked)


known = cache(reports.parameters_of)
names = sorted({name for path in NOTEBOOKS for name in known(path)})
typed = plain | numbers.map(str) | st.sampled_from(["nano-koala", "true", "1e5", "1_0", "koala-1b"])


@given(
    st.sampled_from(NOTEBOOKS), st.dictionaries(st.sampled_from(names) | plain, typed), st.data()
)
@examples(0.3)
def test_parameters_as_text(path, given_parameters, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "parameters_of", known)
        try:
            found = reports.check(path, given_parameters, text=True)
        except ValueError as error:
            assert is_sentence(error)
            return
    assert all(type(found[name]) is kind for name, (kind, _) in known(path).items())
    name = reports.folder_of(path, found).name
    assert len(name) < 120 and "/" not in name


@given(st.sampled_from(NOTEBOOKS), st.dictionaries(st.sampled_from(names) | plain, values))
@examples(0.1)
def test_parameters_as_values(path, given_parameters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "parameters_of", known)
        try:
            found = reports.check(path, given_parameters)
        except ValueError as error:
            assert is_sentence(error)
            return
    json.dumps(found, allow_nan=False)


number = st.integers(-2, 9) | st.integers()


@given(number, number, number, number, st.floats() | number, number)
@examples(0.05)
def test_settings_of_a_report(seeds, n, seed, steps, guidance, size):
    try:
        chosen = session.generation_settings(
            seeds=seeds, n=n, seed=seed, steps=steps, guidance=guidance, size=size
        )
    except ValueError as error:
        assert is_sentence(error)
        return
    assert chosen["seeds"][0] == seed


@given(st.text(max_size=200) | values.map(lambda v: yaml.safe_dump(v, allow_unicode=True)))
@example("grid: {model: [nano-koala], n: [1, 2]}")
@example("grid: {n: [1e999]}")
@example("grid: &a {n: *a}")
@examples(0.05)
def test_files_of_sweeps(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "sweep.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "parameters_of", known)
        try:
            found, workers = sweep.read(NOTEBOOKS[-1], file, {})
        except ValueError as error:
            assert is_sentence(error)
            return
    assert found and workers >= 1


keys = st.sampled_from(["model", "sections", "environment", "key_figures", "estimates", "value"])
tree = st.recursive(
    st.none() | numbers | plain,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(keys, inside, max_size=4),
)


@given(tree.map(json.dumps) | st.text(max_size=60) | st.binary(max_size=40))
@examples(0.02)
def test_files_of_results(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "results.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    try:
        found = results.receipt_problems(file)
    except (ValueError, OSError) as error:
        assert is_sentence(error)
        return
    assert found and all(is_sentence(line) for line in found)


@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda t: f"id,prompt\n{t}\n".encode()))
@example(b"id,prompt\n1,a koala\n")
@examples(0.02)
def test_files_of_prompts(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "prompts.csv"
    file.write_bytes(content)
    for read in (base.read_prompts, lambda path: audit.read_prompts("photographic", path)):
        try:
            found = read(str(file))
        except ValueError as error:
            assert str(file) in str(error) and len(str(error)) < 1000
            continue
        assert list(found.prompt)


words = st.sampled_from(
    "generate report plan receipt check systems nano-koala -p --seeds --steps --size --sweep --out "
    "--images --gpus --rate n=3 11 -1 0 3 --help".split()
)


def begun(*arguments, **more):
    raise ValueError("long work would begin here")


@given(st.lists(words | plain, max_size=6))
@examples(0.02)
def test_command_lines(tmp_path_factory, given_words):
    if given_words and given_words[0] in ("train", "evaluate", "benchmark", "probe", "refresh"):
        return  # valid as they stand, and long
    place = tmp_path_factory.getbasetemp() / "place"
    place.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        long = "models.load.load report.run._execute generation.cluster.local report.sweep._run_one"
        for begins in long.split():
            patch.setattr(f"koala_nb.{begins}", begun)
        assert cli.main(given_words) in (0, 1, 2)
