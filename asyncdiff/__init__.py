"""AsyncDiff (Chen et al., NeurIPS 2024, arXiv 2406.06911): one picture or video on several processes at once.

The U-Net is cut into parts, one for each process. From the second step on, each part takes what the parts before it put
out one step earlier, which is nearly the same, so that all run at the same time.
"""
