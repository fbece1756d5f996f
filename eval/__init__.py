"""Measuring: time, operations, distance between images."""

import unets  # noqa: F401  # first, since it quiets what diffusers says at its import
