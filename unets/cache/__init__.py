"""The method: which steps are full, what is cached, and what a step reuses."""
