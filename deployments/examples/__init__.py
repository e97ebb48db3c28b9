"""Examples of upstream flows, whose runs lead to a video."""
