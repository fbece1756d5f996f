"""The paper's tables: what is printed, and what turns a row into images, scores, speed and a cell."""
