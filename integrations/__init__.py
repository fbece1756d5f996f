"""DeepCache in other programs, each folder in the form in which its program wants it."""
