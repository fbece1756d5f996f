"""Shared by the scripts: runs a pipeline with and without DeepCache, measures, reports and saves."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
