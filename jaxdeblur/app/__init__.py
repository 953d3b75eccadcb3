"""The page for photographers: ``python -m jaxdeblur.app`` (extra ``app``).

``server`` answers the browser and never decodes an image; ``job_queue`` lets one computation run after the other; both hand the
work to processes of their own (``processes``), which can be killed at any time, and in which ``tasks`` does it.
"""
