"""What the scripts share: a pipeline run with and without DeepCache, measured, shown, saved."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
