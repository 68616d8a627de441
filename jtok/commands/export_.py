"""`jtok export`: weights for other libraries (safetensors), or programs that include their plan (stablehlo)."""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from jtok.commands.options import method_flags, parse_options, reduced
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    formats = ["safetensors", "stablehlo"]
    absl_flags.DEFINE_enum("format", "safetensors", formats, "what is written", flag_values=values)
    text = "a tower: file of jtok, Hugging Face directory, directory of a run, or 'shipped'"
    absl_flags.DEFINE_string("weights", "", text, flag_values=values)
    text = "instead of a tower a vision-language model: its directory, or 'shipped'"
    absl_flags.DEFINE_string("model", "", text, flag_values=values)
    text = "instead of a tower a tokenizer: its file or directory, or 'shipped'"
    absl_flags.DEFINE_string("tokenizer", "", text, flag_values=values)
    absl_flags.DEFINE_string("reducer", "", "safetensors file of a trained reducer", flag_values=values)
    absl_flags.DEFINE_string("out", None, "directory to write", flag_values=values, required=True)
    names = ["transformers", "timm"]
    absl_flags.DEFINE_enum("names", "transformers", names, "names of a tower's tensors", flag_values=values)
    storage = ["float32", "bfloat16"]
    absl_flags.DEFINE_enum("storage", "float32", storage, "type of tensors (safetensors)", flag_values=values)
    text = "one program for each accelerator, with kernels and a fixed batch (stablehlo)"
    absl_flags.DEFINE_bool("kernels", False, text, flag_values=values)
    text = "batch size (stablehlo); 0: any number, or 1 with --kernels"
    absl_flags.DEFINE_integer("batch", 0, text, flag_values=values, lower_bound=0)
    text = "maximum number of text tokens in a prompt (stablehlo of --model)"
    absl_flags.DEFINE_integer("text", 32, text, flag_values=values, lower_bound=1)


def _run(args, config) -> int:
    given = [name for name in ("weights", "model", "tokenizer") if getattr(args, name)]
    if len(given) != 1:
        raise UserError("give one of --weights=FILE (a tower), --model=DIR and --tokenizer=FILE.")
    if args.method != "none" and (args.format == "safetensors" or args.tokenizer):
        raise UserError("weights and tokenizers carry no plan: omit --method, or use --format=stablehlo.")
    if args.format == "safetensors" and (args.kernels or args.batch):
        raise UserError("weights carry no kernels and no batch: omit those flags, or use --format=stablehlo.")
    out = {"weights": _tower, "model": _question_model, "tokenizer": _tokenizer}[given[0]](args)
    print(f"wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


def _tower(args) -> Path:
    from jtok.export import card, hugging_face, program, source, write

    tower = source.read(args.weights, args.method, args.keep, parse_options(args.option), args.reducer)
    if args.format == "stablehlo":
        programs = [program.tower_program(tower)]
        return write.stablehlo(
            args.out, programs, lambda: card.tower_facts(tower), kernels=args.kernels, batch=args.batch
        )

    def save(directory: Path) -> dict[str, str]:
        stated = hugging_face.save_tower(directory, tower.config, tower.params, args.names, args.storage)
        kind = stated.get("architectures", [stated.get("architecture")])[0]
        return {"names": args.names, "class": kind, "storage": args.storage}

    return write.safetensors(args.out, save, lambda: card.tower_facts(tower))


def _question_model(args) -> Path:
    import importlib.resources

    from jtok.export import question_program as question
    from jtok.export import write
    from jtok.models.vlm import model as answer
    from jtok.models.vlm.shipped import ASSET

    source = Path(str(importlib.resources.files("jtok") / ASSET)) if args.model == "shipped" else Path(args.model)
    if (source / "checkpoints").is_dir():
        raise UserError(
            f"'{source}' is the directory of a run: give '{source}/model', which is written when the run ends."
        )
    model, options = answer.load(source), parse_options(args.option)
    how = {"method": args.method, "keep": args.keep, "options": options}
    if args.method != "none":
        asked = {"keep": args.keep, "weights": args.reducer or None, **options}
        model = reduced(model, args.method, how="--reducer=FILE", **asked)

    def facts() -> dict:
        return question.question_facts(model, args.model, source, how, args.text)

    if args.format == "stablehlo":
        programs = [question.question_program(model, args.text)]
        return write.stablehlo(args.out, programs, facts, kernels=args.kernels, batch=args.batch)

    def save(directory: Path) -> dict[str, str]:
        kind = question.save_question_model(directory, model, source, args.storage)
        return {"names": "transformers", "class": kind, "storage": args.storage}

    return write.safetensors(args.out, save, facts)


def _tokenizer(args) -> Path:
    import importlib.resources

    from jtok.export import write
    from jtok.export.tokenizer_files import save_released
    from jtok.export.tokenizer_programs import tokenizer_facts, tokenizer_programs
    from jtok.tokenizers.shipped import ASSET, open_tokenizer

    tokenizer = open_tokenizer(args.tokenizer)
    path = Path(str(importlib.resources.files("jtok") / ASSET)) if args.tokenizer == "shipped" else Path(args.tokenizer)

    def facts() -> dict:
        return tokenizer_facts(tokenizer, args.tokenizer, path)

    if args.format == "stablehlo":
        programs = tokenizer_programs(tokenizer)
        return write.stablehlo(args.out, programs, facts, kernels=args.kernels, batch=args.batch)

    def save(directory: Path) -> dict[str, str]:
        save_released(directory, tokenizer, args.storage)
        return {"names": "its authors'", "class": type(tokenizer).__name__, "storage": args.storage}

    return write.safetensors(args.out, save, facts)


COMMAND = Command(
    "export", "Write a model for other libraries, or with its plan as a program that needs only JAX.", _flags, _run
)
