"""The gallery: web pages that show the archive, and a gateway to its videos. The bucket stays private."""
