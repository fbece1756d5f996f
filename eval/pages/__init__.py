"""HTML pages over folders of results, and their templates."""
