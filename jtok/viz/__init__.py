"""Pictures: what became of every patch, accuracy against cost, and one HTML page that holds it all."""

from jtok.viz.pareto import draw_pareto, save_figure
from jtok.viz.report import write_report
from jtok.viz.tokens import Outcome, draw_methods, draw_stages

__all__ = ["Outcome", "draw_methods", "draw_pareto", "draw_stages", "save_figure", "write_report"]
