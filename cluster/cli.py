"""The `speechrl` command. Heavy libraries are imported by the commands that need them, so that help is instant."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speech.errors import UserError

_COMMANDS = {
    "evaluate": ("evaluate", "run_evaluation"),
    "compare": ("results.compare", "run"),
    "synthesize": ("synthesize", "run"),
    "prepare": ("prepare", "run"),
    "data": ("data", "run"),
    "submit": ("jobs", "run_submit"),
    "jobs": ("jobs", "run_jobs"),
    "stop": ("jobs", "run_stop"),
    "doctor": ("doctor", "run"),
    "plan": ("plan", "run"),
    "serve-reward": ("serve_reward", "run"),
    "audit": ("results.audit", "run_audit"),
    "families": ("families", "run_families"),
    "merge": ("merge", "run"),
    "report": ("results.report", "run"),
    "top": ("results.top", "run"),
}
"""By command: its module in `cluster.commands`, imported for it alone, and the function that gets the arguments and
returns the exit code. `train` and `config` are not so simple."""
_OVERRIDES = "dotted keys with values in YAML syntax, e.g. learner.lr=3e-6"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success, 2 for something the user can fix (its message is on stderr), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Rewards and other plug-ins of a user's own may lie in the working directory, as Ray's workers find them there.
    # Last, so that no file there takes the place of a package; `speech.runtime.importing` has the rest.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"speechrl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("speechrl: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    parser, commands = _parsers(arguments)
    args, extra = parser.parse_known_args(arguments)
    # argparse does not gather positionals that stand on both sides of an option.
    overrides = [item for item in extra if "=" in item and not item.startswith("-")]
    if len(overrides) < len(extra) or (overrides and not hasattr(args, "overrides")):
        unknown = [item for item in extra if item not in overrides] or overrides
        commands[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    if overrides:
        args.overrides += overrides
    if args.command == "train":
        from cluster.config import load_config
        from cluster.preflight import problems_here

        if args.address is not None:
            args.overrides.append(f"ray.address={args.address}")
        if args.dry_run:
            from cluster.commands.dry_run import dry_run

            return int(dry_run(args.config, args.overrides))
        run_config = load_config(args.config, args.overrides, problems_here)
        from cluster.commands.train import train  # takes seconds; a typo should not have to wait for it

        return int(train(run_config))
    if args.command == "config":
        return _config(args)
    module, function = _COMMANDS[args.command]
    return int(getattr(importlib.import_module(f"cluster.commands.{module}"), function)(args))


def _config(args: argparse.Namespace) -> int:
    from cluster.config import default_yaml, dump_config, load_config
    from cluster.config.reference import reference_markdown

    if args.reference:
        sys.stdout.write(reference_markdown())
    elif args.config is None:
        sys.stdout.write(default_yaml())
    else:
        sys.stdout.write(dump_config(load_config(args.config, args.overrides)))
    return 0


def _parsers(arguments: list[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="speechrl",
        description="Reinforcement learning for speech language models on Ray, vLLM and FSDP2.",
        epilog="examples:\n"
        "  speechrl train configs/asr_demo.yaml\n"
        "  speechrl evaluate --model runs/asr_demo/export --manifest test.jsonl\n"
        "  speechrl config configs/asr_demo.yaml steps=10\n"
        "`speechrl COMMAND --help` says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"speechrl {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, help_text: str, epilog: str) -> argparse.ArgumentParser:
        made[name] = commands.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return made[name]

    train = command(
        "train",
        "train a model; the same command again resumes",
        "examples:\n"
        "  speechrl train configs/asr_demo.yaml\n"
        "  speechrl train configs/asr_demo.yaml name=small_lr learner.lr=3e-6\n"
        "  speechrl train my_run.yaml --address auto      join a running Ray cluster\n"
        "  speechrl train my_run.yaml --dry-run           find all that would stop the run, in seconds\n"
        "Results are in runs/<name>/. Ctrl-C saves a checkpoint and ends.",
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file; `speechrl config --reference` lists its keys")
    train.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)
    train.add_argument("--address", help="Ray cluster to join; short for ray.address=…")
    train.add_argument("--dry-run", action="store_true", help="check everything but weights, and start nothing")

    evaluate = command(
        "evaluate",
        "score a model on a manifest",
        "examples:\n"
        "  speechrl evaluate --model runs/asr_demo/export --manifest test.jsonl --out hypotheses.jsonl\n"
        "  speechrl evaluate --model my_model --manifest test.jsonl --config my_run.yaml engines.count=2\n"
        "  speechrl evaluate --model runs/my_tts/export --manifest meta.lst --config my_tts.yaml\n"
        "A model that hears transcribes greedily. A model that speaks needs a configuration with its codec and two\n"
        "judges, and a manifest of texts and voices: our jsonl, or seed-tts-eval's meta.lst. Its scores: `wer` of the\n"
        "whole corpus, `wer_mean` over utterances, cosine similarity to the voice, share of samples without an end.\n"
        "evaluation.sampled=true adds one sample per utterance. Scores are written beside the hypotheses\n"
        "(.summary.json), waveforms into a folder of the same name.",
    )
    evaluate.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder in Hugging Face form")
    evaluate.add_argument("--manifest", required=True, metavar="FILE", help="utterances with references")
    evaluate.add_argument("--config", metavar="CONFIG", help="YAML file for engines and limits; defaults without one")
    evaluate.add_argument("--out", metavar="FILE", help="write the hypotheses here, one JSON object per line")
    evaluate.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)

    compare = command("compare", "compare two evaluations of the same utterances", "")
    if "compare" in arguments:
        from cluster.commands.results.compare import add_arguments as add_comparison

        add_comparison(compare)

    synthesize = command("synthesize", "speak a text in the voice of a recording", "")
    if "synthesize" in arguments:
        from cluster.commands.synthesize import add_arguments as add_synthesis

        add_synthesis(synthesize)

    prepare = command("prepare", "check a data set and write it as a manifest", "")
    if "prepare" in arguments:
        from cluster.commands.prepare import add_arguments

        add_arguments(prepare)

    data = command("data", "look at data sets", "`speechrl data COMMAND --help` says more about each.")
    if "data" in arguments:
        from cluster.commands.data import add_arguments as add_data_arguments

        add_data_arguments(data)

    submit = command(
        "submit",
        "train as a job of a Ray cluster",
        "examples:\n"
        "  speechrl submit configs/my_run.yaml runs_dir=/shared/runs --address http://head:8265 --wait\n"
        "  speechrl submit /shared/my_run.yaml --no-upload --address http://head:8265\n"
        "The current folder travels with the job. With token authentication, set RAY_AUTH_MODE=token and\n"
        "RAY_AUTH_TOKEN.",
    )
    submit.add_argument("config", metavar="CONFIG", help="YAML file inside the folder that travels")
    submit.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)
    jobs = command("jobs", "list the jobs of a Ray cluster", "examples:\n  speechrl jobs --address http://head:8265")
    stop = command(
        "stop",
        "stop a job after its step, with a checkpoint",
        "examples:\n"
        "  speechrl stop raysubmit_LgvTX6u8NFqv1BVn --address http://head:8265\n"
        "  speechrl stop --all\n"
        "Submitting the same configuration again resumes it. The exit code is 1 when no checkpoint was saved.",
    )
    if {"submit", "jobs", "stop"} & set(arguments):
        from cluster.commands.jobs import add_arguments as add_job_arguments

        add_job_arguments(submit, jobs, stop)

    audit = command(
        "audit",
        "hold a run's ledger against its data",
        "examples:\n"
        "  speechrl audit runs/asr_demo\n"
        "Every prompt of an epoch is trained once, or rejected with a reason, however often the run was killed and\n"
        "resumed. The exit code is 1 when the account says otherwise.",
    )
    audit.add_argument("run", metavar="RUN", help="folder of a run")

    report = command("report", "show runs in one page of HTML", "")
    if "report" in arguments:
        from cluster.commands.results.report import add_arguments as add_report_arguments

        add_report_arguments(report)

    top = command("top", "watch a running job", "")
    if "top" in arguments:
        from cluster.commands.results.top import add_arguments as add_top_arguments

        add_top_arguments(top)

    command(
        "families",
        "list the model families that are known",
        "examples:\n"
        "  speechrl families\n"
        "The family of a checkpoint is found from its config.json; model.family names another, or your own as\n"
        "module:Class. docs/model-families.md says more about each.",
    )
    merge = command(
        "merge",
        "add up the weights of models of one form",
        "examples:\n"
        "  speechrl merge runs/a/export runs/b/export --out merged\n"
        "  speechrl merge runs/a/export assets/asr_demo --weights 0.7 0.3 --out merged\n"
        "Each tensor is the weighted sum, in the type that the first model has it in; all other files are the first\n"
        "model's. Without --weights it is the mean. One file is in memory at a time.",
    )
    merge.add_argument("models", metavar="DIR", nargs="+", help="checkpoint folders in Hugging Face form")
    merge.add_argument("--weights", metavar="W", nargs="+", type=float, help="one for each model")
    merge.add_argument("--out", required=True, metavar="DIR", help="folder to write, which must not exist")

    doctor = command(
        "doctor",
        "check this machine and what is installed",
        "examples:\n"
        "  speechrl doctor\n"
        "  speechrl doctor --model Qwen/Qwen3-ASR-0.6B-hf\n"
        "  speechrl doctor my_run.yaml steps=10           also what `train --dry-run` checks\n"
        "One line for each check, OK, WARN or FAIL, with what to do about it. The exit code is 1 after a FAIL.",
    )
    doctor.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file of a run")
    doctor.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)
    doctor.add_argument("--model", metavar="DIR", help="checkpoint folder, or name on the hub")

    plan = command(
        "plan",
        "estimate the memory of a run",
        "examples:\n"
        "  speechrl plan configs/asr_demo.yaml\n"
        "  speechrl plan my_run.yaml --gpus 8 --memory 80 learner.ranks=4\n"
        "Reads headers only, so that any machine can plan for another. GB are 10^9 bytes. The exit code is 1 when\n"
        "the run does not fit; the keys that need less are named then.",
    )
    plan.add_argument("config", metavar="CONFIG", help="YAML file")
    plan.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs of the cluster")
    plan.add_argument(
        "--memory", type=float, metavar="GB", help="of each GPU, or of the machine where the run asks for no GPU"
    )

    serve = command(
        "serve-reward",
        "compute a reward for others over HTTP",
        "examples:\n"
        "  speechrl serve-reward accuracy options.shape=exp\n"
        "  speechrl serve-reward tts_accuracy sound.judge.kind=demo sound.judge.path=assets/asr_demo\n"
        "  speechrl serve-reward my_rewards:politeness --host 0.0.0.0 --port 9000\n"
        "A run asks it by the reward `http`, or `http_sound` for a reward on sound (docs/http-rewards.md).\n"
        "It asks for no token: only trusted machines may reach it.",
    )
    serve.add_argument("reward", metavar="NAME", help="a reward of docs/rewards.md, or module:function")
    serve.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="options.… and sound.…")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8600, help="default 8600; 0 takes a free one")

    config = command(
        "config",
        "print the resolved configuration",
        "examples:\n"
        "  speechrl config                                all defaults\n"
        "  speechrl config my_run.yaml steps=10           what a run would use\n"
        "  speechrl config --reference                    the reference page, in Markdown",
    )
    config.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file; all defaults without one")
    config.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=_OVERRIDES)
    config.add_argument("--reference", action="store_true", help="print the reference of all keys")
    return parser, made


def _version() -> str:
    try:
        return version("speechrl")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
