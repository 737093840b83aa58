"""Bad input: exit code 2, one line that says what, where and what is allowed, nothing written."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.params import REQUEST_KEYS
from tests.conftest import ROOT
from tests.evaluation.conftest import ARMS, ENGINE, PROBLEMS, RunMain, WriteConfig

BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"modle": "x"}, ["modle: unknown key", "published_model"]),
    ({"generation": {"temprature": 0}}, ["generation.temprature: unknown key", "temperature"]),
    ({"arms": [{"name": "slot", "step": 3}]}, ["arms.0.step: unknown key", "weight_decay"]),
    ({"tasks": [{"nme": "aime24"}]}, ["tasks.0.nme: unknown key", "max_samples"]),
    ({"engine": {**ENGINE, "dtpye": "float32"}}, ["engine.dtpye: unknown key", "names: dtype"]),
    ({"engine": {"worker_extension_cls": "x"}}, ["engine.worker_extension_cls"]),
    ({"slot": {"workspace": 1}}, ["slot.workspace: unknown key", "workspace_mb"]),
    ({"slot": {"workspace_mb": 0}}, ["slot.workspace_mb=0", "greater than or equal to 1"]),
    ({"generation": {"temperature": "hot"}}, ["generation.temperature='hot'", "number"]),
    ({"generation": {"top_p": 1.5}}, ["generation.top_p=1.5", "a number above 0 to 1"]),
    ({"generation": {"max_new_tokens": 1.5}}, ["generation.max_new_tokens=1.5", "integer"]),
    ({"generation": {"seed": True}}, ["generation.seed=True", "integer"]),
    ({"chat_template": "yes please"}, ["chat_template='yes please'", "auto"]),
    ({"tasks": [{"name": "aime24", "skip": -1}]}, ["tasks.0.skip=-1", "an integer from 0"]),
    ({"tasks": "aime24"}, ["tasks='aime24'", "list"]),
    ({"tasks": []}, ["tasks=[]", "at least 1 item"]),
    ({"name": "../x"}, ["name='../x'"]),
    ({"arms": [{"name": "slot", "steps": -1}]}, ["arms.0.steps=-1", "greater than or equal to 0"]),
    ({"arms": [{"name": "slot", "steps": 101}]}, ["arms.0: slot_steps=101", "from 0 to 100"]),
    ({"arms": [{"name": "slot", "lr": "x"}]}, ["arms.0.lr='x'", "a number from 0 to 100"]),
    ({"arms": [{"name": "slot", "steps": 0}]}, ["arms.0: name='slot' with steps=0", "baseline"]),
    ({"arms": [{"name": "baseline"}]}, ["arms.0: name='baseline' with steps=5", "baseline"]),
    ({"arms": [ARMS[1], ARMS[1]]}, ["arms: two of them are named 'slot'"]),
    ({"model": "./nowhere"}, ["model='./nowhere': no such path", "hub"]),
    ({"model": "no-such-org/no-such-model"}, ["model='no-such-org/no-such-model'"]),
    ({"model_script": "make.py"}, ["model_script: removed in 0.2.0", "run the script before"]),
    ({"backend": "tgi"}, ["backend='tgi': unknown value", "'vllm' or 'transformers'"]),
    ({"tasks": [{"name": "aime24", "data": "nowhere.jsonl"}]}, ["tasks.0.data", "no such path"]),
    ({"tasks": [{"name": "gsm8k", "data": str(PROBLEMS)}]}, ["item 1: no 'question'", "answer"]),
    ({"tasks": [{"name": "aime24", "data": __file__}]}, ["unknown kind of file", ".jsonl"]),
    ({"tasks": [{"name": "aime42", "data": str(PROBLEMS)}]}, ["tasks.0.name='aime42'", "aime24"]),
    ({"tasks": [{"name": "gpqa:mc", "data": str(PROBLEMS)}]}, ["log-likelihood", "gpqa:diamond"]),
    (
        {"tasks": [{"name": "aime24_gpassk", "data": str(PROBLEMS)}]},
        ["generation.temperature=0", "48 answers", "above 0"],
    ),
    ({"engine": {**ENGINE, "dtype": "float33"}}, ["engine: vLLM refuses", "float33"]),
    (
        {
            "engine": {"enable_chunked_prefill": True},
            "generation": {"temperature": 1},
            "arms": [{"name": "baseline", "steps": 0}],
        },
        ["engine.enable_chunked_prefill=True", "False"],
    ),
    (
        {
            "engine": {"enable_chunked_prefill": True},
            "arms": [ARMS[0], {"name": "warm", "control": {"temperature": 1}}],
        },
        ["engine.enable_chunked_prefill=True", "a temperature of 0 in all arms"],
    ),
]


@pytest.mark.parametrize(("settings", "said"), BAD, ids=[said[0] for _, said in BAD])
def test_bad_settings(
    settings: dict[str, Any],
    said: list[str],
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(**settings)
    monkeypatch.chdir(tmp_path)
    assert run_main("--config", config) == 2
    _one_line(capsys, str(config), *said)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [1, 2\nmodel: x\n", ["run.yaml:2:", "not YAML"]),
        ("just words", ["run.yaml: a mapping"]),
        ("", ["run.yaml: a mapping"]),
        ("name: test\nmodel: x\ntasks: [{name: aime24}]\n", ["run.yaml: arms: no arm"]),
        (None, ["run.yaml: no such file"]),
    ],
)
def test_unreadable_file(
    text: str | None,
    said: list[str],
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "run.yaml"
    if text is not None:
        config.write_text(text)
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 2
    _one_line(capsys, *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--config"]),
        (["--config", "RUN", "--nonsense"], ["--nonsense"]),
        (["--config", "RUN", "--set", "generation.seed"], ["--set generation.seed: key=value"]),
        (["--config", "RUN", "--set", "generation.seed=[1"], ["the value is not YAML"]),
        (["--config", "RUN", "--set", "arms.9.lr=1"], ["no item 9", "baseline", "slot"]),
        (["--config", "RUN", "--set", "name.x=1"], ["--set name.x=1: name is not a mapping or a"]),
        (
            ["--config", "RUN", "--set", "arms.slot.lr.x=1"],
            ["--set arms.slot.lr.x=1: arms.slot.lr is not a mapping or a list"],
        ),
        (
            ["--config", "RUN", "--set", "arms.slot.lr.x.y=1"],
            ["--set arms.slot.lr.x.y=1: arms.slot.lr is not a mapping or a list"],
        ),
        (["--config", "RUN", "--set", "arms.slot.lr=-1"], ["arms.1.lr=-1"]),
        (["--config", "RUN", "--output-dir", "RUN"], ["the output directory is a file"]),
    ],
)
def test_bad_command_line(
    arguments: list[str],
    said: list[str],
    write_config: WriteConfig,
    run_main: RunMain,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config()
    assert run_main(*(config if argument == "RUN" else argument for argument in arguments)) == 2
    _one_line(capsys, *said)


def test_the_command_line_itself() -> None:
    command = [sys.executable, "-m", "slot_vllm.evaluation", "--config", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.yaml: no such file\n"


def test_set_lays_values_over_the_file(write_config: WriteConfig) -> None:
    settings = [
        "generation.seed=7",
        "arms.slot.lr=1e-4",
        "arms.1.steps=2",
        "system_prompt=Be kind",
    ]
    config = configuration.load(write_config(), settings)
    assert config.generation.seed == 7
    assert (config.arms[1].lr, config.arms[1].steps) == (1e-4, 2)
    assert config.system_prompt == "Be kind"


def test_a_system_prompt_from_a_file(write_config: WriteConfig, tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_bytes("Sei freundlich \u2013 immer.\r\n".encode())
    path = write_config(system_prompt_file=str(file))
    config = configuration.load(path)
    configuration.check_paths(config)
    assert configuration.system_prompt(config) == "Sei freundlich \u2013 immer.\r\n"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    stored = config.model_dump(mode="json")
    assert (stored["system_prompt"], stored["system_prompt_file"]) == (None, str(file))
    assert stored["system_prompt_sha256"] == digest
    assert configuration.load(path, [f"system_prompt_sha256={digest}"]) == config
    file.write_bytes(b"Be rude.")
    with pytest.raises(ConfigError, match=r"system_prompt_sha256=.* has"):
        configuration.load(path, [f"system_prompt_sha256={digest}"])
    with pytest.raises(ConfigError, match="there is a `system_prompt_file` too"):
        configuration.load(path, ["system_prompt=Be kind"])
    with pytest.raises(ConfigError, match="there is no `system_prompt_file`"):
        configuration.load(write_config(system_prompt_sha256=digest))
    path = write_config(system_prompt_file=str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"system_prompt_file=.*cannot be read: 'utf-8'"):
        configuration.check_paths(configuration.load(path))
    missing = configuration.load(write_config(system_prompt_file="no.txt"))
    with pytest.raises(ConfigError, match=r"system_prompt_file='no.txt': no such file"):
        configuration.check_paths(missing)


def test_a_sweep_is_a_grid_of_arms(write_config: WriteConfig) -> None:
    config = configuration.load(write_config(sweep={"steps": [0, 1, 5], "lr": [1e-4, 1.0]}))
    assert [(arm.name, arm.steps, arm.lr) for arm in config.all_arms] == [
        ("steps1-lr0.0001", 1, 1e-4),
        ("steps1-lr1", 1, 1.0),
        ("steps5-lr0.0001", 5, 1e-4),
        ("steps5-lr1", 5, 1.0),
        ("baseline", 0, 0.1),
        ("slot", 3, 0.1),
    ]
    alone = configuration.load(write_config(sweep={"steps": [0, 1], "lr": [0.1]}), ["arms=[]"])
    assert [arm.name for arm in alone.all_arms] == ["baseline", "steps1-lr0.1"]
    assert alone.uses_slot


def test_what_all_cells_of_a_sweep_have(write_config: WriteConfig) -> None:
    sweep = {"steps": [0, 2], "lr": [1.0], "settings": {"preset": "paper-vllm", "loss_tokens": 3}}
    config = configuration.load(write_config(arms=[], sweep=sweep))
    baseline, cell = config.all_arms
    assert baseline.request_args() == {"slot_steps": 0}
    assert (cell.name, cell.steps, cell.lr) == ("steps2-lr1", 2, 1)
    assert (cell.eps, cell.reduction, cell.loss_tokens) == (1e-6, "mean_over_rows", 3)
    # The log of the run says what the preset was.
    assert config.model_dump(mode="json")["sweep"]["settings"]["eps"] == 1e-6
    again = configuration.RunConfig(**config.model_dump(mode="json"))
    assert again.all_arms == config.all_arms


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"sweep": {"steps": [1], "lr": [0.1], "settings": {"widnow": 3}}},
            "widnow: unknown key; allowed: preset, betas",
        ),
        (
            {"sweep": {"steps": [1], "lr": [0.1], "settings": {"lr": 1}}},
            "sweep.settings={'lr': 1}: lr is not of all cells",
        ),
        ({"sweep": {"steps": [1], "lr": [0.1], "settings": {"window": -1}}}, "window=-1"),
        ({"sweep": {"steps": [1], "lr": [-1.0]}}, "sweep: lr=-1.0"),
        ({"sweep": {"steps": [1, 1], "lr": [0.1]}}, "two of them are named 'steps1-lr0.1'"),
        ({"sweep": {"steps": [101], "lr": [0.1]}}, "sweep: slot_steps=101"),
        ({"sweep": {"steps": [], "lr": [0.1]}}, "sweep.steps"),
        ({"sweep": {"steps": [0], "lr": [0.1]}}, "sweep.steps: none of them is above 0"),
        ({"sweep": {"steps": [True], "lr": [0.1]}}, "sweep.steps.0"),
        ({"select": {"split": 0.3}}, "select: there is no `sweep`"),
        (
            {"sweep": {"steps": [1], "lr": [0.1]}, "select": {"split": 1.0}},
            "select.split",
        ),
        ({"arms": []}, "arms: no arm"),
    ],
)
def test_what_a_sweep_may_not_be(
    write_config: WriteConfig, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        configuration.load(write_config(**settings))


def test_every_slot_setting_of_an_arm_is_named(write_config: WriteConfig) -> None:
    baseline, slot = configuration.load(write_config()).arms
    assert baseline.request_args() == {"slot_steps": 0}
    args = slot.request_args()
    assert set(args) == set(REQUEST_KEYS) - {"slot_preset"}
    known = {
        "slot_steps": 3,
        "slot_lr": 0.1,
        "slot_betas": [0.9, 0.999],
        "slot_eps": 1e-5,
        "slot_weight_decay": 1e-8,
        "slot_rounding": "exact",
        "slot_reduction": "mean",
        "slot_loss_tokens": "all",
        "slot_window": None,
        "slot_half_life": None,
    }
    assert {**args, **known} == args


def test_an_arm_may_name_a_preset_and_override_it(write_config: WriteConfig) -> None:
    arm = {"name": "vllm", "preset": "paper-vllm", "lr": 0.01}
    (vllm,) = configuration.load(write_config(arms=[arm])).arms
    args = vllm.request_args()
    assert (args["slot_eps"], args["slot_reduction"]) == (1e-6, "mean_over_rows")
    assert (args["slot_lr"], args["slot_steps"]) == (0.01, 5)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_repository_s_configs_are_valid(path: Path) -> None:
    config = configuration.load(path)
    assert config.name == path.stem
    if config.sweep is None:
        names = [arm.name for arm in config.arms]
        quickstart = ["baseline", "paper", "steps1"]
        assert names == (quickstart if config.name == "quickstart" else ["baseline", "slot"])
    else:  # the published grid
        assert config.sweep.steps == [0, 1, 2, 3, 4, 5]
        assert config.sweep.lr == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        assert len(config.all_arms) == 26


@pytest.mark.parametrize("name", ["quickstart", "gsm8k", "local_model"])
def test_what_runs_on_a_laptop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models that need no hub's terms, few problems, and a cache that is no GPU's."""
    monkeypatch.chdir(ROOT)
    config = configuration.load(ROOT / "configs" / f"{name}.yaml")
    configuration.check_paths(config)
    assert config.model.startswith("get:") or Path(config.model).is_dir()
    assert config.engine["kv_cache_memory_bytes"] == 2**30
    assert config.engine["max_model_len"] <= 1024
    assert all((task.max_samples or 150) <= 150 for task in config.tasks)
    assert [(arm.steps, arm.lr) for arm in config.arms[:2]] == [(0, 0.1), (5, 0.1)]


def test_a_hub_s_name_is_no_path() -> None:
    published = configuration.load(ROOT / "configs" / "aime24.yaml")
    configuration.check_paths(published)
    with pytest.raises(ConfigError, match="no such path"):
        configuration.check_paths(published.model_copy(update={"model": "a/b/c"}))


def _one_line(capsys: pytest.CaptureFixture[str], *said: str) -> None:
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    for text in said:
        assert text in lines[0]
