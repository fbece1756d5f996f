"""Errors of reuse, measured step by step, and the search for the schedule with the least of them."""
