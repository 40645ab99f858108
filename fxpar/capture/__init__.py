"""From a model and example inputs to one flat graph."""

from fxpar.capture.arguments import arguments as arguments
from fxpar.capture.capture import capture as capture
from fxpar.capture.interpret import run as run
from fxpar.capture.program import Input as Input
from fxpar.capture.program import Program as Program
