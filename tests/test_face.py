import ast
import subprocess
import sys
from pathlib import Path

import pytest

import koala_nb as kn

STUB = Path(kn.__file__).with_suffix(".pyi")


def test_stub_names_and_real_objects_agree():
    stub = ast.parse(STUB.read_text()).body
    imported = [node for node in stub if isinstance(node, ast.ImportFrom)]
    names = {alias.name: node.module for node in imported for alias in node.names}
    assert all(alias.asname == alias.name for node in imported for alias in node.names)
    assert set(names) == set(kn.__all__) <= set(dir(kn))
    for name, module in names.items():
        value = getattr(kn, name)
        assert value is vars(kn)[name]
        if module:  # not a room of its own
            assert value.__module__ == f"koala_nb.{module}" and value.__doc__, name
    assert kn.__version__
    with pytest.raises(AttributeError, match="genrate"):
        kn.genrate  # noqa: B018


def test_mypy_sees_what_load_and_start_return(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(
        "import koala_nb as kn\n"
        "reveal_type(kn.load('nano-koala'))\n"
        "reveal_type(kn.start('nano-koala').info.recipe.steps)\n"
        "reveal_type(kn.generate(kn.load('nano-koala'), 'a koala').seconds_per_image)\n"
        "kn.genrate\n"
    )
    configuration = STUB.parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", configuration, file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=STUB.parents[1])
    assert 'Revealed type is "koala_nb.models.load.Pipeline"' in done.stdout, done.stdout
    assert done.stdout.count('Revealed type is "int | None"') == 1, done.stdout
    assert done.stdout.count('Revealed type is "float | None"') == 1, done.stdout
    assert 'has no attribute "genrate"' in done.stdout


def test_a_session_says_what_it_is_and_what_differs_from_the_recipe(snapshot, capsys):
    given = {"device": "cpu", "dtype": "", "revision": "", "offload": ""}  # "": the default
    session = kn.start(snapshot, seeds=2, seed=3, steps=2, size=64, **given)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{snapshot} (photographic): ") and " at weights-" in said[0]
    assert said[1] == "on cpu in float32: 2 steps, guidance 5, 64 x 64 pixels"
    assert session.seeds == range(3, 5)
    assert session.settings == {"steps": 2, "height": 64, "width": 64}
    assert session.info is session.pipe.model_info and session.recipe is session.info.recipe
    run = kn.generate(session.pipe, "a koala", session.seeds, **session.settings)
    assert list(run.records.seed) == [3, 4] and set(run.records.steps) == {2}


def test_a_session_refuses_a_bad_setting_before_it_loads():
    with pytest.raises(ValueError, match="batch_size is -1: give"):
        kn.start("no such model", batch_size=-1)


def test_a_session_without_weights_knows_the_record(capsys):
    session = kn.start("koala-lightning-700m", weights=False)
    assert session.recipe.steps == 10 and session.size == (1024, 1024)
    assert "without weights" in capsys.readouterr().out
    with pytest.raises(ValueError, match="weights=False"):
        session.pipe  # noqa: B018
