"""Checks of what comes from outside: start images before money is spent, videos before they are archived.

Modules:
    errors: what can go wrong, as one tree of exceptions.
    images: is this URL a JPG, PNG or WebP that the provider can use?
    videos: does this file play, and is it what was asked for?
"""
