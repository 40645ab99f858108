"""From a model and example inputs to one flat graph."""

from fxpar.capture.arguments import arguments
from fxpar.capture.capture import capture
from fxpar.capture.interpret import run
from fxpar.capture.program import Input, Program

__all__ = ["Input", "Program", "arguments", "capture", "run"]
