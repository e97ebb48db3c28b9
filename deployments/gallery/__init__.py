"""The gallery: pages over the archive for people, and a gateway to its videos, whose bucket stays private."""
