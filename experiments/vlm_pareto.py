"""What do visual tokens buy a vision-language model, and what does leaving them out save?

    python experiments/vlm_pareto.py --small --max_parallel=2            the model that ships with jtok, in minutes
    python experiments/vlm_pareto.py --config=configs/vlm/bench.py:DIR   a LLaVA-1.5 checkpoint on one accelerator

The small setting answers 280 held-out digit-scene questions at three ratios. The full one measures what an answer costs
at the shape of LLaVA-1.5-7B (random weights, or those of DIR) with 192, 128 and 64 of its 576 visual tokens: time to
first token, time of each token, FLOPs and cache. It asks no benchmark's questions, so accuracy stays empty there.
"""

import sys

from jtok import launch

CONFIG = "configs/vlm/bench.py:llava-1.5-7b"
COMMAND = ("jtok", "bench", "vlm", "--json")
OUTPUT = "record.json"
SMALL = {"CONFIG": "configs/vlm/digit_scenes.py", "COMMAND": ("jtok", "evaluate", "--json", "--images=280")}
METHODS = ("visionzip", "divprune", "fastervlm", "fastv", "pyramiddrop", "sparsevlm", "dart", "random")
TOKENS = (192, 128, 64)
SMALL_METHODS, SMALL_KEEPS = ("visionzip", "divprune", "fastv", "sparsevlm", "random"), (0.5, 0.25, 1 / 9)


def sweep(small=False):
    """Small: the unreduced model and every method at every ratio. Full: every method at every count of tokens."""
    if small:
        yield "none", {"--method": "none"}
    for method in SMALL_METHODS if small else METHODS:
        for keep in SMALL_KEEPS if small else ():
            yield f"{method}_{keep:.3g}", {"--method": method, "--keep": keep}
        for tokens in () if small else TOKENS:
            yield f"{method}_{tokens}", {"methods": (method,), "tokens": tokens}


def report(workdirs):
    """Tables of what was measured and what is claimed, and accuracy against cost in the small setting."""
    from jtok.launch.pareto import TIMES, claim_rows, measured_rows, read_outputs
    from jtok.viz.pareto import draw_pareto

    records = read_outputs(workdirs, OUTPUT)
    costs = {name: row for name, record in records.items() for row in record.get("rows", ())[1:]}
    methods = [record["method"] for record in (costs or records).values()]
    rows = [cost_row(name, row) for name, row in costs.items()] if costs else measured_rows(records)
    figure = draw_costs(rows) if costs else draw_pareto(list(records.values()), batch=8, title=__doc__.splitlines()[0])
    return launch.Report({"measured": rows, "claimed by the papers": claim_rows(methods, {})}, figure, [TIMES])


def cost_row(name, row):
    """A line of the full setting's table."""
    line = {"unit": name, "method": row["method"], "visual tokens": row["visual_tokens"], "accuracy (%)": None}
    line |= {"first token (ms)": row["ttft_ms_median"], "speed-up": row["ttft_speedup"]}
    line |= {"each token (ms)": row["tpot_ms_median"], "prefill GFLOPs": row["prefill_gflops"]}
    return line | {"speed-up by FLOPs": row["ideal_speedup"], "cache (MB)": row["kv_bytes"] / 1e6}


def draw_costs(rows):
    """Time to the first token against FLOPs of reading the prompt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["prefill GFLOPs"], row["first token (ms)"]) for row in rows if row["method"] == method)
        axes.plot(*zip(*points, strict=True), marker="o", label=method)
    axes.set(xlabel="GFLOPs of reading a prompt", ylabel="time to first token (ms)", title=__doc__.splitlines()[0])
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(launch.main(globals()))
