"""Distances between images and between sets of images: features, FID, precision and recall, CLIP Score."""
