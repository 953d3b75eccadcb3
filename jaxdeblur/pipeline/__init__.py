"""The pipeline: :mod:`jaxdeblur.pipeline.stages` is the page to read."""

from jaxdeblur.pipeline.case import Photo
from jaxdeblur.pipeline.refinish import refinish
from jaxdeblur.pipeline.result import Candidate, Result
from jaxdeblur.pipeline.stages import deblur, deblur_batch

__all__ = ["Candidate", "Photo", "Result", "deblur", "deblur_batch", "refinish"]
