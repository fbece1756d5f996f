"""The page of `app.py`: the shipped model, or another, with and without DeepCache."""

import os

import common  # noqa: F401  # silences a warning that diffusers triggers at import

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
