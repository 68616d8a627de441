"""One plain training loop; see `loop.train`."""

from jtok.training.config import default_train_config
from jtok.training.loop import train
from jtok.training.stop import Stopped
from jtok.training.task import Task

__all__ = ["Stopped", "Task", "default_train_config", "train"]
