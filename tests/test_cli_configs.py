"""The shipped configs: found by name, listed, and copied into one file."""

import re
from pathlib import Path

import pytest
import yaml

from metricloss_pl import config_files
from metricloss_pl.cli import main
from metricloss_pl.cli.arguments import prepare, with_shipped_configs
from metricloss_pl.config_files import copy_config, find_config, list_configs, shipped_configs
from metricloss_pl.errors import UserError
from tests.helpers import make_folder

RUN_FILES, COMPARISONS, DATA = list_configs(), list_configs("compare"), list_configs("data")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """No test sees the clone's `configs` as a local folder."""
    monkeypatch.chdir(tmp_path)


def printed_config(capsys, *arguments: str) -> dict:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--print_config"])
    assert caught.value.code in (0, None), capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("digits_cosine.yaml", "", "digits_cosine.yaml"),
        ("configs/digits_cosine.yaml", "", "digits_cosine.yaml"),
        ("digits.yaml", "compare", "compare/digits.yaml"),
        ("compare/digits.yaml", "", "compare/digits.yaml"),
        ("digits.yaml", "data", "data/digits.yaml"),
        ("configs/data/digits.yaml", "data", "data/digits.yaml"),
    ],
)
def test_a_name_that_is_no_local_file_is_the_shipped_config(name, kind, file, tmp_path):
    assert find_config(name, kind) == str(shipped_configs() / file)
    local = tmp_path / name
    local.parent.mkdir(parents=True, exist_ok=True)
    local.touch()
    assert find_config(name, kind) == name


@pytest.mark.parametrize(
    "name", ["nothing.yaml", "digits_cosine", "../pyproject.toml", "data", "other/digits_cosine.yaml"]
)
def test_other_names_stay_as_they_are(name):
    assert find_config(name) == name


def test_configs_are_found_within_an_installed_package_and_beside_one_in_a_clone(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package).mkdir()
    monkeypatch.setattr(config_files, "__file__", str(package / "config_files.py"))
    assert shipped_configs() == tmp_path / "configs"
    (package / "configs").mkdir()
    assert shipped_configs() == package / "configs"


@pytest.mark.parametrize(
    "spelled", [["--config", "digits_cosine.yaml"], ["--config=digits_cosine.yaml"], ["-c", "digits_cosine.yaml"],
                ["-cdigits_cosine.yaml"], ["-c=digits_cosine.yaml"]]
)  # fmt: skip
def test_every_spelling_of_the_flag_finds_the_config(spelled):
    found = prepare(["fit", *spelled, "--trainer.max_epochs", "1"])
    assert found == ["fit", f"--config={shipped_configs() / 'digits_cosine.yaml'}", "--trainer.max_epochs", "1"]


def test_blocks_are_found_too_and_other_flags_left_alone():
    flags = ["--data", "flowers.yaml", "--model=model/cosine_tiny.yaml", "--data.path", "digits_cosine.yaml"]
    assert with_shipped_configs(flags) == [
        f"--data={shipped_configs() / 'data' / 'flowers.yaml'}",
        f"--model={shipped_configs() / 'model' / 'cosine_tiny.yaml'}",
        *flags[3:],
    ]


def test_a_shipped_block_takes_the_place_of_a_run_files(capsys):
    config = printed_config(capsys, "fit", "-c", "cub_cosine.yaml", "--data", "flowers64.yaml")
    assert config["data"]["class_path"] == "metricloss_pl.data.Flowers102DataModule"
    assert config["data"]["init_args"]["image_size"] == 64
    assert config["model"]["class_path"].endswith("CosineClassifier")


@pytest.mark.parametrize("subcommand", ["fit", "compare"])
def test_a_config_that_is_nowhere_is_one_line(subcommand, capsys):
    with pytest.raises(SystemExit) as caught:
        main([subcommand, "--config", "digits_cosinus.yaml"])
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --config digits_cosinus.yaml: ")
    assert "metricloss configs" in line


def test_the_list_has_each_config_with_a_description(capsys):
    main(["configs"])
    out = capsys.readouterr().out
    described = dict(re.findall(r"^  (\S+\.yaml) +(\S.*)$", out, flags=re.MULTILINE))
    assert set(described) == {*RUN_FILES, *COMPARISONS, *DATA}
    assert described["digits_cosine.yaml"] == "scikit-learn's digits (8 x 8), cosine loss + 0.1 cross-entropy."
    for name, line in described.items():
        assert line.endswith("."), name
        assert (shipped_configs() / name).read_text().startswith(f"# {line}\n")


@pytest.mark.parametrize("name", ["digits_cosine.yaml", "cifar10_semantic_cosine.yaml", "folder_semantic_cosine.yaml"])
def test_a_copy_is_one_file_that_says_the_same(name, tmp_path, capsys):
    original = printed_config(capsys, "fit", "--config", str(shipped_configs() / name))
    (tmp_path / "copies").mkdir()
    main(["configs", "copy", name, "--out", "copies/mine.yaml"])
    capsys.readouterr()
    text = Path("copies/mine.yaml").read_text()
    assert [file.name for file in Path("copies").iterdir()] == ["mine.yaml"]
    assert text.startswith((shipped_configs() / name).read_text().partition("\n\n")[0])
    assert "model: model/" not in text
    assert printed_config(capsys, "fit", "--config", "copies/mine.yaml") == original


@pytest.mark.parametrize("name", [*RUN_FILES, *COMPARISONS, *DATA])
def test_every_config_can_be_copied(name):
    copy = copy_config(name)
    assert copy == Path(Path(name).name)
    settings, original = yaml.safe_load(copy.read_text()), yaml.safe_load((shipped_configs() / name).read_text())
    assert list(settings) == list(original)
    for block in {"data", "model"} & set(settings):
        assert settings[block]["class_path"]
    for variant in settings.get("variants", {}).values():
        assert variant["config"] in RUN_FILES


def test_a_copy_replaces_nothing(tmp_path, capsys):
    Path("digits_cosine.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"digits_cosine\.yaml exists and is kept"):
        copy_config("digits_cosine.yaml")
    with pytest.raises(SystemExit) as caught:
        main(["configs", "copy", "nothing.yaml"])
    assert caught.value.code == 1
    assert "there is no shipped config of this name" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["digits_cosine.yaml"]
    assert Path("digits_cosine.yaml").read_text() == "mine"


def test_a_copied_comparison_finds_its_run_files(tmp_path, capsys):
    make_folder(tmp_path / "images", images=10, size=12)
    main(["configs", "copy", "compare/folder.yaml", "--out", "mine.yaml"])
    main(["compare", "--config", "mine.yaml", "--data_root", "images", "--include=[softmax]", "--baseline=softmax",
          "--tuning.trials=0", "--dry_run=true", "--overrides={data.image_size: 8, data.batch_size: 2}"])  # fmt: skip
    assert "softmax" in capsys.readouterr().out


def test_fit_runs_from_a_name_alone(tmp_path):
    main(["fit", "--config", "digits_softmax.yaml", "--trainer.fast_dev_run=true", "--trainer.logger=false",
          "--trainer.callbacks=null", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])  # fmt: skip
