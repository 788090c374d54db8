"""Configuration: what a user gets wrong is named with file, line and key, all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.config import RunConfig, default_yaml, dump_config, load_config
from cluster.config.checks import OBJECTIVES, READ_BY, readers
from cluster.config.elsewhere import ELSEWHERE
from cluster.config.keys import nearest, walk
from cluster.config.reference import REGENERATE, reference_markdown
from cluster.runs.folder import MAY_CHANGE
from speech.errors import InputError, UserError

MINIMAL: dict[str, dict[str, str]] = {
    objective: {"name": "n", "model.path": "m", "data.train": "t", "objective": objective} | more
    for objective, more in {
        "grpo": {},
        "diffro": {"model.codec": "c", "learner.diffro.reward_model": "r"},
        "combined": {"model.codec": "c", "learner.diffro.reward_model": "r"},
        "sft": {},
        "token2text": {"model.codec": "c"},
    }.items()
}
CHANGED = {
    "sampling.group_size": "4",
    "sampling.temperature": "0.5",
    "engines.count": "2",
    "engines.generate_timeout_s": "60.0",
    "encoder.count": "2",
    "encoder.max": "3",
    "rewards.retries": "2",
    "rewards.sound.batch": "2",
    "learner.lr": "0.1",
    "learner.loss.clip_low": "0.1",
    "learner.diffro.weight": "2.0",
    "learner.advantage": "group_mean",
    "learner.zero_variance": "keep",
    "learner.updates_per_step": "2",
    "learner.restarts": "1",
    "token2text.layers": "2",
    "publish.bucket_mb": "1",
    "evaluation.sampled": "True",
    "evaluation.samples_shown": "1",
    "checkpoint.every": "5",
    "watchdog_minutes": "1.0",
}
"""Keys with another value than their default."""

KL_IN_REWARD = ("learner.loss.kl_in=reward", "learner.loss.kl_coef=0.1", "learner.loss.kl_estimator=k1")
REQUIRED = "name: demo\nmodel:\n  path: assets/model\ndata:\n  train: train.jsonl\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_values_come_from_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, REQUIRED + "learner:\n  lr: 3e-4\nsteps: 1e3\n")
    config = load_config(path, ["seed=7", "rewards.items=[{name: accuracy, weight: 2}]", "rewards.items.0.weight=3"])
    assert config.learner.lr == 3e-4
    assert config.steps == 1000
    assert isinstance(config.steps, int)
    assert config.seed == 7
    assert [(item.name, item.weight) for item in config.rewards.items] == [("accuracy", 3.0)]
    assert config.data.limits.min_seconds > 0


def test_text_from_the_command_line_needs_no_quotes(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, REQUIRED), ["name=2024"]).name == "2024"


def test_round_trip(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, REQUIRED), ["learner.lr=1e-7", "data.valid=声.jsonl"])
    again = write(tmp_path, dump_config(config), "again.yaml")
    assert load_config(again) == config


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    text = REQUIRED + (
        "seed: many\n"  # 6
        "objective: gpro\n"  # 7
        "learner:\n"
        "  kl_coef: 1e-3\n"  # 9
        "  activation_checkpointing: 1\n"  # 10
        "  loss:\n"
        "    clip_low: -3\n"  # 12
        "rewards:\n"
        "  items:\n"
        "    - name: accuracy\n"
        "      wieght: 2\n"  # 16
        "evaluation: often\n"  # 17
        "ray:\n"
        "  num_cpus: 1.5\n"  # 19
    )
    path = write(tmp_path, text)
    assert sorted(problems(path, "sampling.gruop_size=4"), key=lambda p: p.split(": ")[1]) == sorted(
        [
            f"{path}:6: seed: expected a whole number, got 'many'",
            f"{path}:7: objective: expected one of `grpo`, `diffro`, `combined`, `sft`, `token2text`, got 'gpro'; "
            "did you mean `grpo`?",
            f"{path}:9: learner.kl_coef: unknown key; did you mean `learner.loss.kl_coef`?",
            f"{path}:10: learner.activation_checkpointing: expected true or false, got 1",
            f"{path}:12: learner.loss.clip_low: must be at least 0, got -3",
            f"{path}:16: rewards.items.0.wieght: unknown key; did you mean `rewards.items[].weight`?",
            f"{path}:17: evaluation: expected a section with keys, got 'often'",
            f"{path}:19: ray.num_cpus: expected a whole number, got 1.5",
            "command line: sampling.gruop_size: unknown key; did you mean `sampling.group_size`?",
        ],
        key=lambda p: p.split(": ")[1],
    )


@pytest.mark.parametrize(("section", "count"), [("engines", "count"), ("encoder", "count"), ("rewards", "count")])
def test_the_number_at_the_start_lies_between_its_bounds(section: str, count: str) -> None:
    base = ["name=n", "model.path=m", "data.train=t", f"{section}.{count}=3"]
    for bound in ("min=4", "max=2"):
        assert problems(None, *base, f"{section}.{bound}") == [
            f"command line: {section}: `{count}` is 3, which is not between `min` and `max`"
        ]
    fixed = getattr(load_config(None, base), section)
    assert (fixed.min_count, fixed.max_count) == (3, 3)
    elastic = getattr(load_config(None, [*base, f"{section}.min=1", f"{section}.max=5"]), section)
    assert (elastic.min_count, elastic.max_count) == (1, 5)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "name: demo\nmodel: {}\n")
    assert problems(path) == [
        f"{path}:2: model.path: required, but not given",
        f"{path}: data.train: required, but not given",
    ]
    assert problems(None) == [
        f"command line: {key}: required, but not given" for key in ("name", "model.path", "data.train")
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "'steps' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("steps=[1,", "steps: '[1,' is not valid YAML"),
        ("steps=${nothing}", "steps: Interpolation key 'nothing' not found"),
        ("learner.lr=.nan", "learner.lr: must be at least 0, got nan"),
        ("name=a/b", "name: 'a/b' cannot be the name of a folder"),
        ("name=null", "name: expected text, got nothing"),
        ("evaluation.every=5", "evaluation.every: evaluations during training need a manifest in `data.valid`"),
        ("data.replay_weight=0.1", "data: `replay` and a `replay_weight` above 0 only make sense together"),
        ("data.limits.min_seconds=99", "data.limits: need 0 <= min_seconds <= max_seconds"),
        ("engines.dtype=int8", "engines.dtype: expected one of"),
        ("rewards.items.1.name=acuracy", "rewards.items.1: unknown reward 'acuracy'"),
        ("rewards.items.7.name=accuracy", "rewards.items.7.name: list index out of range"),
        ("learner.los.kl_coef=1", "command line: learner.los: unknown key; did you mean `learner.loss`?"),
        ("rewards.items={a: 1}", "rewards.items: expected a list, got a section with keys"),
        ("rewards.items=[{name: acuracy}]", "rewards.items.0: unknown reward 'acuracy'; did you mean 'accuracy'?"),
        ("learner.train=[language_model, encodr]", "got 'encodr'; did you mean `encoder`?"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    found = problems(write(tmp_path, REQUIRED), override)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("staleness=1",), "learner.loss.importance_cap: stale samples need importance weights"),
        (("update=inflight",), "update: nothing is in flight at a publication with `staleness: 0`"),
        (("staleness=-1",), "staleness: must be at least 0, got -1"),
        (
            ("staleness=1", "placement=colocated", "learner.loss.importance_cap=2"),
            "placement: components that take turns cannot overlap; `colocated` needs `staleness: 0`",
        ),
        (
            ("placement=colocated", "engines.gpus_per_engine=1"),
            "placement: `colocated` needs engines and learner both on GPUs, or both without",
        ),
        (
            ("placement=colocated", "engines.gpus_per_engine=1", "learner.gpus_per_rank=1", "learner.ranks=2"),
            "placement: `colocated` puts one engine and one learner rank on each GPU",
        ),
        (
            ("placement=colocated", "engines.gpus_per_engine=1", "learner.gpus_per_rank=1", "encoder.max=2"),
            "placement: `colocated` gives encoders a fixed share of each GPU",
        ),
    ],
)
def test_schedules_that_make_no_sense(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    found = problems(write(tmp_path, REQUIRED), *overrides)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("rewards.items=[{name: accuracy, options: {word_credit: 1}}]", "learner.loss.name=gspo"),
            "learner.loss.name: `gspo` has one ratio per response, so `word_credit` would have no effect",
        ),
        (("learner.loss.kl_in=reward",), "learner.loss.kl_in: no KL is taken off the reward"),
        (
            ("learner.loss.kl_in=reward", "learner.loss.kl_coef=0.1"),
            "learner.loss.kl_estimator: a KL in the reward is the log-ratio of sampled tokens; set it to `k1`",
        ),
        (
            (*KL_IN_REWARD, "learner.loss.name=gmpo"),
            "learner.loss.kl_in: `gmpo` has one ratio per response, and `reward` makes advantages of tokens",
        ),
        (
            ("learner.distillation.teacher=larger",),
            "learner.loss.kl_estimator: `k3` has the gradient of the forward KL, and distillation minimises",
        ),
        (
            (
                "learner.distillation.teacher=larger",
                "learner.loss.kl_estimator=full",
                "rewards.items=[{name: accuracy, weight: 0}]",
            ),
            "learner.zero_variance: rewards of weight 0 leave every group without variance; `keep` them",
        ),
    ],
)
def test_losses_that_make_no_sense(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    found = problems(write(tmp_path, REQUIRED), *overrides)
    assert len(found) == 1
    assert message in found[0]
    assert load_config(write(tmp_path, REQUIRED), list(KL_IN_REWARD)).learner.loss.kl_in == "reward"


def test_schedules_that_make_sense(tmp_path: Path) -> None:
    path = write(tmp_path, REQUIRED)
    config = load_config(path, ["staleness=2", "update=inflight", "learner.loss.importance_cap=2"])
    assert (config.staleness, config.update, config.placement) == (2, "inflight", "disaggregated")
    assert load_config(path, ["placement=colocated"]).placement == "colocated"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [\n", ":2: not valid YAML"),
        ("name: a\nname: b\n", ":2: not valid YAML: found duplicate key name"),
        ("- a\n- b\n", "expected `key: value` lines at the top"),
        ("defaults: run.yaml\n", "includes this file from itself"),
        ("defaults: other.yaml\n", "other.yaml: no such configuration file"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: no such configuration file"):
        load_config(tmp_path / "none.yaml")


def test_defaults_build_on_another_file(tmp_path: Path) -> None:
    base = write(tmp_path, REQUIRED + "seed: 1\nsteps: 5\n", "base.yaml")
    path = write(tmp_path, "defaults: base.yaml\nsteps: 6\nmodel:\n  family: demo\n")
    config = load_config(path)
    assert (config.seed, config.steps, config.model.path, config.model.family) == (1, 6, "assets/model", "demo")
    base.write_text(REQUIRED + "sede: 1\n", encoding="utf-8")
    assert problems(path) == [f"{base}:6: sede: unknown key; did you mean `seed`?"]


@pytest.mark.parametrize(
    ("objective", "override", "readers"),
    [
        ("grpo", "learner.diffro.weight=2", "`diffro` and `combined` read it"),
        ("grpo", "token2text.hidden=64", "`token2text` reads it"),
        ("combined", "learner.augment=true", "`sft` reads it"),
        ("grpo", "learner.diffro.temperature=0.5", "`diffro` and `combined` read it"),
        ("sft", "rewards.items=[]", "`grpo`, `diffro` and `combined` read it"),
        ("sft", "rewards.normalise_parts=true", "`grpo`, `diffro` and `combined` read it"),
        ("sft", "sampling.group_size=4", "`grpo`, `diffro` and `combined` read it"),
        ("sft", "staleness=1", "`grpo`, `diffro` and `combined` read it"),
        ("sft", "data.replay_batch=1", "`grpo`, `diffro` and `combined` read it"),
        ("token2text", "engines.count=2", "`grpo`, `diffro`, `combined` and `sft` read it"),
        ("token2text", "rewards={timeout_s: 1}", "`grpo`, `diffro` and `combined` read it"),
        ("token2text", "learner.restarts=0", "`grpo`, `diffro`, `combined` and `sft` read it"),
        ("token2text", "watchdog_minutes=1", "`grpo`, `diffro`, `combined` and `sft` read it"),
    ],
)
def test_a_key_that_the_objective_never_reads(objective: str, override: str, readers: str) -> None:
    base = [f"{key}={value}" for key, value in MINIMAL[objective].items()]
    assert load_config(None, base).objective == objective
    (found,) = problems(None, *base, override)
    key = override.partition("=")[0]
    assert found.startswith(f"command line: {key}")
    assert found.endswith(f": has no effect with `objective: {objective}`; only {readers}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_keys_that_the_objective_reads_and_defaults_never_complain(objective: str, tmp_path: Path) -> None:
    minimal = MINIMAL[objective]
    dumped = dump_config(load_config(None, [f"{key}={value}" for key, value in minimal.items()]))
    path = write(tmp_path, dumped)
    assert dump_config(load_config(path)) == dumped
    for key, value in CHANGED.items():
        if objective in readers(key):
            config: Any = load_config(path, [f"{key}={value}"])
            for name in key.split("."):
                config = getattr(config, name)
            assert str(config) == value, key
        else:
            assert any(f": {key}: has no effect" in found for found in problems(path, f"{key}={value}")), key


def test_adapters_are_a_section_that_is_off_until_it_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, REQUIRED + "learner:\n  lora: {rank: 8, targets: [q_proj, v_proj]}\n")
    plain = load_config(write(tmp_path, REQUIRED, "plain.yaml"))
    assert plain.learner.lora is None
    lora = load_config(path, ["learner.lora.alpha=4"]).learner.lora
    assert lora is not None and lora.factor == 0.5 and lora.targets == ["q_proj", "v_proj"] and lora.scale == 1.0
    for override in ("learner.lora.rank=16", "learner.lora={}"):
        config = load_config(tmp_path / "plain.yaml", [override])
        assert config.learner.lora is not None and config.learner.lora.rank == 16, override
        assert load_config(write(tmp_path, dump_config(config), "dump.yaml")) == config
    assert load_config(path, ["learner.lora=null"]) == plain
    wrong = problems(path, "engines.lora_rank=4")
    assert "engines.lora_rank: is 4, less than `learner.lora.rank` of 8" in wrong[0]
    wrong = problems(tmp_path / "plain.yaml", "engines.lora_rank=8")
    assert "engines.lora_rank: no adapter of the language model is trained" in wrong[0]
    assert load_config(path, ["engines.lora_rank=8"]).engines.lora_rank == 8
    assert "learner.lora.rank: must be at least 1, got 0" in problems(path, "learner.lora.rank=0")[0]
    assert "learner.lora.dropout: unknown key" in problems(path, "learner.lora.dropout=0")[0]
    alone = problems(path, "objective=sft", "learner.train=[encoder]")
    message = "adapters are for language_model and adaptor; `learner.train` has neither"
    assert alone == [f"{path}:7: learner.lora: {message}"]
    speech = ["objective=token2text", "model.path=new", "model.codec=codec", "learner.lora.rank=2"]
    assert any("learner.lora: has no effect" in found for found in problems(tmp_path / "plain.yaml", *speech))


def test_a_base_file_serves_several_objectives(tmp_path: Path) -> None:
    base = write(tmp_path, REQUIRED + "objective: grpo\nsampling:\n  group_size: 4\nstaleness: 0\n", "base.yaml")
    path = write(tmp_path, "defaults: base.yaml\nobjective: sft\n")
    config = load_config(path)
    assert config.sampling.group_size == 8, "what the objective never reads is left at its default"
    assert load_config(write(tmp_path, dump_config(config), "dump.yaml")) == config
    path.write_text("defaults: base.yaml\nobjective: sft\nsampling:\n  group_size: 4\n", encoding="utf-8")
    only = "has no effect with `objective: sft`; only `grpo`, `diffro` and `combined` read it"
    assert problems(path) == [f"{path}:4: sampling.group_size: {only}"]
    assert load_config(base, ["objective=sft"]).sampling.group_size == 8
    assert problems(base, "objective=sft", "sampling.group_size=2") == [f"command line: sampling.group_size: {only}"]


def test_unread_keys_are_reported_with_all_other_problems(tmp_path: Path) -> None:
    path = write(tmp_path, REQUIRED + "learner:\n  ctc_weight: 0.3\n  lr: fast\n")
    assert problems(path) == [
        f"{path}:7: learner.ctc_weight: has no effect with `objective: grpo`; only `sft` reads it",
        f"{path}:8: learner.lr: expected a number, got 'fast'",
    ]


def test_the_table_of_objectives_names_keys_that_exist() -> None:
    known = {key.path for key in walk(RunConfig)}
    assert READ_BY.keys() <= known
    assert set(MAY_CHANGE) <= known
    objective = next(key for key in walk(RunConfig) if key.path == "objective")
    assert get_args(objective.type) == ("grpo", "diffro", "combined", "sft", "token2text")
    assert set(OBJECTIVES) == set(get_args(objective.type))


def test_speech_is_checked_with_the_configuration(tmp_path: Path) -> None:
    path = write(
        tmp_path, REQUIRED + "rewards:\n  items:\n    - name: tts_accuracy\n      options:\n        cap: high\n"
    )
    assert problems(path) == [f"{path}:10: rewards.items.0.options.cap: expected a number, got 'high'"]
    speaks = ["model.codec=c", "rewards.items=[{name: tts_accuracy}]"]
    assert problems(path, *speaks) == [
        f"{path}:6: rewards.sound.judge.kind: is empty: name a judge, one of demo, faster_whisper, funasr, "
        "transformers, vllm"
    ]
    judge = ["rewards.sound.judge={kind: demo, path: package:not_installed_here/judge}"]
    assert load_config(path, [*speaks, *judge]).model.codec == "c"
    assert problems(path, *judge, speaks[1]) == [
        "command line: rewards.items: tts_accuracy score sound; name the codec of the model's speech (`model.codec`)"
    ]
    (found,) = problems(path, *speaks, *judge, "data.test=t")
    assert "rewards.sound.second_judge.kind: is empty" in found
    (found,) = problems(path, *speaks, *judge, "learner.train=[adaptor]")
    assert found.startswith("command line: learner.train: a model with a codec speaks")
    assert (
        "rewards.items: names 'no_stop' twice" in problems(path, "rewards.items=[{name: no_stop}, {name: no_stop}]")[0]
    )


def test_interpolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpus")
    config = load_config(write(tmp_path, REQUIRED), ["data.train=${oc.env:CORPUS}/train.jsonl", "steps=${seed}"])
    assert config.data.train == "/corpus/train.jsonl"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("learner.kl_coef", "learner.loss.kl_coef"), ("sedd", "seed"), ("sampling.temprature", "sampling.temperature")],
)
def test_nearest_key(wrong: str, right: str) -> None:
    assert nearest(wrong, [key.path for key in walk(RunConfig)]) == right


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("learner.learning_rate", "learner.lr"),
        ("batch_size", "data.batch_prompts"),
        ("data.train_batch_size", "data.batch_prompts"),
        ("num_generations", "sampling.group_size"),
        ("rollout_n", "sampling.group_size"),
        ("sampling.n", "sampling.group_size"),
        ("max_completion_length", "sampling.max_new_tokens"),
        ("learner.loss.beta", "learner.loss.kl_coef"),
        ("epsilon", "learner.loss.clip_low"),
        ("learner.loss.epsilon_high", "learner.loss.clip_high"),
    ],
)
def test_names_of_other_frameworks_get_ours(theirs: str, ours: str) -> None:
    base = [f"{key}={value}" for key, value in MINIMAL["grpo"].items()]
    assert problems(None, *base, f"{theirs}=1") == [f"command line: {theirs}: unknown key; here it is `{ours}`"]


def test_names_of_other_frameworks_are_none_of_ours() -> None:
    known = {key.path for key in walk(RunConfig)}
    assert set(ELSEWHERE.values()) <= known
    assert not ELSEWHERE.keys() & {path.rpartition(".")[2] for path in known}


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["engines.max_model_len=8192"],
            ["engines.max_num_batched_tokens: 4096 must be at least max_model_len=8192 on CPU, where prompts are "
             "computed in one piece"],
        ),
        (["engines.max_model_len=8192", "engines.gpus_per_engine=1"], []),
        (["engines.max_num_seqs=5000"], ["engines.max_num_batched_tokens: 4096 must be at least max_num_seqs=5000"]),
        (
            ["engines.max_model_len=64", "evaluation.max_new_tokens=80"],
            ["sampling.max_new_tokens: 64 leaves no room for a prompt in engines.max_model_len=64",
             "evaluation.max_new_tokens: 80 leaves no room for a prompt in engines.max_model_len=64"],
        ),
        (["engines.max_model_len=65"], []),
    ],
)  # fmt: skip
def test_what_an_engine_would_refuse(overrides: list[str], messages: list[str]) -> None:
    given = [*(f"{key}={value}" for key, value in MINIMAL["grpo"].items()), *overrides]
    if messages:
        assert [found.partition(": ")[2] for found in problems(None, *given)] == messages
    else:
        load_config(None, given)


def test_every_key_says_what_it_means() -> None:
    assert [key.path for key in walk(RunConfig) if key.section is None and not key.help] == []


def test_defaults_and_reference_cover_every_key() -> None:
    page = reference_markdown()
    for key in walk(RunConfig):
        assert f"`{key.path}`" in page or key.section is not None
    assert "path: ???" in default_yaml()


def test_reference_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "configuration.md"
    text: Any = page.read_text(encoding="utf-8") if page.exists() else None
    assert text == reference_markdown(), f"docs/configuration.md is out of date; regenerate it: {REGENERATE}"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert load_config(path, ["seed=5"]).seed == 5


@pytest.mark.parametrize("advantage", ["reinforce_pp", "group_std", "mine:function"])
def test_an_advantage_over_the_batch_and_rounds_of_prompts_do_not_go_together(advantage: str) -> None:
    given = [*(f"{key}={value}" for key, value in MINIMAL["grpo"].items()), f"learner.advantage={advantage}"]
    assert load_config(None, given).learner.advantage == advantage
    given.append("learner.zero_variance=resample")
    if advantage == "reinforce_pp":
        (found,) = problems(None, *given)
        assert "learner.zero_variance: `resample` draws prompts in rounds" in found
    else:
        assert load_config(None, given).learner.zero_variance == "resample"
