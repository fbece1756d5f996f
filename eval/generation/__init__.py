"""Images for sets of prompts."""
