"""The flags parser: values arrive typed, and every mistake is one line on stderr and exit code 2."""

import subprocess
import sys

import pytest
from absl import flags as absl_flags

from jtok.errors import UserError
from jtok.flags import Command, main, parse

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(size="small"):
    return ConfigDict(dict(
        size=size, steps=10, name="first", bfloat16=False, sizes=(1, 2), ratios=[0.5], untyped=None,
        limit=config_dict.placeholder(int), optimizer=dict(lr=0.1, warmup=5),
    ))
"""


def define(values):
    absl_flags.DEFINE_integer("steps", 3, "Number of steps.", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_float("keep_ratio", 0.5, "Share of the tokens that stays.", flag_values=values)
    absl_flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=values)
    absl_flags.DEFINE_enum("split", "test", ["train", "test"], "Which images.", flag_values=values)
    absl_flags.DEFINE_list("methods", [], "Names of methods.", flag_values=values)
    absl_flags.DEFINE_string("out", None, "Where the result goes.", short_name="o", flag_values=values)


def define_required(values):
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    absl_flags.mark_flag_as_required("workdir", flag_values=values)


def refuse(args, config):
    raise UserError("no image\n in that directory")


COMMANDS = (
    Command("sweep", "Sweep.\n\nMore about it.", define, lambda args, config: 0, config="optional"),
    Command("train", "Train.", define_required, lambda args, config: 75, config="required"),
    Command("refuse", "Refuse.", lambda values: None, refuse),
    Command("ask", "Ask.", define, lambda args, config: 0, argument="question"),
)
SWEEP = COMMANDS[0]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def write(tmp_path, text):
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def complaint(argv, capsys):
    """The only line that a refused command prints."""
    assert main(COMMANDS, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jtok") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def test_flags_arrive_typed():
    args, config = parse(["--steps=4", "--keep_ratio", "0.25", "--json", "--methods=tome,evit", "-o", "x"], SWEEP)
    assert (args.steps, args.keep_ratio, args.json, args.methods, args.out) == (4, 0.25, True, ["tome", "evit"], "x")
    assert args.split == "test" and config is None


def test_one_argument_needs_no_flag_where_a_command_takes_one():
    ask = COMMANDS[-1]
    assert parse(["What is this?", "--steps=4"], ask)[0].question == "What is this?"
    assert parse(["--steps", "4", "--", "--odd"], ask)[0].question == "--odd"
    assert parse([], ask)[0].question is None


def test_two_parses_do_not_share_values():
    parse(["--steps=4", "--methods=tome"], SWEEP)
    args, _ = parse([], SWEEP)
    assert args.steps == 3 and args.methods == []


def test_config_overrides_take_the_type_of_the_field_in_any_order(config_file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["other", "--config.steps=99"])  # somebody else's command line must not matter
    argv = ["--config.optimizer.lr=1", "--config.bfloat16", "--config", f"{config_file}:large", "--config.sizes=(3, 4)"]
    argv += ["--config.limit", "7", "--config.name=10", "--steps=2", "--config.ratios[0]=0.7"]
    args, config = parse(argv, SWEEP)
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.bfloat16 is True and config.sizes == (3, 4) and config.limit == 7 and config.name == "10"
    assert config.size == "large" and config.steps == 10 and args.steps == 2 and list(config.ratios) == [0.7]
    assert config.is_locked


def test_a_boolean_field_can_be_switched_off(tmp_path):
    text = "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'ema': True})\n"
    path = write(tmp_path, text)
    assert parse([f"--config={path}", "--noconfig.ema"], SWEEP)[1].ema is False


def test_flags_from_a_file_may_name_the_config(tmp_path, config_file):
    flagfile = tmp_path / "flags.txt"
    flagfile.write_text(f"--config={config_file}\n--config.steps=5\n--steps=6\n", encoding="utf-8")
    args, config = parse([f"--flagfile={flagfile}"], SWEEP)
    assert args.steps == 6 and config.steps == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no command given: choose one of sweep, train, refuse, ask"),
        (["swep"], "unknown command swep; did you mean sweep?"),
        (["zzz"], "unknown command zzz: choose one of sweep, train, refuse, ask"),
        (["--json", "sweep"], "a command comes first"),
        (["sweep", "--stpes=3"], "unknown flag --stpes; did you mean --steps?"),
        (["sweep", "--keep-ratio=3"], "did you mean --keep_ratio?"),
        (["sweep", "--confg=a.py"], "did you mean --config?"),
        (["sweep", "--qqqq"], "unknown flag --qqqq; see jtok sweep --help"),
        (["refuse", "--config=a.py"], "unknown flag --config"),
        (["sweep", "--steps=many"], "--steps=many should be a positive integer"),
        (["sweep", "--steps=0"], "--steps=0 should be a positive integer"),
        (["sweep", "--keep_ratio=half"], "--keep_ratio=half should be a number"),
        (["sweep", "--json=perhaps"], "--json=perhaps should be true or false"),
        (["sweep", "--nojson=1"], "does not take an argument"),
        (["sweep", "--split=valid"], "--split=valid: value should be one of <train|test>"),
        (["sweep", "--steps"], "missing value for flag --steps"),
        (["sweep", "now"], "unexpected argument 'now'"),
        (["ask", "What", "--json", "is", "this?"], "the question is followed by 'is': put it in quotes"),
        (["sweep", "--flagfile=/nonexistent"], "cannot read the file named by --flagfile: Unable"),
        (["sweep", "--config"], "--config needs a value"),
        (["sweep", "--config="], "--config needs a value"),
        (["sweep", "--config=/nonexistent/run.py"], "there is no config file /nonexistent/run.py"),
        (["sweep", "--config.steps=3"], "--config.steps needs a config to change"),
        (["train", "--workdir=w"], "--config is missing"),
        (["refuse"], "no image in that directory"),
    ],
)
def test_a_mistake_is_one_sentence(argv, said, capsys):
    assert said in complaint(argv, capsys)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.stpes=3", "unknown config field --config.stpes (not in "),
        ("--config.stpes=3", "did you mean --config.steps"),
        ("--config.lr=3", "did you mean --config.optimizer.lr?"),
        ("--config.optimiser.lr=3", "did you mean --config.optimizer.lr?"),
        ("--config.optimizer.lr.x=3", "unknown config field --config.optimizer.lr.x"),
        ("--config.=3", "unknown config field"),
        ("--config.qqqqqq=3", "unknown config field --config.qqqqqq"),
        ("--config.steps=many", "--config.steps=many should be an integer"),
        ("--config.steps=1.5", "--config.steps=1.5 should be an integer"),
        ("--config.optimizer.lr=fast", "--config.optimizer.lr=fast should be a number"),
        ("--config.bfloat16=perhaps", "--config.bfloat16=perhaps should be true or false"),
        ("--config.limit=none", "--config.limit=none should be an integer"),
        ("--config.optimizer=adam", "--config.optimizer is a group of fields"),
        ("--config.optimizer={'lr': 1.0}", "set one, --config.optimizer.FIELD=VALUE"),
        ("--config.untyped=3", "--config.untyped has no type"),
        ("--config.ratios=3", "set one entry, --config.ratios[0]=VALUE"),
        ("--config.ratios[9]=3", "cannot set --config.ratios[9]: list index out of range"),
        ("--config.ratios[=3", "set one entry, --config.ratios[0]=VALUE"),
        ("--config.sizes[0]=3", "it is set as a whole: --config.sizes=VALUE"),
        ("--config.sizes=(1", "should be a tuple like (1, 2)"),
        ("--config.sizes=(1, 'a')", "should be a tuple like (1, 2)"),
        ("--config.sizes=(1, 0.5)", "should be a tuple like (1, 2)"),
        ("--config.steps", "missing value for flag --config.steps"),
        ("--config=other.py", "--config is given twice"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, said, capsys, config_file):
    assert said in complaint(["sweep", f"--config={config_file}", override], capsys)


@pytest.mark.parametrize(
    ("text", "argument", "said"),
    [
        ("x = 1\n", "", "has no function get_config"),
        ("def get_config(:\n", "", "broken.py, line 1: invalid syntax"),
        ("import nonexistent_module\n", "", "line 1: ModuleNotFoundError: No module named 'nonexistent_module'"),
        ("def get_config():\n\n  return 1 / 0\n", "", "line 3: ZeroDivisionError: division by zero"),
        ("def get_config():\n  raise ValueError('two\\nlines')\n", "", "line 2: ValueError: two lines"),
        ("def get_config():\n  return {}\n", "", "returned dict, not an ml_collections ConfigDict"),
        ("def get_config():\n  return {}\n", ":tiny", "takes no argument: write --config="),
        ("def get_config(size):\n  return {}\n", "", "needs one: write --config="),
        ("from jtok.errors import UserError\nraise UserError('no preset tiny')\n", "", "jtok sweep: no preset tiny\n"),
    ],
)
def test_a_wrong_config_file_is_one_sentence(text, argument, said, capsys, tmp_path):
    assert said in complaint(["sweep", f"--config={write(tmp_path, text)}{argument}"], capsys)


def test_a_config_file_must_be_python(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 3\n", encoding="utf-8")
    assert "should end in .py" in complaint(["sweep", f"--config={tmp_path / 'run.yaml'}"], capsys)


def test_a_missing_required_flag_is_named_with_its_help(capsys, config_file):
    said = complaint(["train", f"--config={config_file}"], capsys)
    assert "--workdir is missing (directory of the run): add --workdir=VALUE" in said


def test_exit_codes_of_a_command_pass_through(config_file):
    assert main(COMMANDS, ["sweep"]) == 0
    assert main(COMMANDS, ["train", "--workdir=w", f"--config={config_file}"]) == 75


def test_an_interrupt_ends_without_a_trace(capsys):
    def interrupted(args, config):
        raise KeyboardInterrupt

    assert main([Command("wait", "Wait.", lambda values: None, interrupted)], ["wait"]) == 130
    assert capsys.readouterr().err == "jtok wait: interrupted\n"


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user():
    with pytest.raises(ZeroDivisionError):
        main([Command("fail", "Fail.", lambda values: None, lambda args, config: 1 // 0)], ["fail"])


def test_help_lists_commands_and_flags(capsys):
    assert main(COMMANDS, ["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(command.name in listed for command in COMMANDS) and "More about it" not in listed
    assert main(COMMANDS, ["sweep", "--help"]) == 0
    shown = capsys.readouterr()
    for text in ("More about it.", "--[no]json", "--steps=<int>", "(default: 3)", "--config=FILE.py", "train|test"):
        assert text in shown.out, shown.out
    assert shown.err == ""


def test_help_of_a_command_needs_no_required_flag(capsys):
    assert main(COMMANDS, ["train", "--help"]) == 0
    assert "--workdir=<string>" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error():
    program = (
        "import sys; from jtok.flags import Command, main\n"
        "def run(args, config):\n    print('line\\n' * 100_000)\n    return 0\n"
        "sys.exit(main([Command('say', 'Say.', lambda values: None, run)], ['say']))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    err = child.stderr.read()
    assert (child.wait(timeout=60), err) == (141, b"")
    child.stderr.close()


def test_groups_called_options_take_fields_of_their_own(tmp_path):
    path = write(
        tmp_path,
        "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict(dict(data=dict(name='scenes', options=dict(size=64))))\n",
    )
    options = ["--config.data.options.cut=contiguous", "--config.data.options.seed=3", "--config.data.options.size=96"]
    _, config = parse([f"--config={path}", *options], SWEEP)
    assert config.data.options.to_dict() == {"size": 96, "cut": "contiguous", "seed": 3}
    with pytest.raises(UserError, match="unknown config field --config.data.cut"):
        parse([f"--config={path}", "--config.data.cut=contiguous"], SWEEP)
