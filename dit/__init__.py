"""Diffusion transformers (DiT) with layer caching, learned routers, and schedules that are searched for."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
