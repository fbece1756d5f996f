"""The plug-in on stock pipelines, with whichever diffusers is installed: nothing here imports `pipelines`."""
