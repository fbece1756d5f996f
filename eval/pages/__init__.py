"""Pages over folders of results: what they show, and the templates that they are made with."""
