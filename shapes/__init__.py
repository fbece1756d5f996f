"""Pictures of coloured shapes, and the scripts that train and evaluate the shipped models on them."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
