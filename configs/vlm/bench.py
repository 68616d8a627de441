"""What an answer costs with and without reduction, at the shape of LLaVA-1.5 with random weights.

jtok bench vlm --config configs/vlm/bench.py                      a scaled-down shape that a CPU prefills in a second
jtok bench vlm --config configs/vlm/bench.py:llava-1.5-7b         full size in bfloat16 (14 GB of parameters)
jtok bench vlm --config configs/vlm/bench.py:llava-1.5-7b --config.batch=8 --json
"""

from jtok.evaluation.bench.vlm import default_config


def get_config(model: str = "llava-cpu"):
    """`model`: a preset of `jtok.models.vlm.vlm_presets`, or the directory of a checkpoint."""
    config = default_config()
    config.model = model
    config.dtype = "float32" if model in ("llava-cpu", "llava-tiny") else "bfloat16"
    config.tokens = 4 if model == "llava-tiny" else 64
    return config
