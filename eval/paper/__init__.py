"""The paper's tables: the printed numbers, and the code from a row to images, scores, speed and a cell."""
