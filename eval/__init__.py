"""Measuring: time, operations, distance between images."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
