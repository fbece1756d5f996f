"""Commands: sets of images, their scores, the paper's tables, MACs, speed, calibration."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
