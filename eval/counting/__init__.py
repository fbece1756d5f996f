"""Multiply-accumulates of U-Nets, and the layouts of the published ones."""
