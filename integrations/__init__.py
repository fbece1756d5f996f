"""DeepCache in other programs: each folder has the layout that its program expects."""
