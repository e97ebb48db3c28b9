"""Examples of flows that stand upstream of a video."""
