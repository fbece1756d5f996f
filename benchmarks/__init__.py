"""Speed, and quality against time."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
