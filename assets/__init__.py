"""The shipped models, the pictures they are trained on and the scripts that train and judge them."""

import unets  # noqa: F401  # first, since it quiets what diffusers says at its import
